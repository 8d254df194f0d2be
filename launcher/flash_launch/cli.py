"""The command `flash-launch`: its commands, one function each, and how their errors are told."""

import json
import os
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from flash_launch import __version__
from flash_launch.checkpoint.attempts import Attempt, Fence, begin
from flash_launch.checkpoint.manifest import Manifest
from flash_launch.checkpoint.store import Store
from flash_launch.config import RunConfig
from flash_launch.continuation import check_can_go_on, continued, find, trim_metrics
from flash_launch.errors import ConfigError, FencedError, FlashLaunchError, LaunchError
from flash_launch.executors.local import LaunchResult, run_local
from flash_launch.exporting import HELP as EXPORT_HELP
from flash_launch.exporting import find_export, read_export_options
from flash_launch.machine import Placement, place, visible_gpus
from flash_launch.option_parser import nearest, parse_run_options
from flash_launch.preparation import PREFLIGHT, Preparation, prepare
from flash_launch.run_folder import RunFolder, check_free, create, default_path, read_json, write_json, write_text

__all__ = ["main"]

_WORKER = ("-m", "flash_launch.worker")
STOPPED = 75
"""Exit code of a run that was asked to stop, has saved, and can go on: sysexits.h's EX_TEMPFAIL, "try again"."""
_RESUME_HELP = """RUN is a run folder. Its options are those of the run; these may be given anew:
  --checkpoint N      go on from the checkpoint of step N; default: the newest that is as it was written
  number and place of ranks, --setup, --max-epochs, --batch-size, --accumulate, checkpoint options, and what the
  strategy does in epochs that have not begun. A change of anything else is refused, with the reason."""

Command = Callable[[Sequence[str]], int]
_COMMANDS: dict[str, tuple[Command, str]] = {}


def command(name: str, usage: str) -> Callable[[Command], Command]:
    """Add a command: a function of its arguments that returns the exit code and raises FlashLaunchError."""

    def add(function: Command) -> Command:
        _COMMANDS[name] = (function, usage)
        return function

    return add


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code.

    0, 1 a failed run, 2 a user fault, 75 stopped and can go on, 130 and 143 ended by a signal.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = arguments.pop(0) if arguments and not arguments[0].startswith("-") else "run" if arguments else "help"
    try:
        if name not in _COMMANDS:
            raise ConfigError(f"unknown command {name!r}{nearest(name, list(_COMMANDS))}")
        return _COMMANDS[name][0](arguments)
    except FlashLaunchError as error:
        _say(f"error: {error}", error=True)
        return 1 if isinstance(error, LaunchError) else 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `flash-launch templates | head`: nobody reads any more, and Python must not flush again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


@command("run", "[run] [options]        finetune; `run` may be left out")
def run(argv: Sequence[str]) -> int:
    """Prepare, make the run folder, start the ranks, and tell how it ended."""
    if "--version" in argv:
        print(__version__)
        return 0
    config, placement = _read(argv)
    if config.resume == "auto":
        if config.output_dir is None:
            raise ConfigError("--resume auto needs --output-dir: the folder of the run to start or to go on with")
        if RunFolder(Path(config.output_dir).absolute()).config_yaml.exists():
            return _go_on(config, placement, Path(config.output_dir))
    path = Path(config.output_dir) if config.output_dir is not None else default_path(config.strategy)
    check_free(path)
    _say("preparing: building the model and scanning the data")
    preparation = prepare(config, PREFLIGHT)
    folder = create(path)
    return _launch(config, placement, preparation, folder, path, _begin(folder, config))


@command("resume", "resume RUN [options]   go on with a run that was stopped, or for more epochs")
def resume(argv: Sequence[str]) -> int:
    """Go on from a checkpoint of a run, with its options but for those that are given."""
    arguments = list(argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"usage: {_usage('resume')}\n\n{_RESUME_HELP}")
        return 0
    given = arguments.pop(0)
    path = Path(given)
    folder = RunFolder(path.absolute())
    if not folder.config_yaml.exists():
        raise ConfigError(f"resume was given {given}, which is no run folder: it has no {folder.config_yaml.name}")
    checkpoint: str | None = None
    if "--checkpoint" in arguments:
        at = arguments.index("--checkpoint")
        if at + 1 >= len(arguments):
            raise ConfigError("--checkpoint has no value: give the step of a checkpoint, for example --checkpoint 120")
        checkpoint = f"step_{arguments[at + 1].removeprefix('step_')}"
        del arguments[at : at + 2]
    if any(argument.partition("=")[0] in ("--output-dir", "--resume") for argument in arguments):
        raise ConfigError("resume RUN goes on in RUN: leave --output-dir and --resume out")
    config, placement = _read(["--config", str(folder.config_yaml), *arguments])
    return _go_on(config, placement, path, checkpoint)


