"""What is known of error texts: the kind of failure each belongs to, what to do, and whether it may go away."""

import re
from dataclasses import dataclass

from flash_launch.verdict.told import Kind

__all__ = ["Known", "between_ranks", "known", "lost_peer", "unreachable", "waited"]


@dataclass(frozen=True)
class Known:
    """A kind of failure, by its text."""

    kind: Kind
    """Of what."""
    pattern: str
    """Found in the error, in those it came from, or in what a library printed. Compiled when it is first looked for."""
    advice: str
    """What to do."""
    transient: bool = False
    """Whether another attempt may well go through."""

    def fits(self, text: str) -> bool:
        """Whether a text is of this kind."""
        return re.search(self.pattern, text, re.IGNORECASE | re.MULTILINE) is not None


def known(text: str, *, physical: bool = False) -> Known | None:
    """The first kind of failure that fits a text.

    Args:
        physical: only kinds that no code handles and goes on from: memory, disks, GPUs, networks.
    """
    return next((one for one in _KNOWN if one.fits(text) and (not physical or one.kind in _PHYSICAL)), None)


def between_ranks(text: str) -> bool:
    """Whether it comes from what ranks talk by: a file server, or a web server, may be slow or gone just as well."""
    return re.search(_TALK, text, re.IGNORECASE) is not None


def unreachable(text: str) -> bool:
    """Whether it says that there is no way to some address."""
    return re.search(_NO_WAY, text, re.IGNORECASE) is not None


def lost_peer(text: str) -> bool:
    """Whether it only says that another rank, or the network to it, is gone; if it is `between_ranks`."""
    return re.search(_LOST, text, re.IGNORECASE) is not None


def waited(text: str) -> bool:
    """Whether it only says that another rank did not come in time; if it is `between_ranks`."""
    return re.search(_WAITED, text, re.IGNORECASE) is not None


def _entry(kind: Kind, pattern: str, advice: str, *, transient: bool = False) -> Known:
    return Known(kind, pattern, advice, transient)


