"""The options of `flash-launch doctor`, read and checked."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flash_launch.errors import ConfigError
from flash_launch.executors.hosts import Host, parse_hosts, read_hostfile
from flash_launch.option_parser import nearest

__all__ = ["HELP", "DoctorOptions", "read_doctor_options"]

HELP = """Checks what a run needs: versions, GPUs, network, folders, limits, variables, W&B, Slurm, and a tiny run of
two ranks. Each line is OK, WARN or FAIL with the fix. Exit code: 0 without a FAIL, else 1;
`flash-launch doctor || exit` can be a job's first step.
  --nodes N             nodes of the run; default: those that are named, those of the Slurm job, or 1
  --hosts A,B           check these machines, by ssh, and against each other
  --hostfile FILE       the same, with the names in a file, one per line
  --slurm               the run is to use Slurm: check it; inside of a job (salloc, sbatch), all of the job's nodes
  --output-dir FOLDER   where runs are to be written; default: runs
  --quick               without importing torch and without the tiny run: under a second
  --json                write the findings as JSON"""

_VALUES = {
    "--nodes": "a whole number from 1, for example --nodes 2",
    "--hosts": "names of machines, for example --hosts gpu1,me@gpu2:2222",
    "--hostfile": "a file with the name of a machine per line",
    "--output-dir": "a folder, for example --output-dir runs",
}
_FLAGS = ("--slurm", "--json", "--quick")


@dataclass(frozen=True)
class DoctorOptions:
    """What was asked for."""

    nodes: int | None = None
    """Nodes of the run; None: not said."""
    hosts: tuple[Host, ...] = ()
    """Machines to be checked by ssh."""
    slurm: bool = False
    """The run is to use Slurm."""
    json: bool = False
    """Write JSON."""
    quick: bool = False
    """Without torch."""
    output_dir: Path = Path("runs")
    """Where runs are to be written."""


def read_doctor_options(argv: Sequence[str]) -> DoctorOptions:
    """The options of a command line.

    Raises:
        ConfigError: an option that is unknown, wrong, missing its value, or contradicts another.
    """
    given: dict[str, str] = {}
    flags: set[str] = set()
    arguments = list(argv)
    while arguments:
        argument = arguments.pop(0)
        option, equals, value = argument.partition("=")
        option = option.replace("_", "-") if option.startswith("--") else option
        if not argument.startswith("-"):
            raise ConfigError(f"doctor was given {argument!r}: it takes options only, see flash-launch doctor --help")
        if option in _FLAGS:
            if equals:
                raise ConfigError(f"{option} takes no value, but was given {value!r}: leave it out")
            flags.add(option)
        elif option not in _VALUES:
            raise ConfigError(f"doctor has no option {option}{nearest(option, [*_VALUES, *_FLAGS])}")
        elif option in given:
            raise ConfigError(f"{option} was given twice: give it once")
        elif not value if equals else not arguments or arguments[0].startswith("--"):
            raise ConfigError(f"{option} has no value: give {_VALUES[option]}")
        else:
            given[option] = value if equals else arguments.pop(0)
    if "--hosts" in given and "--hostfile" in given:
        raise ConfigError("--hosts and --hostfile were both given: give one of them")
    nodes = _nodes(given.get("--nodes"))
    hosts = parse_hosts(given["--hosts"]) if "--hosts" in given else ()
    if "--hostfile" in given:
        hosts = read_hostfile(Path(given["--hostfile"]))
    if hosts and "--slurm" in flags:
        raise ConfigError(
            "--slurm and hosts were both given: nodes of a Slurm job are reached by Slurm, give one of them"
        )
    if hosts and nodes is not None and nodes > len(hosts):
        raise ConfigError(f"--nodes {nodes} was given, but {len(hosts)} hosts: name more, or leave --nodes out")
    return DoctorOptions(
        nodes=nodes,
        hosts=hosts[:nodes],
        slurm="--slurm" in flags,
        json="--json" in flags,
        quick="--quick" in flags,
        output_dir=Path(given.get("--output-dir", "runs")),
    )


def _nodes(text: str | None) -> int | None:
    if text is None:
        return None
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"--nodes was given {text}: it must be {_VALUES['--nodes']}")
    return int(text)