@command("export", "export RUN --to FILE   write the weights of a checkpoint as one file")
def export(argv: Sequence[str]) -> int:
    """Write a checkpoint's weights as a file that other tools load."""
    if not argv or any(argument in ("-h", "--help") for argument in argv):
        print(f"usage: {_usage('export')}\n\n{EXPORT_HELP}")
        return 0
    options = read_export_options(argv)
    path = RunFolder(options.run).config_yaml
    config = RunConfig.from_yaml(path.read_text(encoding="utf-8"), str(path))
    _say("checking the checkpoint")
    store, found = find_export(options)
    from flash_launch.checkpoint.export import export_weights  # imports torch

    manifest, target = found.manifest, options.target
    done = export_weights(store, manifest, config, target, lightning=options.lightning, dtype=options.dtype)
    for note in (*found.notes, *done.notes):
        _say(note)
    size = f"{done.tensors:,} tensors, {done.bytes / 2**20:,.1f} MiB"
    _say(f"wrote {target}: {size}, of {manifest.name} ({manifest.position}), phase {manifest.phase}")
    return 0


@command("plan", "plan [options]         show what would train when; start and write nothing")
def plan(argv: Sequence[str]) -> int:
    """Run the preflight and print its phases."""
    config, placement = _read(argv)
    preparation = prepare(config, PREFLIGHT)
    ranks = placement.nodes * placement.procs_per_node
    print(f"{config.strategy} on {config.setup}, {ranks} rank{'s' * (ranks != 1)}, {config.max_epochs} epochs")
    for line in (*preparation.describe(), *preparation.messages):
        print(line)
    return 0


@command("templates", "templates [NAME]       list the setups, or show one")
def templates(argv: Sequence[str]) -> int:
    """List the setups that --setup takes, or print one's template."""
    from flash_launch.setups import load_setup, setup_names

    if any(argument in ("-h", "--help") for argument in argv):
        print(_usage("templates"))
        return 0
    if len(argv) > 1 or any(argument.startswith("-") for argument in argv):
        raise ConfigError(
            f"templates was given {' '.join(argv)}: it takes at most one name, of {', '.join(setup_names())}"
        )
    if argv:
        print(json.dumps(load_setup(argv[0]).template, indent=2, default=dict))
        return 0
    for name in setup_names():
        setup = load_setup(name)
        print(f"{name:<16}{'DDP' if setup.engine == 'ddp' else f'DeepSpeed, ZeRO stage {setup.stage}'}")
    return 0


@command("help", "--help                 show all options")
def show_help(_argv: Sequence[str]) -> int:
    """Show what `flash-launch --help` shows."""
    return run(["--help"])


def _go_on(config: RunConfig, placement: Placement, path: Path, checkpoint: str | None = None) -> int:
    """Go on with the run in a folder, from its newest checkpoint or the one that is named."""
    folder = RunFolder(path.absolute())
    old = RunConfig.from_yaml(folder.config_yaml.read_text(encoding="utf-8"), str(folder.config_yaml))
    check_can_go_on(folder)
    config = continued(old, config)
    _say("preparing: checking the checkpoints")
    continuation = find(folder, config, checkpoint)
    for note in continuation.notes:
        _say(note)
    if continuation.finished:
        _say(f"the run has finished its {config.max_epochs} epochs: give a larger --max-epochs to go on")
        return 0
    manifest = continuation.manifest
    store = Store(folder.checkpoints)
    preparation = prepare(config, PREFLIGHT, checkpoint=store.path(manifest.name) if manifest is not None else None)
    attempt = _begin(folder, config, manifest)
    store.sweep()
    trim_metrics(folder, manifest)
    folder.summary_json.unlink(missing_ok=True)
    folder.logs.mkdir(exist_ok=True)
    if manifest is not None:
        _say(
            f"attempt {attempt.number} goes on from {manifest.name} ({manifest.position}), phase {manifest.phase}, "
            f"saved by {manifest.world_size} rank{'s' * (manifest.world_size != 1)} on {manifest.setup}"
        )
    return _launch(config, placement, preparation, folder, path, attempt)


