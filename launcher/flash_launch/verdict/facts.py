"""The facts a verdict is found from: how ranks and agents of an attempt ended, and what Slurm says of its job."""

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["AgentEnd", "AttemptFacts", "Progress", "RankEnd", "SlurmRecord"]


@dataclass(frozen=True)
class Progress:
    """What a rank was at, by its own last word."""

    where: str
    """In words, as they stand in "where: ...": "the forward pass"."""
    epoch: int | None = None
    """The epoch; None: training had not begun."""
    step: int | None = None
    """Optimizer steps done; None: training had not begun."""
    time: float | None = None
    """Since when, in seconds since 1970."""

    def __str__(self) -> str:
        """As it stands in a sentence."""
        if self.step is None:
            return self.where
        return f"{self.where} after step {self.step} (epoch {self.epoch})"


@dataclass(frozen=True)
class RankEnd:
    """What is known of a rank's end."""

    rank: int
    """Its number among all ranks."""
    node: int
    """Its node's number."""
    exit_code: int | None = None
    """What its agent saw: negative for a signal, None where the agent saw nothing."""
    time: float | None = None
    """When it failed, in seconds since 1970; only whole seconds where the rank itself could tell nothing."""
    error: str | None = None
    """The error it told of; None where it could not, as when it was killed."""
    user_fault: bool = False
    """Whether that is an error of ours, whose message stands for itself."""
    log: str = ""
    """Path of its log."""
    log_tail: str = ""
    """The last lines that this attempt wrote to it."""
    host: str = ""
    """Its machine's name; empty where nobody told."""
    error_type: str = ""
    """The error's class, module.Name."""
    causes: tuple[str, ...] = ()
    """The errors that this one came from, the nearest first."""
    frames: tuple[str, ...] = ()
    """Where the error was raised, outermost first: `File "x.py", line 3 in f`."""
    stack: str = ""
    """What its threads were at when its agent asked, as faulthandler writes it; empty where it did not answer."""
    progress: Progress | None = None
    """What it was at, at most a second before."""
    started: bool = True
    """Whether it ever told that it began."""
    finished: bool = False
    """Whether it ended well."""
    ended: bool = False
    """Whether it was killed because others had failed before."""
    oom_kills: int | None = None
    """Processes that the kernel killed for want of memory in its control groups while it ran; None: nobody can tell."""
    kernel: str = ""
    """What the kernel's log says of such an end of this very process."""

    @property
    def failed(self) -> bool:
        """Whether it told of an error, or was seen to end badly."""
        return self.error is not None or self.exit_code not in (None, 0)


@dataclass(frozen=True)
class AgentEnd:
    """How a node's agent ended."""

    node: int
    """Its node's number."""
    exit_code: int | None
    """Its exit code, negative for a signal; None: nobody saw its end."""
    ended_by_launcher: bool = False
    """Whether the launcher had told it to end before."""
    log: str = ""
    """Path of its log."""
    log_tail: str = ""
    """The last lines that this attempt wrote to it."""
    host: str = ""
    """Its machine's name; empty where nobody told."""
    error: str | None = None
    """The error it told of, if it failed by itself and not by a rank."""
    started: bool = True
    """Whether it ever told that it began."""
    address: str = ""
    """Where it was to meet the other agents, host:port."""
    python: str = ""
    """Its interpreter."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Versions by package, and of Python."""
    oom_kills: int | None = None
    """As of a rank, in the agent's control groups."""


@dataclass(frozen=True)
class SlurmRecord:
    """What Slurm says of the job of an attempt."""

    state: str
    """COMPLETED, FAILED, TIMEOUT, NODE_FAIL, OUT_OF_MEMORY, PREEMPTED, CANCELLED, ..."""
    reason: str = ""
    """Why it waits, or ended, in Slurm's words."""
    exit_code: str = ""
    """As Slurm writes it, "code:signal"."""
    nodes: tuple[str, ...] = ()
    """Its nodes, in the order of node numbers."""
    time_limit: str = ""
    """Its time limit as Slurm writes it."""
    job_id: str = ""
    """The job's number."""
    failed_node: str = ""
    """The node that failed, where Slurm names it."""


@dataclass(frozen=True)
class AttemptFacts:
    """All that is known of an attempt's end."""

    ranks: tuple[RankEnd, ...]
    """All its ranks, as far as anybody told of them."""
    agents: tuple[AgentEnd, ...]
    """All its agents, also those that never began."""
    slurm: SlurmRecord | None = None
    """Slurm's record; None: no Slurm job, or nobody asked."""
    disk_free: int | None = None
    """Bytes that are free where the run folder is, asked when it ended."""
