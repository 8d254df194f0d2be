"""What is told: the verdict, its kinds, and how a person or a program reads it."""

from dataclasses import asdict, dataclass
from enum import StrEnum

__all__ = ["Kind", "Verdict"]


class Kind(StrEnum):
    """Of what a launch failed."""

    EXCEPTION = "exception"
    USER_FAULT = "user_fault"
    NAN_LOSS = "nan_loss"
    IMPORT_ERROR = "import_error"
    WRONG_VERSION = "wrong_version"
    OUT_OF_MEMORY = "out_of_memory"
    OOM_KILLED = "oom_killed"
    GPU_OOM = "gpu_oom"
    GPU_FAILED = "gpu_failed"
    DATA_WORKER_KILLED = "data_worker_killed"
    DISK_FULL = "disk_full"
    CRASH = "crash"
    KILLED = "killed"
    EXITED = "exited"
    HANG = "hang"
    NEVER_STARTED = "never_started"
    RENDEZVOUS = "rendezvous"
    PORT_TAKEN = "port_taken"
    NETWORK = "network"
    CONNECTION_LOST = "connection_lost"
    NODE_LOST = "node_lost"
    INTERRUPTED = "interrupted"
    TIME_LIMIT = "time_limit"
    PREEMPTED = "preempted"
    SUPERSEDED = "superseded"


@dataclass(frozen=True)
class Verdict:
    """Who failed first, of what, and what to do."""

    rank: int | None
    """The rank; None where it was an agent, a node or the job, and not one of its ranks."""
    node: int | None
    """Its node; None where it was the job."""
    cause: str
    """The error, or how it was killed."""
    detail: str = ""
    """What else helps: the likely reason, the log's last lines."""
    log: str = ""
    """Path of the log to read."""
    user_fault: bool = False
    """Whether the cause is a message for the user that needs no log."""
    kind: Kind = Kind.EXCEPTION
    """Of what."""
    advice: str = ""
    """What to do."""
    transient: bool = False
    """Whether another attempt may well go through with nothing changed; False for all that will only repeat."""
    host: str = ""
    """The node's name; empty where nobody told."""
    at: str = ""
    """What the rank was at: "the forward pass after step 3 (epoch 0)"."""
    who: str = ""
    """Who, where neither rank nor node says it: "the job"."""
    verb: str = "failed first"
    """What it did."""
    also: tuple[str, ...] = ()
    """Other ranks that failed on their own, one line each."""
    consequences: tuple[str, ...] = ()
    """Ranks that ended because of it, one line each."""

    def render(self, *, everything: bool = False) -> str:
        """The verdict as the console shows it.

        Args:
            everything: name each rank that ended because of it, too.
        """
        lines = [f"{self._subject()} {self.verb}: {self.cause}"]
        if self.at and not self.user_fault:
            lines.append(f"  where: {self.at}")
        if self.detail:
            lines += [f"  {line}" for line in self.detail.splitlines()]
        lines += [f"  {line}" for line in self.also]
        if self.advice:
            lines.append(f"  what to do: {self.advice}")
        if self.log and not self.user_fault:
            lines.append(f"  log: {self.log}")
        if everything and self.consequences:
            lines += ["  consequences, not causes:", *(f"    {line}" for line in self.consequences)]
        return "\n".join(lines)

    def to_json(self) -> dict[str, object]:
        """The same for a program."""
        return {**asdict(self), "kind": str(self.kind), "text": self.render()}

    def _subject(self) -> str:
        if self.who:
            return self.who
        host = f", {self.host}" if self.host else ""
        if self.rank is None:
            return f"the agent of node {self.node}{f' ({self.host})' if self.host else ''}"
        return f"rank {self.rank} (node {self.node}{host})"