def _begin(folder: RunFolder, config: RunConfig, manifest: Manifest | None = None) -> Attempt:
    try:
        return begin(
            folder.attempts,
            resumed_from=manifest.name if manifest is not None else None,
            resumed_step=manifest.position.step if manifest is not None else 0,
            config={name: list(value) if isinstance(value, tuple) else value for name, value in vars(config).items()},
        )
    except OSError as error:
        raise ConfigError(f"{folder.attempts} cannot be written to: {error.strerror}") from error


def _launch(
    config: RunConfig,
    placement: Placement,
    preparation: Preparation,
    folder: RunFolder,
    path: Path,
    attempt: Attempt,
) -> int:
    """Start the ranks in a run folder, and tell how it ended; the exit code."""
    for message in preparation.messages:
        _say(message)
    # Without its folder, so that `flash-launch --config RUN/config.yaml` makes a new one.
    write_text(folder.config_yaml, config.replace(output_dir=None, resume="never").to_yaml())
    write_json(folder.plan_json, preparation.plan)
    for line in preparation.describe():
        _say(line)
    _say(placement.describe())
    _say(f"run folder: {path}")
    result = run_local(
        folder,
        nodes=placement.nodes,
        procs_per_node=placement.procs_per_node,
        worker=_WORKER,
        gpus=placement.gpus,
        stop_seconds=config.timeout,
        environment={
            **os.environ,
            # what rank 0 writes to is a log; only here is it known whether a person watches
            "FLASH_LAUNCH_WATCHED": str(int(sys.stdout.isatty())),
            "FLASH_LAUNCH_ATTEMPT": str(attempt.number),
        },
    )
    return _tell_end(folder, path, result, Fence(folder.attempts, attempt.number))


def _read(argv: Sequence[str]) -> tuple[RunConfig, Placement]:
    """The configuration that was asked for, checked and resolved, and where it runs."""
    config = parse_run_options(argv, _usage())
    config.check()
    placement = place(config, () if config.accelerator == "cpu" else visible_gpus())
    resolved = config.replace(
        procs_per_node=placement.procs_per_node, accelerator=placement.accelerator, setup=config.setup_name
    )
    return resolved, placement


def _usage(*names: str) -> str:
    lines = [f"flash-launch {usage}" for name, (_, usage) in _COMMANDS.items() if not names or name in names]
    return "\n       ".join(lines)


def _tell_end(folder: RunFolder, path: Path, result: LaunchResult, fence: Fence) -> int:
    """The verdict or the summary on the console, and the exit code; a run that failed gets a status of its own."""
    try:
        fence.check()
    except FencedError as error:
        _say(f"stopped after {result.seconds:.1f} s: {error}", error=True)
        return 1
    summary: dict[str, object] = {}
    if folder.summary_json.exists() and isinstance(read := read_json(folder.summary_json), dict):
        summary = read
    if result.exit_code != 0:
        stopped = result.exit_code > 128
        why = f"by {signal.Signals(result.exit_code - 128).name}" if stopped else "nobody told why: see the logs"
        if result.verdict is not None:
            why = result.verdict.render()
        write_json(folder.summary_json, {**summary, "status": "stopped" if stopped else "failed", "verdict": why})
        _say(f"{'stopped' if stopped else 'failed'} after {result.seconds:.1f} s: {why}", error=not stopped)
        _say(f"run folder: {path}{_how_to_go_on(folder, path)}")
        return result.exit_code
    if summary.get("status") == "stopped":
        saved = summary.get("checkpoint")
        told = f"saved {saved}" if saved else "nothing was saved, --checkpoint-every is 0"
        _say(f"stopped after {result.seconds:.1f} s at step {summary.get('steps')}: {told}")
        _say(f"run folder: {path}{_how_to_go_on(folder, path)}")
        return STOPPED if saved else 128 + signal.SIGTERM
    metrics = summary.get("metrics")
    values = [f"{name} {value:.4g}" for name, value in metrics.items()] if isinstance(metrics, dict) else []
    _say(f"{summary.get('status', 'finished')} in {result.seconds:.1f} s{': ' * bool(values)}{', '.join(values)}")
    _say(f"run folder: {path}{', weights: ' + folder.weights.name if folder.weights.exists() else ''}")
    return 0


def _how_to_go_on(folder: RunFolder, path: Path) -> str:
    names = Store(folder.checkpoints).names()
    return f", go on from {names[0]} with: flash-launch resume {shlex.quote(str(path))}" if names else ""


def _say(text: str, *, error: bool = False) -> None:
    print(f"flash-launch: {text}", file=sys.stderr if error else sys.stdout, flush=True)
