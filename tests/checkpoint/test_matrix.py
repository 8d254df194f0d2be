"""The matrix: stored on any setup at any position, gone on with on any setup and ranks, the end is the same.

`make test` runs a subset in which every two of (save setup, position, resume setup, ranks) meet. All of it:
`pytest tests/checkpoint/test_matrix.py`.
"""

from __future__ import annotations

from itertools import combinations, product
from typing import TYPE_CHECKING

import pytest
from matrix_cases import COVERING, NORMS, NORMS_COVERING, POSITIONS, RANKS, SETUPS, THREE, WHOLE, Case, Run
from matrix_runs import check_end, check_identical, check_loaded, unstopped

if TYPE_CHECKING:
    from conftest import Suites

pytestmark = pytest.mark.timeout(1800)  # the first test of a suite waits for all of its cases

QUICK = {*COVERING, *NORMS_COVERING}
ALL = [*WHOLE, *NORMS, *THREE]


def named(cases: list[Case]) -> pytest.MarkDecorator:
    """A test per case; those that are not in the subset are slow."""
    marked = [
        pytest.param(case, id=case.name, marks=[] if case in QUICK else [pytest.mark.slow])
        for case in sorted(cases, key=QUICK.__contains__, reverse=True)
    ]
    return pytest.mark.parametrize("case", marked)


@pytest.fixture
def before(case: Case, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    return unstopped(case, request, tmp_path_factory)


@pytest.fixture
def ranks(case: Case, before: list[Run], suites: Suites) -> list[Run]:
    return suites.result(case.suite, case.world_size, case.name)


def test_any_two_meet_in_the_subset() -> None:
    def axes(case: Case) -> tuple[object, ...]:
        return case.unstopped.setup, case.position, case.setup, case.world_size

    for one, other in combinations(range(4), 2):
        values = (SETUPS, POSITIONS, SETUPS, RANKS)
        wanted = set(product(values[one], values[other]))
        assert wanted == {(axes(case)[one], axes(case)[other]) for case in COVERING}
    assert {axes(case) for case in WHOLE} == set(product(SETUPS, POSITIONS, SETUPS, RANKS))


@named(ALL)
def test_what_is_loaded_is_what_was_stored(case: Case, ranks: list[Run], before: list[Run]) -> None:
    check_loaded(case, ranks, before)


@named(ALL)
def test_the_end_is_that_of_the_unstopped_run(case: Case, ranks: list[Run], before: list[Run]) -> None:
    check_end(case, ranks, before)


@named([case for case in ALL if case.same])
def test_on_the_same_setup_and_ranks_every_bit_is_the_same(case: Case, ranks: list[Run], before: list[Run]) -> None:
    check_identical(case, ranks, before)