_TALK = (
    r"\b(gloo|nccl|c10d|TCPStore|torch\.distributed|torchelastic|monitoredBarrier)\b|ProcessGroup(Gloo|NCCL)"
    r"|\bnccl[A-Z]\w*Error|Dist(Backend|Network|Store)Error|pair\.cc|unbound_buffer"
    r"|application timeout caused pair closure|watchdog caught collective"
)
_NO_WAY = r"Name or service not known|gaierror|No address associated|No route to host|Network is unreachable"
# What a rank says when another one is gone. Gloo, NCCL and torch's store each have words of their own for it.
_LOST = (
    r"connection (was )?(likely )?(closed|reset|refused|aborted|lost)|closed by (the )?(remote )?peer|broken pipe"
    r"|socket closed|remote process (has )?(exited|failed)|nccl(remote|system)error|remote error"
    r"|failed to recv|recvvalue failed|sendbytes failed|failed to connect|did not answer within|gave up before"
)
_WAITED = (
    r"(gloo|nccl|store|recv|send|collective|barrier|distributed|rendezvous)[\s\S]{0,400}"
    r"(timed out|time-?out|timing out)"
    r"|(timed out|time-?out|timing out)[\s\S]{0,200}(gloo|nccl|store|recv|send\b|collective|barrier|clients|keys)"
    r"|watchdog caught collective|did not come (in time|within)|failed to pass monitoredbarrier"
    r"|application timeout caused pair closure"
)
# The order counts: what stands first is the surer sign.
_KNOWN = (
    _entry(
        Kind.NAN_LOSS,
        r"NonFiniteLossError",
        "",  # its message says it
    ),
    _entry(
        Kind.GPU_OOM,
        r"CUDA out of memory|OutOfMemoryError: (CUDA|HIP)|CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED",
        "lower --batch-size and raise --accumulate by as much (the same steps in less memory), or hold less per rank "
        "with --setup zero2, zero3 or zero3_offload, or --precision bf16; `nvidia-smi` shows who else uses this GPU",
    ),
    _entry(
        Kind.GPU_FAILED,
        r"uncorrectable (ECC|NVLink)|fallen off the bus|ECC error|CUDA error: (unknown error|hardware|device not ready)"
        r"|CUDA error: (all CUDA-capable devices are busy|system not yet initialized|initialization error)|NVRM: Xid",
        "the GPU or its driver failed, not the run: go on with `flash-launch resume`, on another node if it happens "
        "again (Slurm: --slurm.exclude), and tell who runs the machine",
        transient=True,
    ),
    _entry(
        Kind.EXCEPTION,
        r"CUDA error: (device-side assert|an illegal memory access)",
        "GPU errors are told late: run once with CUDA_LAUNCH_BLOCKING=1 to see the operation that failed. A "
        "device-side assert is mostly a label or an index out of range",
    ),
    _entry(
        Kind.DATA_WORKER_KILLED,
        r"DataLoader worker \(pid.*\) is killed by signal: (Bus error|.*insufficient shared memory)"
        r"|unable to (open|allocate|write) shared memory|No space left on device.*(/dev/shm|/torch_)",
        "/dev/shm is full, through which data workers hand over batches (`df -h /dev/shm`): give it more (a container: "
        "--shm-size or --ipc=host), or use fewer data workers or smaller batches",
    ),
    _entry(
        Kind.DATA_WORKER_KILLED,
        r"DataLoader worker \(pid.*\) (is killed by signal|exited unexpectedly)",
        "data workers hold a copy of the data set's Python objects each and die first when memory is short: use fewer "
        "data workers, hold file names and not samples in the data set, or ask for more memory (Slurm: --slurm.mem)",
    ),
    _entry(
        Kind.EXCEPTION,
        r"mark a variable ready only once|marked as ready twice",
        "DistributedDataParallel saw a gradient twice, of activation checkpointing that began after the phase's first "
        'step, or of one layer called twice: give checkpoint(..., use_reentrant=False), or "static_graph": true in a '
        "ddp setup file where every step goes the same way through the model",
    ),
    _entry(
        Kind.DISK_FULL,
        r"\[Errno (28|122)\]|No space left on device|Disk quota exceeded|ENOSPC",
        "make room (`df -h`, `quota -s`; --keep-last 1 keeps fewer checkpoints, or give --output-dir on another disk), "
        "then go on with `flash-launch resume`",
    ),
    _entry(
        Kind.PORT_TAKEN,
        r"EADDRINUSE|address already in use",
        "another process has the port: start again, another one is chosen",
        transient=True,
    ),
    _entry(
        Kind.RENDEZVOUS,
        rf"client socket has timed out|socket has failed to (connect|bind)|{_NO_WAY}|cannot assign requested address",
        "see whether each node resolves and reaches that address (`getent hosts`, no firewall between the nodes, "
        "not 127.0.0.1): `flash-launch doctor` on the nodes tells",
        transient=True,
    ),
    _entry(
        Kind.IMPORT_ERROR,
        r"^(ModuleNotFoundError|ImportError)\b",
        "",  # made from the module's name
    ),
    _entry(
        Kind.OUT_OF_MEMORY,
        r"^MemoryError\b|DefaultCPUAllocator|Cannot allocate memory|std::bad_alloc|numpy.*ArrayMemoryError"
        r"|Unable to allocate .* for an array",
        "the node's memory, or this process's limit (`ulimit -v`), is used up: lower --batch-size or the number of "
        "data workers, use fewer ranks per node, or ask for more memory (Slurm: --slurm.mem)",
    ),
    _entry(
        Kind.NETWORK,
        r"NCCL (error|WARN)[\s\S]*(ncclSystemError|ncclInternalError|ncclUnhandled(System|Cuda)Error|ibv_|\bNET/)"
        r"|nccl(InternalError|UnhandledSystemError|UnhandledCudaError)",
        "NCCL could not use the network or the GPUs: run once with NCCL_DEBUG=INFO, set NCCL_SOCKET_IFNAME to the "
        "interface that joins the nodes; `flash-launch doctor` lists them",
        transient=True,
    ),
    _entry(
        Kind.SUPERSEDED,
        r"^(\S+\.)?FencedError|was superseded by attempt",
        "",  # its message says it
    ),
    _entry(Kind.INTERRUPTED, r"^KeyboardInterrupt", "go on with `flash-launch resume`"),
    _entry(
        Kind.KILLED,
        r"\bSIGTERMException\b",
        "SIGTERM, from outside, reached it while it was starting, when it could save nothing: start again, or go on "
        "with `flash-launch resume`",
        transient=True,
    ),
    _entry(
        Kind.EXITED,
        r"^SystemExit\b",
        "something called sys.exit before the run had finished, in the code or in a library that it calls",
    ),
)
_PHYSICAL = {
    Kind.GPU_OOM,
    Kind.GPU_FAILED,
    Kind.DATA_WORKER_KILLED,
    Kind.DISK_FULL,
    Kind.OUT_OF_MEMORY,
}
