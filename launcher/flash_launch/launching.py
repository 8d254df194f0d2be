"""Starts a run or goes on with it: from options to ranks on this machine, and how it ended, on the console."""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from flash_launch.checkpoint.attempts import STOPPED, Attempt, Fence, begin
from flash_launch.checkpoint.manifest import Manifest
from flash_launch.checkpoint.store import Store
from flash_launch.cluster.allocation import Allocation, find_allocation, left_behind
from flash_launch.cluster.client import count_gpus, show_jobs
from flash_launch.cluster.job_file import note_job
from flash_launch.config import RunConfig
from flash_launch.console import say, usage
from flash_launch.continuation import check_can_go_on, continued, find, trim_metrics
from flash_launch.early_stop import EarlyStop
from flash_launch.errors import ConfigError, FencedError, FlashLaunchError, SlurmError, SlurmUnavailable
from flash_launch.executors.hosts import choose_hosts
from flash_launch.executors.local import LaunchResult, run_local
from flash_launch.machine import Placement, place, place_in_allocation, visible_gpus
from flash_launch.option_parser import parse_run_options
from flash_launch.options import RankOptions
from flash_launch.preparation import PREFLIGHT, Preparation, prepare
from flash_launch.run_folder import (
    RunFolder,
    append_jsonl,
    check_free,
    create,
    default_path,
    read_json,
    write_json,
    write_text,
)
from flash_launch.script.config import AnyConfig, ScriptConfig, is_script, read_config
from flash_launch.script.ends import record_end
from flash_launch.script.tracking import tracking_environment
from flash_launch.tracking.mode import check_login
from flash_launch.viewing.wording import resume_command

__all__ = ["begin_attempt", "go_on", "launch", "located", "prepared", "read_options", "tell_end", "write_plan"]

_Config = TypeVar("_Config", RunConfig, ScriptConfig)


def read_options(argv: Sequence[str], path: Path | None = None) -> tuple[RunConfig, Placement]:
    """The configuration that was asked for, checked and resolved, and where it runs.

    Args:
        path: folder of the run to go on with; None: that of the options.

    Raises:
        FlashLaunchError: anything that can be told to be wrong without torch.
    """
    config = parse_run_options(argv, usage())
    config.check()
    return located(config, argv, path)


def located(config: _Config, argv: Sequence[str], path: Path | None = None) -> tuple[_Config, Placement]:
    """A configuration with its place in it, and the place: hosts, a Slurm allocation or this machine.

    Args:
        argv: the command line, which may name other hosts than the YAML files.
        path: folder of the run to go on with; None: that of the options.

    Raises:
        FlashLaunchError: there is no such place for it, or it cannot record as it shall.
    """
    check_login(config.wandb, os.environ)
    config, hosts = choose_hosts(config, argv)
    if hosts:
        from flash_launch.executors.host_check import place_on_hosts  # not imported where ranks run here

        say(f"looking at {', '.join(map(str, hosts))}")
        path = path or (Path(config.output_dir) if config.output_dir is not None else default_path(config.name))
        placement, notes = place_on_hosts(config, hosts, path, user_code=config.user_code)
        for note in notes:
            say(note)
    elif (allocation := find_allocation(os.environ)) is not None:
        _check_job(allocation.job_id)
        try:
            placement = place_in_allocation(config, _with_gpus(allocation, config))
        except ConfigError as error:
            raise ConfigError(f"{error}; {left_behind(os.environ)}") from error
    else:
        placement = place(config, () if config.accelerator == "cpu" else visible_gpus())
    return config.placed(placement.nodes, placement.procs_per_node, placement.accelerator), placement


def _check_job(job_id: str) -> None:
    """Refuse an allocation that Slurm knows to be over, or where there is no Slurm; one that is silent may answer srun.

    Raises:
        ConfigError: names the variables to unset.
    """
    try:
        jobs = show_jobs(job_id, retry_seconds=0)
    except SlurmUnavailable:
        return
    except SlurmError as error:
        raise ConfigError(f"SLURM_JOB_ID names job {job_id}, and {error}; {left_behind(os.environ)}") from error
    if all(job.ended for job in jobs):
        how = f"is {jobs[-1].state}" if jobs else "is unknown to Slurm"
        raise ConfigError(f"SLURM_JOB_ID names job {job_id}, which {how}; {left_behind(os.environ)}")


def _with_gpus(allocation: Allocation, config: RankOptions) -> Allocation:
    """The allocation with its GPUs, of which salloc's shell knows nothing."""
    if allocation.gpus_per_node is not None or config.accelerator == "cpu":
        return allocation
    if config.accelerator == "cuda" and config.procs_per_node is not None:
        return replace(allocation, gpus_per_node=config.procs_per_node)
    try:
        return replace(allocation, gpus_per_node=count_gpus(allocation.job_id))
    except FlashLaunchError as error:
        raise ConfigError(
            f"how many GPUs job {allocation.job_id} has cannot be told ({error}): give --accelerator cpu, or "
            "--accelerator cuda with --procs-per-node"
        ) from error


