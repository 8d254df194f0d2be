"""Submits runs to Slurm: checked here, written to their folders, and refused if the cluster will never run them."""

import contextlib
import os
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from flash_launch.checkpoint.attempts import read_attempts
from flash_launch.checkpoint.store import Store
from flash_launch.cluster.client import Job, cancel, count_nodes, show_jobs, submit
from flash_launch.cluster.job_file import JobFile, Submitted, job_path, read_job_file, write_job_file
from flash_launch.cluster.options import SlurmOptions
from flash_launch.cluster.reasons import Reason, explain
from flash_launch.cluster.script import JobScript, render
from flash_launch.config import RunConfig
from flash_launch.console import say
from flash_launch.continuation import continued, find
from flash_launch.errors import ConfigError, FlashLaunchError, SlurmError
from flash_launch.launching import prepared, write_plan
from flash_launch.machine import place_on_cluster
from flash_launch.option_parser import option_names, parse_run_options
from flash_launch.preparation import Preparation
from flash_launch.run_folder import RunFolder, check_free, create, default_path, write_text
from flash_launch.script.config import AnyConfig, ScriptConfig, read_config
from flash_launch.sweep import SweepTask, combinations, option_arguments, sweep_tasks, write_sweep

__all__ = ["Submission", "how_to_follow", "prepare_submission", "send"]

_Config = TypeVar("_Config", RunConfig, ScriptConfig)
_SCRIPT = "job.sh"
_LOOK_SECONDS = 3.0
_VAGUE = ("PartitionConfig", "BadConstraints")
"""What Slurm says at first, before it has looked closer."""
_PLAN_FREE = ("seed", "lr", "weight_decay", "momentum", "gradient_clip")
"""Options of which neither the plan nor what can be wrong with a run depends."""


@dataclass(frozen=True)
class Submission:
    """What is to be submitted."""

    path: Path
    """The run folder, or the sweep's, as it was given."""
    configs: tuple[AnyConfig, ...]
    """The options of each run, resolved."""
    preparations: tuple[Preparation, ...]
    """What the preflight says of each."""
    tasks: tuple[SweepTask, ...]
    """The runs of a sweep; empty for a single run."""
    script: str
    """The batch script."""
    options: SlurmOptions
    """What is asked of Slurm."""
    goes_on: bool = False
    """Whether the run folder is there already."""

    @property
    def folders(self) -> tuple[RunFolder, ...]:
        """The run folders."""
        top = self.path.absolute()
        return tuple(RunFolder(top / task.folder) for task in self.tasks) or (RunFolder(top),)


def prepare_submission(
    argv: Sequence[str], options: SlurmOptions, usage: str, script: ScriptConfig | None = None
) -> Submission:
    """Check what was asked for, and write nothing.

    Args:
        argv: the options.
        script: what is run, if that is no training of ours.

    Raises:
        FlashLaunchError: a user fault.
    """
    values = combinations(options.array, option_names()) if options.array and script is None else [{}]
    configs: list[AnyConfig]
    if script is None:
        configs = [_config(argv, one, options, usage) for one in values]
    elif options.array:
        raise ConfigError("--slurm.array varies options of a run, and a script has its own: submit it once for each")
    else:
        configs = [_placed(script, argv, options)]
    first = configs[0]
    path = Path(first.output_dir) if first.output_dir is not None else default_path(first.name)
    goes_on = first.resume == "auto" and RunFolder(path.absolute()).config_yaml.exists()
    if goes_on and options.array:
        raise ConfigError("--resume auto goes on with one run: leave --slurm.array out, and name the run's own folder")
    if goes_on:
        configs, preparations = _continued(RunFolder(path.absolute()), configs[0])
    else:
        check_free(path)
        if path.exists() and any(path.iterdir()):
            raise ConfigError(f"--output-dir {path} is not empty: give a new folder")
        if script is None:
            say("preparing: building the model and scanning the data")
        preparations = _preparations(configs)
    tasks = sweep_tasks(values) if options.array else []
    top = path.absolute()
    batch = render(
        JobScript(
            name=options.name or path.name,
            folder=str(top),
            runs=tuple(str(top / task.folder) for task in tasks) or (str(top),),
            nodes=first.nodes or 1,
            directory=first.directory if isinstance(first, ScriptConfig) else os.getcwd(),
            python=sys.executable,
            options=options,
        )
    )
    return Submission(path, tuple(configs), tuple(preparations), tuple(tasks), batch, options, goes_on)


def send(submission: Submission) -> str:
    """Write the folders and submit the script; the job's number. What Slurm refuses leaves everything as it was.

    Raises:
        SlurmError: Slurm says no, or would never start it. SlurmUnavailable: no answer.
    """
    written = _Written(submission)
    try:
        top = _write(submission)
        job_id = submit(str(top.path / _SCRIPT), note=say)
    except BaseException:
        written.undo()
        raise
    try:
        _note_job(submission, top, job_id)
        never = _never(job_id, submission)
    except BaseException:
        _withdraw(job_id, "it was submitted, and then something went wrong here")
        written.undo()
        raise
    if never is not None:
        _withdraw(job_id, f"the cluster can never run it ({never.name}): {never.words}")
        written.undo()
        raise SlurmError(f"the cluster can never run this job ({never.name}): {never.words}; it was removed")
    return job_id


