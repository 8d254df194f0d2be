"""The Slurm allocation this process runs in, from the environment that Slurm gives it on a compute node."""

from collections.abc import Mapping
from dataclasses import dataclass

from flash_launch.cluster.hostlist import expand

__all__ = ["Allocation", "find_allocation"]

_FIRST_PORT = 12000
_PORTS = 16000
"""Below 28000: systems give out ports from 32768 on to whoever asks for any."""


_READ = ("SLURM_JOB_ID", "SLURM_JOB_NODELIST", "SLURM_NODELIST", "SLURM_STEP_ID", "SLURM_STEP_NUM_TASKS")


@dataclass(frozen=True)
class Allocation:
    """Nodes that Slurm has given."""

    job_id: str
    """The job; of a task of an array, its own."""
    nodes: tuple[str, ...]
    """Names, in Slurm's order: node 0 is the first."""
    gpus_per_node: int | None
    """GPUs on each; 0: none were asked for; None: the environment does not tell, as in salloc's own shell."""
    restarts: int = 0
    """How often the job was requeued."""
    array_job: str | None = None
    """The job of the whole array."""
    array_task: int | None = None
    """This task's number in it."""
    tasks_of_step: int = 0
    """How many tasks the step has that this process is in; 0: it is in none."""

    @property
    def own_id(self) -> str:
        """The job as Slurm's commands take it for this one alone: one task of an array has the number of them all."""
        return f"{self.array_job}_{self.array_task}" if self.array_job and self.array_task is not None else self.job_id

    def port(self, attempt: int) -> int:
        """Where the ranks meet: another one for each job, and for each attempt, whose forerunner may still listen."""
        return _FIRST_PORT + (int(self.job_id) + 997 * attempt) % _PORTS


def find_allocation(environment: Mapping[str, str]) -> Allocation | None:
    """The allocation this process is in; None outside of one."""
    job_id = environment.get("SLURM_JOB_ID", "")
    nodes = environment.get("SLURM_JOB_NODELIST") or environment.get("SLURM_NODELIST") or ""
    if not job_id.isdigit() or not nodes:
        return None
    task = environment.get("SLURM_ARRAY_TASK_ID", "")
    gpus = environment.get("SLURM_GPUS_ON_NODE") or environment.get("SLURM_GPUS_PER_NODE", "")
    on_node = "SLURMD_NODENAME" in environment  # Slurm has started this process there, and told it of its GPUs
    return Allocation(
        job_id,
        tuple(expand(nodes)),
        _count(gpus.rpartition(":")[2]) if gpus or on_node else None,
        _count(environment.get("SLURM_RESTART_COUNT", "")),
        environment.get("SLURM_ARRAY_JOB_ID"),
        int(task) if task.isdigit() else None,
        _tasks_of_step(environment),
    )


def left_behind(environment: Mapping[str, str]) -> str:
    """What to do where the variables are of a job that this shell is not in: they outlive it in copied environments."""
    names = [name for name in _READ if name in environment]
    return f"if this shell is in no Slurm job, its variables were left behind: unset {' '.join(names)}"


def _tasks_of_step(environment: Mapping[str, str]) -> int:
    step = environment.get("SLURM_STEP_ID", "")
    # numbers from 0xfffffff0 on are Slurm's own: of the batch script, of an interactive shell
    return _count(environment.get("SLURM_STEP_NUM_TASKS", "")) if step.isdigit() and int(step) < 0xFFFFFFF0 else 0


def _count(text: str) -> int:
    return int(text) if text.isdigit() else 0
