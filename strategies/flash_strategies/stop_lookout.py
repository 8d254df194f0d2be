"""Ranks agree on a stop at the same optimizer step, without waiting for each other in each one."""

from __future__ import annotations

from flash_strategies.agreed_looks import AgreedLooks
from flash_strategies.agreement import ControlGroup
from flash_strategies.run_session import stop_requested


class StopLookout:
    """One rank's; all ranks call each method at the same optimizer steps."""

    def __init__(self, control: ControlGroup) -> None:
        """Look at nothing yet."""
        self._alone = control.world_size == 1
        self._looks = AgreedLooks(control)

    def agreed(self, step: int) -> bool:
        """After an optimizer step: whether all ranks stop here; they learn it a look after the last was asked.

        Raises:
            RuntimeError: a rank did not come within the control group's time-out.
        """
        if self._alone:
            return stop_requested()
        if not self._looks.due(step):
            return False
        answer = self._looks.answer()
        self._looks.ask(step, [int(stop_requested())])
        return answer is not None and bool(answer[0])

    def now(self, step: int) -> bool:
        """Whether any rank is asked to stop; waits for the answer. Where ranks wait for each other anyway."""
        return bool(self._looks.now(step, [int(stop_requested())])[0])
