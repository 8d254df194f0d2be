"""The batch script of a run or a sweep: pure text, from the template in slurm/job.sh."""

import importlib.resources
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from flash_launch.cluster.options import SlurmOptions

__all__ = ["JobScript", "render"]


@dataclass(frozen=True)
class JobScript:
    """What a script is made from."""

    name: str
    """The job's name."""
    folder: str
    """Absolute path of the run folder, or of the sweep's, where the job's own output goes."""
    runs: tuple[str, ...]
    """Absolute paths of the run folders; more than one for a sweep."""
    nodes: int
    """Nodes of each run."""
    directory: str
    """Absolute path of the folder the ranks work in, where modules of the user's own are found."""
    python: str
    """The Python that runs them."""
    options: SlurmOptions
    """What is asked of Slurm."""


def render(job: JobScript) -> str:
    """The script. Every value is quoted for the one who reads it: sbatch its #SBATCH lines, bash the rest."""
    template = importlib.resources.files("flash_launch.slurm").joinpath("job.sh").read_text(encoding="utf-8")
    sweep = bool(job.options.array)
    parts = {
        "sbatch": "\n".join(f"#SBATCH {line}" for line in _sbatch_lines(job)),
        "directory": shlex.quote(job.directory),
        "setup": "\n".join(job.options.setup),
        "python": " ".join([*([job.options.prefix] if job.options.prefix else []), shlex.quote(job.python)]),
        "run": _array(job.runs) if sweep else f"run={shlex.quote(job.runs[0])}",
        "srun": "".join(f" {shlex.quote(option)}" for option in job.options.srun),
        "sweep": f"export FLASH_LAUNCH_ARRAY={shlex.quote(job.name)}" if sweep else "",
    }
    # in one pass, so that marks within values stay what they are; a line that is left empty goes
    marks = "|".join(parts)
    return re.sub(
        rf"^@({marks})@\n|@({marks})@",
        lambda mark: f"{parts[mark[1]]}\n" * bool(parts[mark[1]]) if mark[1] else parts[mark[2]],
        template,
        flags=re.MULTILINE,
    )


def _array(runs: Sequence[str]) -> str:
    lines = "\n".join(f"    {shlex.quote(run)}" for run in runs)
    return f"runs=(\n{lines}\n)\nrun=${{runs[$SLURM_ARRAY_TASK_ID]}}"


def _sbatch_lines(job: JobScript) -> list[str]:
    options = job.options
    number = "%A_%a" if options.array else "%j"
    output = f"{job.folder.replace('%', '%%')}/logs/slurm-{number}.out"
    values: dict[str, object] = {
        "job-name": job.name,
        "nodes": job.nodes,
        "ntasks-per-node": 1,
        "partition": options.partition,
        "account": options.account,
        "qos": options.qos,
        "time": options.time,
        "gpus-per-node": options.gpus_per_node,
        "cpus-per-task": options.cpus_per_task,
        "mem": options.mem,
        "constraint": options.constraint,
        "exclude": options.exclude,
        "reservation": options.reservation,
        "dependency": options.dependency,
        "output": output,
        "open-mode": "append",
        "signal": f"USR1@{options.warning}",
    }
    if options.array:
        limit = f"%{options.array_limit}" if options.array_limit is not None else ""
        values["array"] = f"0-{len(job.runs) - 1}{limit}"
    lines = [f"--{name}={_sbatch_quote(str(value))}" for name, value in values.items() if value is not None]
    return [*lines, "--requeue", "--kill-on-invalid-dep=yes", *map(_extra, options.extra)]


def _extra(option: str) -> str:
    name, equals, value = option.partition("=")
    return f"{name}={_sbatch_quote(value)}" if equals else option


def _sbatch_quote(value: str) -> str:
    """A value as sbatch reads it from a #SBATCH line: words end at blanks, quotes and backslashes as in a shell."""
    return value if value.replace("/", "").replace("-", "").replace("_", "").isalnum() else shlex.quote(value)
