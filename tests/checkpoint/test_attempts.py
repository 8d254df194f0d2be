"""Attempts of a run: numbered without gaps or doubles, the newest owns the run, and what counts of an older one."""

import json
import threading
from pathlib import Path

import pytest

from flash_launch.checkpoint.attempts import Attempt, Fence, FenceWatch, begin, in_lineage, read_attempts
from flash_launch.errors import FencedError


def attempt(number: int, step: int) -> Attempt:
    return Attempt(number, "run", 0.0, "here", 1, f"step_{step}" if step else None, step)


def test_attempts_are_numbered_and_keep_the_runs_name(tmp_path: Path) -> None:
    first = begin(tmp_path / "attempts", config={"lr": 0.1})
    second = begin(tmp_path / "attempts", resumed_from="step_4", resumed_step=4)
    assert (first.number, second.number) == (1, 2)
    assert first.run == second.run
    assert read_attempts(tmp_path / "attempts") == [first, second]
    assert read_attempts(tmp_path / "attempts")[0].config == {"lr": 0.1}
    assert sorted(path.name for path in (tmp_path / "attempts").iterdir()) == ["0001.json", "0002.json"]


def test_two_that_begin_at_once_get_numbers_of_their_own(tmp_path: Path) -> None:
    begin(tmp_path)
    found: list[Attempt] = []
    threads = [threading.Thread(target=lambda: found.append(begin(tmp_path))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(one.number for one in found) == list(range(2, 10))
    assert len({one.run for one in found}) == 1


def test_an_older_attempt_is_fenced_off_and_told_by_whom(tmp_path: Path) -> None:
    first = begin(tmp_path)
    fence = Fence(tmp_path, first.number)
    fence.check()
    second = begin(tmp_path)
    assert fence.newer() == 2
    with pytest.raises(FencedError, match=rf"attempt 1 of this run was superseded by attempt 2 on {second.host}"):
        fence.check()
    Fence(tmp_path, 2).check()


def test_a_damaged_file_still_fences_off(tmp_path: Path) -> None:
    begin(tmp_path)
    (tmp_path / "0002.json").write_text("{")
    with pytest.raises(FencedError):
        Fence(tmp_path, 1).check()
    assert begin(tmp_path).number == 3
    assert json.loads((tmp_path / "0003.json").read_text())["run"] == read_attempts(tmp_path)[0].run


@pytest.mark.parametrize(
    ("saved_by", "step", "counts"),
    [(1, 3, True), (1, 4, True), (1, 5, False), (2, 5, True), (2, 9, True), (3, 7, True), (2, 6, True), (2, 10, False)],
)
def test_what_was_saved_after_a_newer_attempt_began_does_not_count(saved_by: int, step: int, counts: bool) -> None:
    attempts = [attempt(1, 0), attempt(2, 4), attempt(3, 9)]
    assert in_lineage(attempts, saved_by, step) is counts


def test_ranks_of_a_superseded_launch_have_a_while_to_notice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("flash_launch.checkpoint.attempts.time.monotonic", lambda: now[0])
    begin(tmp_path)
    watch = FenceWatch(Fence(tmp_path, 1))
    begin(tmp_path)
    assert not watch.ended(), "the folder is not read at each look"
    now[0] += 3
    assert not watch.ended()
    now[0] += 19
    assert not watch.ended()
    now[0] += 2
    assert watch.ended()