class _Written:
    """What a submission writes, to be undone: the run folder is its own, others' folders beside it are not."""

    def __init__(self, submission: Submission) -> None:
        top = submission.path.absolute()
        self._top, self._goes_on, self._existed = top, submission.goes_on, top.exists()
        self._parents = [folder for folder in top.parents if not folder.exists()]
        names = (RunFolder(top).config_yaml, RunFolder(top).plan_json, job_path(RunFolder(top)), top / _SCRIPT)
        self._before = {file: file.read_bytes() if file.exists() else None for file in names}

    def undo(self) -> None:
        """Put everything back."""
        if self._goes_on:
            for file, data in self._before.items():
                if data is None:
                    file.unlink(missing_ok=True)
                else:
                    file.write_bytes(data)
            return
        shutil.rmtree(self._top, ignore_errors=True)
        if self._existed:  # it was empty
            self._top.mkdir()
        for folder in self._parents:
            with contextlib.suppress(OSError):  # somebody else has begun to use it
                folder.rmdir()


def _write(submission: Submission) -> RunFolder:
    """Write all that the job reads."""
    path, options = submission.path, submission.options
    top = RunFolder(path.absolute()) if submission.goes_on else create(path)
    for folder, config, preparation in zip(
        submission.folders, submission.configs, submission.preparations, strict=True
    ):
        folder.logs.mkdir(parents=True, exist_ok=True)
        write_plan(folder, config, preparation)
        before = read_job_file(folder).jobs
        write_job_file(folder, JobFile(before, options.stalled_restarts, asdict(options)))
    if submission.tasks:
        write_sweep(top.path, options.name or path.name, submission.tasks)
    write_text(top.path / _SCRIPT, submission.script)
    return top


def _note_job(submission: Submission, top: RunFolder, job_id: str) -> None:
    """Write which job it is."""
    options, now = submission.options, time.time()
    jobs = (*read_job_file(top).jobs, Submitted(job_id, now))
    write_job_file(top, JobFile(jobs, options.stalled_restarts, asdict(options)))
    for task in submission.tasks:
        own = (Submitted(f"{job_id}_{task.index}", now),)
        write_job_file(RunFolder(top.path / task.folder), JobFile(own, options.stalled_restarts, asdict(options)))


def _withdraw(job_id: str, why: str) -> None:
    """Remove a job that must not run.

    Raises:
        SlurmError: it could not be removed, so its folder stays.
    """
    try:
        cancel(job_id)
    except FlashLaunchError as error:
        raise SlurmError(f"job {job_id}: {why}; and it could not be removed ({error}): scancel {job_id}") from error


def _config(argv: Sequence[str], values: dict[str, str], options: SlurmOptions, usage: str) -> RunConfig:
    config = parse_run_options([*argv, *option_arguments(values)], usage)
    config.check()
    return _placed(config, argv, options)


def _placed(config: _Config, argv: Sequence[str], options: SlurmOptions) -> _Config:
    given = {word.partition("=")[0] for word in argv} & {"--hosts", "--hostfile"}
    if given and (config.hosts or config.hostfile):
        raise ConfigError("--hosts and --hostfile are for ssh; Slurm finds the nodes of a job: leave them out")
    config = config.replace(hosts=None, hostfile=None)  # of a file, as of a run that was started by ssh
    placement = place_on_cluster(config, options.gpus_per_node)
    return config.placed(placement.nodes, placement.procs_per_node, placement.accelerator)


def _preparations(configs: Sequence[AnyConfig]) -> list[Preparation]:
    known: dict[str, Preparation] = {}
    found = []
    for config in configs:
        same = {name: config.default(name) for name in _PLAN_FREE} if isinstance(config, RunConfig) else {}
        key = config.replace(**same).to_yaml()
        if key not in known:
            known[key] = prepared(config)
        found.append(known[key])
    return found


def _continued(folder: RunFolder, config: AnyConfig) -> tuple[list[AnyConfig], list[Preparation]]:
    config = continued(read_config(folder), config)
    if isinstance(config, RunConfig):
        say("preparing: checking the checkpoints")
    manifest = None
    if read_attempts(folder.attempts):
        continuation = find(folder, config)
        if continuation.finished:
            raise ConfigError(f"{folder.path}: {'. '.join(continuation.notes)}")
        manifest = continuation.manifest
    at = Store(folder.checkpoints).path(manifest.name) if manifest is not None else None
    return [config], [prepared(config, at)]


def _never(job_id: str, submission: Submission) -> Reason | None:
    """Look for a moment whether the job can ever start; the reason why not."""
    end = time.monotonic() + _LOOK_SECONDS
    never: Reason | None = None
    while time.monotonic() < end and (never is None or never.name in _VAGUE):
        try:
            jobs = show_jobs(job_id, retry_seconds=0)
        except FlashLaunchError:  # it is submitted; what becomes of it, status tells
            return None
        waiting = [job for job in jobs if job.state in ("PENDING", "CANCELLED")]
        never = next((reason for job in waiting if (reason := explain(job.reason)).never), None)
        if never is not None and never.name == "PartitionNodeLimit" and _would_fit(waiting[0], submission):
            return None
        if jobs and never is None and all(_settled(job) for job in jobs):
            return None
        time.sleep(0.3)
    return never


def _would_fit(job: Job, submission: Submission) -> bool:
    """Whether the partition is big enough, and only some of its nodes are down: Slurm has one word for both."""
    try:
        limits = [count_nodes(name) for name in job.partition.split(",") if name]
    except FlashLaunchError:
        return True
    return any(limit is not None and (submission.configs[0].nodes or 1) <= limit for limit in limits)


def _settled(job: Job) -> bool:
    return job.state != "PENDING" or job.reason not in ("None", "Dependency", "BeginTime")


def how_to_follow(path: Path) -> str:
    """The commands that follow a run, on one line."""
    quoted = shlex.quote(str(path))
    return f"flash-launch status {quoted}, flash-launch logs -f {quoted}, flash-launch cancel {quoted}"
