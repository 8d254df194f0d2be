"""The matrix: stored on any setup at any position, gone on with on any setup and ranks, the end is the same.

`make test` runs a subset in which every two of (save setup, position, resume setup, ranks) meet. All of it:
`pytest tests/checkpoint/test_matrix.py`.
"""

from __future__ import annotations

from itertools import combinations, product

import pytest
from matrix_cases import COVERING, NORMS, NORMS_COVERING, POSITIONS, RANKS, SETUPS, THREE, WHOLE, Case
from matrix_runs import Runs, check_end, check_identical, check_loaded, runs

pytestmark = pytest.mark.timeout(1800)  # the first test of a suite waits for all of its runs

QUICK = {*COVERING, *NORMS_COVERING, *THREE}
ALL = [*WHOLE, *NORMS, *THREE]


def named(cases: list[Case]) -> pytest.MarkDecorator:
    """A test per case; those that are not in the subset are slow."""
    marked = [
        pytest.param(case, id=case.name, marks=[] if case in QUICK else [pytest.mark.slow])
        for case in sorted(cases, key=QUICK.__contains__, reverse=True)
    ]
    return pytest.mark.parametrize("case", marked)


@pytest.fixture
def made(case: Case, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return runs(case, request, tmp_path_factory)


def test_any_two_meet_in_the_subset() -> None:
    def axes(case: Case) -> tuple[object, ...]:
        return case.unstopped.setup, case.position, case.setup, case.world_size

    for one, other in combinations(range(4), 2):
        values = (SETUPS, POSITIONS, SETUPS, RANKS)
        wanted = set(product(values[one], values[other]))
        assert wanted == {(axes(case)[one], axes(case)[other]) for case in COVERING}
    assert {axes(case) for case in WHOLE} == set(product(SETUPS, POSITIONS, SETUPS, RANKS))


@named(ALL)
def test_what_is_loaded_is_what_was_stored(made: Runs) -> None:
    check_loaded(made)


@named(ALL)
def test_the_end_is_that_of_the_unstopped_run(made: Runs) -> None:
    check_end(made)


@named([case for case in ALL if case.same])
def test_on_the_same_setup_and_ranks_every_bit_is_the_same(made: Runs) -> None:
    check_identical(made)
