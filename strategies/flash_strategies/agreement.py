"""Agreement of all ranks before anything changes: never a hang, and the rank that differs is named."""

from __future__ import annotations

import atexit
import gc
import json
import re
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from weakref import WeakSet

import torch
import torch.distributed as dist

from flash_strategies.errors import AgreementError
from flash_strategies.plan import PhasePlan, first_difference


class ControlGroup:
    """A gloo group of all ranks beside the one that trains, so that control never waits behind the accelerator."""

    def __init__(self, timeout: float | None = None) -> None:
        """Make the group; every rank must do so at the same point.

        Args:
            timeout: seconds to wait for another rank before it is named in an error; None is the time-out of the
                process group that trains, since ranks may work for as long between two of its collectives.
        """
        self._timeout = timedelta(seconds=timeout) if timeout is not None else _default_timeout()
        group = dist.new_group(backend="gloo", timeout=self._timeout) if _many() else None
        self._group = group if isinstance(group, dist.ProcessGroup) else None
        if self._group is not None:
            if not _LIVE:
                atexit.register(_release_groups)
            _LIVE.add(self)

    @property
    def rank(self) -> int:
        """This process's rank."""
        return dist.get_rank(self._group) if self._group is not None else 0

    @property
    def world_size(self) -> int:
        """The number of ranks."""
        return dist.get_world_size(self._group) if self._group is not None else 1

    @property
    def process_group(self) -> dist.ProcessGroup | None:
        """The gloo group; None where there is one rank."""
        return self._group

    def release(self) -> None:
        """Let go of the group, at the end of the process; no rank waits for another."""
        group, self._group = self._group, None
        if group is not None and dist.is_initialized():
            dist.destroy_process_group(group)

    def meet(self, where: str) -> None:
        """Wait until all ranks are here.

        Raises:
            AgreementError: some ranks did not come within the time-out; they are named.
        """
        if self._group is None:
            return
        try:
            # torch.distributed.monitored_barrier: rank 0 hears from each rank and names those that are missing
            dist.monitored_barrier(self._group, timeout=self._timeout, wait_all_ranks=True)
        except RuntimeError as error:
            raise AgreementError(f"at {where}, {self._missing(error)}. Nothing was changed") from error

    def _missing(self, error: RuntimeError) -> str:
        """Who did not come. Only rank 0 hears from each rank; the others hear from rank 0."""
        seconds = f"within {self._timeout.total_seconds():g} s"
        if self.rank != 0:
            return f"rank 0 did not answer {seconds}, or gave up before: its log names the ranks that did not come"
        named = re.search(r"Ranks? ([\d, ]+) failed to pass", str(error))
        if named is None:
            return f"not all ranks came {seconds}: {_first_line(error)}"
        ranks = named[1].strip().rstrip(",")
        return f"rank{'s' if ',' in ranks else ''} {ranks} did not come {seconds}"

    def gather(self, value: object, where: str) -> list[object]:
        """Every rank's value, in the order of ranks; waits as `meet` does."""
        if self._group is None:
            return [value]
        self.meet(where)
        values: list[object] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self._group)
        return values

    def min_max(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Element-wise minimum and maximum over the ranks, of a CPU tensor."""
        if self._group is None:
            return values, values
        # one round for both: the maximum is the least in reverse order (`~`, since `-` does not turn the least integer)
        turned = torch.neg if values.is_floating_point() else torch.bitwise_not
        both = torch.stack([values, turned(values)])
        dist.all_reduce(both, op=dist.ReduceOp.MIN, group=self._group)
        return both[0], turned(both[1])

    def begin_max(self, values: torch.Tensor) -> Callable[[], torch.Tensor]:
        """Begin to find the element-wise maximum over the ranks, of a CPU tensor; what is returned waits for it.

        Returns:
            Gives the maximum; raises RuntimeError if a rank did not come within the time-out.
        """
        most = values.clone()
        work = dist.all_reduce(most, op=dist.ReduceOp.MAX, group=self._group, async_op=True) if self._group else None

        def wait() -> torch.Tensor:
            if work is not None:
                work.wait()
            return most

        return wait

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Element-wise sum over the ranks, of a CPU tensor; integers wrap around."""
        if self._group is None:
            return values
        total = values.clone()
        dist.all_reduce(total, group=self._group)
        return total

    def agree(self, plan: PhasePlan) -> str:
        """Compare the plan over all ranks and return its fingerprint.

        Raises:
            AgreementError: ranks differ, or did not come; names the ranks and the first difference.
        """
        where = f"the transition to phase {plan.phase!r}"
        prints = [str(value) for value in self.gather(plan.fingerprint(), where)]
        if len(set(prints)) == 1:
            return prints[0]
        # most ranks are taken to be right, the lowest rank where there is no majority
        right = max(Counter(prints).items(), key=lambda item: (item[1], -prints.index(item[0])))[0]
        reference = prints.index(right)
        odd = [rank for rank, value in enumerate(prints) if value != right]
        plans = self.gather(plan.to_json(), where)
        difference = first_difference(json.loads(str(plans[reference])), json.loads(str(plans[odd[0]])))
        who = f"rank {odd[0]} differs" if len(odd) == 1 else f"ranks {', '.join(map(str, odd))} differ"
        raise AgreementError(
            f"at {where}, {who} from rank {reference} ('here' is rank {reference}, 'there' rank {odd[0]}): "
            f"{difference}. Nothing was changed. Every rank must run the same strategy on the same model; look for "
            "code that depends on the rank, on time or on random numbers."
        )


_LIVE: WeakSet[ControlGroup] = WeakSet()


def _release_groups() -> None:
    """Before Python ends: nothing of ours keeps process groups alive, a user's own in reference cycles included.

    Gloo's threads end with their group; where Python's teardown finds them, it ends the process by SIGABRT, although
    the user called destroy_process_group (pytorch/pytorch#179291).
    """
    for control in list(_LIVE):
        control.release()
    gc.collect()


def _many() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _default_timeout() -> timedelta:
    if not _many() or dist.group.WORLD is None:
        return dist.default_pg_timeout
    device = torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
    options = getattr(dist.group.WORLD._get_backend(device), "options", None)
    return getattr(options, "_timeout", dist.default_pg_timeout)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