def prepared(config: AnyConfig, checkpoint: Path | None = None) -> Preparation:
    """What the preflight says of a run, which may be to go on from a checkpoint's folder; of a script, what it is.

    Raises:
        PreflightRefused, LaunchError: see preparation.py.
    """
    if isinstance(config, ScriptConfig):
        world_size = (config.nodes or 1) * (config.procs_per_node or 1)
        return Preparation({"task": config.command, "world_size": world_size}, world_size=world_size)
    return prepare(config, PREFLIGHT, checkpoint=checkpoint)


def launch(config: AnyConfig, placement: Placement) -> int:
    """Start a new run; or go on with it, if there is one and --resume auto says so; the exit code.

    Raises:
        FlashLaunchError: a user fault; nothing was written then.
    """
    if config.resume == "auto":
        if config.output_dir is None:
            raise ConfigError("--resume auto needs --output-dir: the folder of the run to start or to go on with")
        if RunFolder(Path(config.output_dir).absolute()).config_yaml.exists():
            return go_on(config, placement, Path(config.output_dir))
    path = Path(config.output_dir) if config.output_dir is not None else default_path(config.name)
    check_free(path)
    if isinstance(config, RunConfig):
        say("preparing: building the model and scanning the data")
    preparation = prepared(config)
    folder = create(path)
    write_plan(folder, config, preparation)
    return _launch(config, placement, preparation, folder, path, begin_attempt(folder, config))


def go_on(config: AnyConfig, placement: Placement, path: Path, checkpoint: str | None = None) -> int:
    """Go on with the run in a folder, from its newest checkpoint or the one that is named; the exit code.

    Raises:
        FlashLaunchError: a user fault, or checkpoints that cannot be used.
    """
    folder = RunFolder(path.absolute())
    check_can_go_on(folder)
    config = continued(read_config(folder), config)
    if isinstance(config, RunConfig):
        say("preparing: checking the checkpoints")
    continuation = find(folder, config, checkpoint)
    for note in continuation.notes:
        say(note)
    if continuation.finished:
        return 0
    manifest = continuation.manifest
    at = Store(folder.checkpoints).path(manifest.name) if manifest is not None else None
    preparation = prepared(config, at)
    attempt = begin_attempt(folder, config, manifest)
    write_plan(folder, config, preparation)
    return _launch(config, placement, preparation, folder, path, attempt)


_HEADER = """\
# All options of the run, to repeat it with `flash-launch --config`; ranks, accelerator and setup are those that were
# found. null: not given, so that its default holds; what came of the strategy and the setup is in plan.json and
# deepspeed.json.
"""


_SCRIPT_HEADER = """\
# The script, its arguments and all options of its ranks; `flash-launch resume` starts it again with them.
"""


def write_plan(folder: RunFolder, config: AnyConfig, preparation: Preparation) -> None:
    """Write what was asked and what it comes to: config.yaml and plan.json."""
    # Without its folder, so that `flash-launch --config RUN/config.yaml` makes a new one.
    header = _SCRIPT_HEADER if isinstance(config, ScriptConfig) else _HEADER
    write_text(folder.config_yaml, header + config.replace(output_dir=None, resume="never").to_yaml())
    write_json(folder.plan_json, preparation.plan)


def begin_attempt(folder: RunFolder, config: AnyConfig, manifest: Manifest | None = None) -> Attempt:
    """Take the next attempt's number, from a checkpoint or from the start, and clear away what it will write again.

    Raises:
        ConfigError: the folder cannot be written to.
    """
    try:
        attempt = begin(
            folder.attempts,
            resumed_from=manifest.name if manifest is not None else None,
            resumed_step=manifest.position.step if manifest is not None else 0,
            config={name: list(value) if isinstance(value, tuple) else value for name, value in vars(config).items()},
        )
    except OSError as error:
        raise ConfigError(f"{folder.attempts} cannot be written to: {error.strerror}") from error
    if isinstance(config, ScriptConfig):  # what it saves, and when, is its own
        folder.checkpoints.mkdir(exist_ok=True)
        append_jsonl(folder.events_jsonl, {"event": "start", "time": time.time(), "attempt": attempt.number})
    else:
        Store(folder.checkpoints).sweep()
        trim_metrics(folder, manifest)
    folder.summary_json.unlink(missing_ok=True)
    folder.logs.mkdir(exist_ok=True)
    if manifest is not None:
        say(
            f"attempt {attempt.number} goes on from {manifest.name} ({manifest.position}), phase {manifest.phase}, "
            f"saved by {manifest.world_size} rank{'s' * (manifest.world_size != 1)} on {manifest.setup}"
        )
    return attempt


def tell_end(folder: RunFolder, path: Path, result: LaunchResult, attempt: Attempt) -> int:
    """The verdict or the summary on the console, and the exit code; a run that failed gets a status of its own."""
    code = _tell_end(folder, path, result, Fence(folder.attempts, attempt.number))
    told = {"exit_code": code, "time": time.time(), "seconds": round(result.seconds, 3)}
    verdict = result.verdict.render() if result.verdict is not None else None
    with contextlib.suppress(OSError):  # on a full disk, the exit code and the console have to do
        folder.ends_of(attempt.number).mkdir(parents=True, exist_ok=True)
        write_json(folder.ends_of(attempt.number) / "end.json", {**told, "verdict": verdict})
    return code


