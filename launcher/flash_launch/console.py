"""What the command says about itself: its commands with their usage, and the lines it prints."""

import sys

__all__ = ["COMMANDS", "say", "usage"]

COMMANDS = {
    "run": "[run] [options]        finetune; `run` may be left out",
    "script": "script [options] F.py ... run any script on every rank, as torchrun does; also -m MODULE",
    "resume": "resume RUN [options]   go on with a run that was stopped, or for more epochs",
    "submit": "submit [RUN] [options] run, sweep, or go on with a run, as a Slurm job; see submit --help",
    "cancel": "cancel RUN             end a run: it saves, and can go on",
    "status": "status RUN [--watch]   how a run or a sweep is doing, and what to do next",
    "logs": "logs RUN [-f]          show a rank's log, and follow it while it grows",
    "report": "report RUN             a page (HTML) and a picture of a run: curves, phases, restarts",
    "why": "why RUN                why it failed: which rank first, of what, and what to do",
    "export": "export RUN --to FILE   write the weights of a checkpoint as one file",
    "sync": "sync RUN ...           upload what was recorded offline to Weights & Biases",
    "plan": "plan [options]         show what would train when; start and write nothing",
    "templates": "templates [NAME]       list the setups, or show one",
    "doctor": "doctor [options]       check the machines of a run: GPUs, network, folders, Slurm, ...",
    "help": "--help                 show all options",
}
"""Usage by name. A command NAME is the function `main` of flash_launch/commands/NAME.py."""


def usage(*names: str) -> str:
    """The usage lines of some commands, or of all."""
    lines = [f"flash-launch {text}" for name, text in COMMANDS.items() if not names or name in names]
    return "\n       ".join(lines)


def say(text: str, *, error: bool = False) -> None:
    """Print one line of the launcher's own."""
    print(f"flash-launch: {text}", file=sys.stderr if error else sys.stdout, flush=True)
