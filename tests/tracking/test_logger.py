"""What a task reaches of W&B by its logger: nothing that goes wrong there comes back to it."""

from __future__ import annotations

import pytest

from flash_launch.tracking.logger import _Shielded


class Summary:
    """As wandb's, whose process is gone from some time on."""

    def __init__(self) -> None:
        self.values: dict[str, object] = {}
        self.gone = False

    def __setitem__(self, key: str, value: object) -> None:
        if self.gone:
            raise ConnectionResetError("Connection lost")
        self.values[key] = value

    def __getitem__(self, key: str) -> object:
        return self.values[key]

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def update(self, values: dict[str, object]) -> str:
        for key, value in values.items():
            self[key] = value
        return "updated"


class Run:
    """As wandb's run."""

    def __init__(self) -> None:
        self.summary, self.id, self.notes = Summary(), "abc", ""


def test_calls_go_through_and_failures_do_not_come_back() -> None:
    run, complaints = Run(), []
    experiment = _Shielded(run, complaints.append)
    experiment.summary["mine"] = 42  # type: ignore[index, attr-defined]
    assert experiment.summary.update({"more": 1}) == "updated"  # type: ignore[attr-defined]
    assert (experiment.id, experiment.summary["mine"], "more" in experiment.summary) == ("abc", 42, True)  # type: ignore[index, operator, attr-defined]
    experiment.notes = "good"
    assert run.notes == "good"
    run.summary.gone = True
    experiment.summary["late"] = 1  # type: ignore[index, attr-defined]
    experiment.summary.update({"late": 1}).anything().more["x"] = 2  # type: ignore[attr-defined]
    assert [str(error) for error in complaints] == ["Connection lost", "Connection lost"]
    with pytest.raises(AttributeError):  # the task's own mistake
        experiment.no_such_thing()  # type: ignore[operator]