def _launch(
    config: AnyConfig,
    placement: Placement,
    preparation: Preparation,
    folder: RunFolder,
    path: Path,
    attempt: Attempt,
) -> int:
    """Start the ranks in a run folder, and tell how it ended; the exit code."""
    for line in (*preparation.messages, *preparation.describe(), placement.describe(), f"run folder: {path}"):
        say(line)
    return tell_end(folder, path, _run_ranks(config, placement, folder, attempt), attempt)


def _run_ranks(config: AnyConfig, placement: Placement, folder: RunFolder, attempt: Attempt) -> LaunchResult:
    """Run the ranks where they are placed, to their end."""
    # what rank 0 writes to is a log; only here is it known whether a person watches
    environment = {**os.environ, "FLASH_LAUNCH_WATCHED": str(int(sys.stdout.isatty()))}
    worker: tuple[str, ...] = ()
    if isinstance(config, ScriptConfig):
        worker = config.worker
        environment |= tracking_environment(config, folder, environment)
    if placement.hosts:
        from flash_launch.executors.ssh import run_ssh

        return run_ssh(
            folder,
            placement.hosts,
            head=placement.head,
            port=placement.port,
            procs_per_node=placement.procs_per_node,
            worker=worker,
            attempt=attempt.number,
            environment=environment,
            stop_seconds=config.timeout,
        )
    if placement.allocation is not None:
        from flash_launch.executors.allocation import run_in_allocation

        note_job(folder, attempt.number, placement.allocation)
        return run_in_allocation(
            folder,
            placement.allocation,
            procs_per_node=placement.procs_per_node,
            worker=worker,
            attempt=attempt.number,
            environment=environment,
            stop_seconds=config.timeout,
        )
    return run_local(
        folder,
        nodes=placement.nodes,
        procs_per_node=placement.procs_per_node,
        worker=worker,
        attempt=attempt.number,
        gpus=placement.gpus,
        stop_seconds=config.timeout,
        environment=environment,
    )


def _tell_end(folder: RunFolder, path: Path, result: LaunchResult, fence: Fence) -> int:
    try:
        fence.check()
    except FencedError as error:
        say(f"stopped after {result.seconds:.1f} s: {error}", error=True)
        return 1
    script = is_script(folder.config_yaml)
    if script:
        result = record_end(folder, fence.number, result)
    summary: dict[str, object] = {}
    if folder.summary_json.exists() and isinstance(read := read_json(folder.summary_json), dict):
        summary = read
    if result.exit_code != 0:
        stopped = result.exit_code > 128
        why = f"by {signal.Signals(result.exit_code - 128).name}" if stopped else "nobody told why: see the logs"
        if result.verdict is not None:
            why = result.verdict.render()
        with contextlib.suppress(OSError):
            write_json(folder.summary_json, {**summary, "status": "stopped" if stopped else "failed", "verdict": why})
        say(f"{'stopped' if stopped else 'failed'} after {result.seconds:.1f} s: {why}", error=not stopped)
        say(f"run folder: {path}{_how_to_go_on(folder, path, script=script)}")
        return result.exit_code
    if script and summary.get("saved"):
        say(f"stopped after {result.seconds:.1f} s: the script has saved")
        say(f"run folder: {path}{_how_to_go_on(folder, path, script=True)}")
        return STOPPED
    if summary.get("status") == "stopped":
        saved = summary.get("checkpoint")
        told = f"saved {saved}" if saved else "nothing was saved, --checkpoint-every is 0"
        say(f"stopped after {result.seconds:.1f} s at step {summary.get('steps')}: {told}")
        say(f"run folder: {path}{_how_to_go_on(folder, path)}")
        return STOPPED if saved else 128 + signal.SIGTERM
    if summary.get("status") != "finished":
        why = "all ranks ended with exit code 0 before the run had finished, and nobody told why: see the logs"
        with contextlib.suppress(OSError):
            write_json(folder.summary_json, {**summary, "status": "failed", "verdict": why})
        say(f"failed after {result.seconds:.1f} s: {why}", error=True)
        return 1
    metrics = summary.get("metrics")
    values = [f"{name} {value:.4g}" for name, value in metrics.items()] if isinstance(metrics, dict) else []
    stop = EarlyStop.from_json(summary.get("stopped_early"))
    ended = f"finished in {result.seconds:.1f} s" + (f", {stop}" if stop is not None else "")
    say(f"{ended}{': ' * bool(values)}{', '.join(values)}")
    say(f"run folder: {path}{', weights: ' + folder.weights.name if folder.weights.exists() else ''}")
    return 0


def _how_to_go_on(folder: RunFolder, path: Path, *, script: bool = False) -> str:
    if script:
        return f", start it again with: {resume_command(path)}"
    names = Store(folder.checkpoints).names()
    return f", go on from {names[0]} with: {resume_command(path)}" if names else ""
