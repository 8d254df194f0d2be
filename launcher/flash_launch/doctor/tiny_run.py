"""A real run of the smallest kind: some ranks on this machine add up a tensor, within a time limit."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from flash_launch.doctor.findings import Finding, fail, ok, warn

__all__ = ["RankEnd", "TinyRunFacts", "check_tiny_run", "gather_tiny_run"]

_GROUP = "ranks"
_STEPS = ("", "imported", "computed", "joined", "added")
_SLOW_IMPORT = 20.0


@dataclass(frozen=True)
class RankEnd:
    """How one rank ended."""

    step: str = ""
    """The last step it told of: imported, computed, joined or added; empty: none."""
    code: int | None = 0
    """Its exit code; negative: a signal; None: it was ended at the time limit."""
    error: str = ""
    """The last line that it wrote to standard error."""


@dataclass(frozen=True)
class TinyRunFacts:
    """How the tiny run went."""

    backend: Literal["gloo", "nccl"]
    """What the ranks talked over."""
    address: str
    """Where they met."""
    ranks: tuple[RankEnd, ...]
    """One per rank."""
    seconds: float
    """How long it took."""
    limit: float
    """How long it might take."""
    import_seconds: float = 0.0
    """How long the slowest rank took to import torch."""
    devices: int | None = None
    """GPUs that torch sees; None: it was not imported."""
    listed: int = 0
    """GPUs that it should see: what nvidia-smi lists, or CUDA_VISIBLE_DEVICES leaves."""
    smi: bool = False
    """Whether there is a working nvidia-smi."""


def check_tiny_run(facts: TinyRunFacts) -> list[Finding]:
    """Whether torch could be imported, sees the GPUs, and the ranks could add up."""
    bad = next((number for number, end in enumerate(facts.ranks) if end.code != 0 and end.code is not None), None)
    if bad is None:  # none failed by itself: the one that got least far held up the others
        bad = min(range(len(facts.ranks)), key=lambda number: _STEPS.index(facts.ranks[number].step))
    first = facts.ranks[bad]
    found = []
    if facts.devices is not None:
        found += _devices(facts)
    if not first.step:
        return [*found, _not_imported(facts, first)]
    if facts.import_seconds > _SLOW_IMPORT:
        text = f"importing torch took {facts.import_seconds:.0f} s"
        fix = "put the virtual environment on a faster disk (a local one, or an image), not on a busy shared one"
        found.append(warn(_GROUP, text, fix))
    what = f"{len(facts.ranks)} ranks added up over {facts.backend} at {facts.address}"
    if all(end.code == 0 for end in facts.ranks):
        return [*found, ok(_GROUP, f"{what} in {facts.seconds:.1f} s")]
    how = f"was ended after {facts.limit:g} s" if first.code is None else _ended(first)
    if first.step == "imported":
        stuck = "before it met the others" if facts.devices == 0 else "at its GPU or before it met the others"
    else:
        stuck = {"computed": "before it met the others", "joined": "while adding up", "added": "at its end"}[first.step]
    text = f"rank {bad} of a run of {len(facts.ranks)} over {facts.backend} at {facts.address} {how} {stuck}"
    return [*found, fail(_GROUP, text, _fix(facts, first))]


def _devices(facts: TinyRunFacts) -> list[Finding]:
    seen = facts.devices or 0
    if seen == facts.listed:
        return [ok(_GROUP, f"torch sees {seen} GPUs, as nvidia-smi does")] if seen else []
    if not facts.smi and seen:
        text = f"torch sees {seen} GPUs, but there is no nvidia-smi that works: their state was not checked"
        return [warn(_GROUP, text, "put nvidia-smi into PATH (nvidia-utils)")]
    text = f"torch sees {seen} GPUs, but {facts.listed} are there"
    fix = (
        "look at the error of: python -c 'import torch; torch.zeros(1).cuda()' (driver and CUDA versions, cgroup "
        "devices, CUDA_VISIBLE_DEVICES, or a GPU that fell off the bus: dmesg | grep -i xid)"
    )
    return [fail(_GROUP, text, fix)]


def _not_imported(facts: TinyRunFacts, end: RankEnd) -> Finding:
    if end.code is None:
        text = f"torch was not imported within {facts.limit:g} s"
        fix = "try python -X importtime -c 'import torch'; a virtual environment on a busy shared disk is slow"
        return fail(_GROUP, text, fix)
    fix = "python -c 'import torch' shows more; unless another finding says why: pip install --force-reinstall torch"
    return fail(_GROUP, f"torch cannot be imported: a rank {_ended(end)}", fix)


def _ended(end: RankEnd) -> str:
    code = end.code or 0
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"was killed by {signal.Signals(-code).name}" + f" ({end.error})" * bool(end.error)
    return f"failed ({end.error or f'exit code {code}'})"


def _fix(facts: TinyRunFacts, end: RankEnd) -> str:
    if "no kernel image" in end.error:
        return "install a torch that was built for this GPU, see https://pytorch.org/get-started/locally"
    if "out of memory" in end.error:
        return "end what uses the GPU (nvidia-smi), or take another one by CUDA_VISIBLE_DEVICES"
    if facts.backend == "nccl":
        return "NCCL_DEBUG=INFO flash-launch doctor shows more; try NCCL_P2P_DISABLE=1, and a /dev/shm of 1 GiB or more"
    return "look at the network findings above; GLOO_SOCKET_IFNAME names the interface (lo for this machine alone)"


def gather_tiny_run(
    environment: Mapping[str, str],
    *,
    ranks: int,
    backend: Literal["gloo", "nccl"],
    address: str,
    interface: str,
    listed: int,
    smi: bool,
    limit: float,
    program: Sequence[str] = ("-m", "flash_launch.doctor.tiny_rank"),
) -> TinyRunFacts:
    """Run `ranks` ranks and wait for them, at most `limit` seconds; then all that is left of them is killed.

    Args:
        address: where they meet, one of this machine's.
        interface: what gloo uses, unless a variable names another.
        listed: GPUs that torch should see.
        smi: whether there is a working nvidia-smi.
        program: what each rank runs, as arguments of `python`.
    """
    common = {name: value for name, value in environment.items() if not name.startswith(("TORCHELASTIC_", "PET_"))}
    common.setdefault("GLOO_SOCKET_IFNAME", interface)
    common |= {"MASTER_ADDR": address, "MASTER_PORT": str(_free_port(address)), "WORLD_SIZE": str(ranks)}
    common |= {"LOCAL_WORLD_SIZE": str(ranks), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    argv = [sys.executable, *program, backend, str(max(1, round(limit)))]
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="flash-launch-doctor-") as folder:
        processes: list[subprocess.Popen[bytes]] = []
        imported: dict[int, float] = {}
        late: set[int] = set()
        try:
            for rank in range(ranks):
                own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                with open(f"{folder}/{rank}.out", "wb") as out, open(f"{folder}/{rank}.err", "wb") as err:
                    processes.append(
                        subprocess.Popen(
                            argv,
                            stdin=subprocess.DEVNULL,
                            stdout=out,
                            stderr=err,
                            env={**common, **own},
                            start_new_session=True,
                        )
                    )
            end = began + limit
            while any(process.poll() is None for process in processes) and time.monotonic() < end:
                for rank in range(ranks):
                    if rank not in imported and os.path.getsize(f"{folder}/{rank}.out"):
                        imported[rank] = time.monotonic() - began
                if any(process.poll() for process in processes):
                    end = min(end, time.monotonic() + 2)  # the others only wait for the one that failed
                time.sleep(0.02)
        finally:
            for rank, process in enumerate(processes):
                if process.poll() is None:
                    late.add(rank)
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        seconds = time.monotonic() - began
        told = [_lines(f"{folder}/{rank}.out") for rank in range(ranks)]
        ends = tuple(
            RankEnd(
                step=str(told[rank][-1].get("step", "")) if told[rank] else "",
                code=None if rank in late or process.returncode == -signal.SIGALRM else process.returncode,
                error=_last_line(f"{folder}/{rank}.err"),
            )
            for rank, process in enumerate(processes)
        )
    devices = next((int(str(lines[0].get("devices"))) for lines in told if lines), None)
    return TinyRunFacts(
        backend, address, ends, seconds, limit, max(imported.values(), default=0.0), devices, listed, smi
    )


def _free_port(address: str) -> int:
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return 29500  # the ranks will say what is wrong with the address
        port: int = probe.getsockname()[1]
        return port


def _lines(path: str) -> list[dict[str, object]]:
    found = []
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            with contextlib.suppress(json.JSONDecodeError):
                step = json.loads(line)
                if isinstance(step, dict):
                    found.append(step)
    return found


def _last_line(path: str) -> str:
    """The last line that looks like an error's, else the last one."""
    with open(path, encoding="utf-8", errors="replace") as file:
        lines = [line.strip() for line in file if line.strip()]
    errors = [line for line in lines if "Error" in line.split(":")[0]]
    return (errors or lines or [""])[-1][:300]
