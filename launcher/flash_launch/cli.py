"""The command `flash-launch`: its commands, one function each, and how their errors are told."""

import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from flash_launch import __version__
from flash_launch.config import RunConfig
from flash_launch.errors import ConfigError, FlashLaunchError, LaunchError
from flash_launch.executors.local import LaunchResult, run_local
from flash_launch.machine import Placement, place, visible_gpus
from flash_launch.option_parser import nearest, parse_run_options
from flash_launch.preparation import PREFLIGHT, prepare
from flash_launch.run_folder import RunFolder, check_free, create, default_path, read_json, write_json

__all__ = ["main"]

_WORKER = ("-m", "flash_launch.worker")

Command = Callable[[Sequence[str]], int]
_COMMANDS: dict[str, tuple[Command, str]] = {}


def command(name: str, usage: str) -> Callable[[Command], Command]:
    """Add a command: a function of its arguments that returns the exit code and raises FlashLaunchError."""

    def add(function: Command) -> Command:
        _COMMANDS[name] = (function, usage)
        return function

    return add


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code: 0, 1 a failed run, 2 a user fault, 130 and 143 signals."""
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
    path = Path(config.output_dir) if config.output_dir is not None else default_path(config.strategy)
    check_free(path)
    _say("preparing: building the model and scanning the data")
    preparation = prepare(config, PREFLIGHT)
    for message in preparation.messages:
        _say(message)
    folder = create(path)
    # Without its folder, so that `flash-launch --config RUN/config.yaml` makes a new one.
    folder.config_yaml.write_text(config.replace(output_dir=None).to_yaml(), encoding="utf-8")
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
        # what rank 0 writes to is a log; only here is it known whether a person watches
        environment={**os.environ, "FLASH_LAUNCH_WATCHED": str(int(sys.stdout.isatty()))},
    )
    _tell_end(folder, path, result)
    return result.exit_code


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


def _tell_end(folder: RunFolder, path: Path, result: LaunchResult) -> None:
    """The verdict or the summary on the console; a run that did not finish gets a status of its own."""
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
        _say(f"run folder: {path}")
        return
    metrics = summary.get("metrics")
    told = [f"{name} {value:.4g}" for name, value in metrics.items()] if isinstance(metrics, dict) else []
    _say(f"{summary.get('status', 'finished')} in {result.seconds:.1f} s{': ' * bool(told)}{', '.join(told)}")
    _say(f"run folder: {path}{', weights: ' + folder.weights.name if folder.weights.exists() else ''}")


def _say(text: str, *, error: bool = False) -> None:
    print(f"flash-launch: {text}", file=sys.stderr if error else sys.stdout, flush=True)
