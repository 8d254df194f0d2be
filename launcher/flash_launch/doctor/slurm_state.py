"""Slurm as it is now: its commands, its controller, and whether its partitions have enough nodes that work."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass

from flash_launch.cluster.allocation import find_allocation
from flash_launch.doctor.asking import Answer, ask
from flash_launch.doctor.findings import Finding, fail, ok, warn

__all__ = ["Partition", "SlurmFacts", "check_slurm", "gather_slurm", "read_partitions"]

_GROUP = "Slurm"
_SECONDS = 5.0
_FORM = "%P|%a|%l|%T|%D"
_WORKING = ("idle", "mixed", "allocated", "completing", "allocated+", "planned")


@dataclass(frozen=True)
class Partition:
    """One partition."""

    name: str
    """Without the star that marks the default one."""
    up: bool
    """Whether it takes jobs."""
    default: bool
    """Whether jobs that name none go there."""
    limit: str
    """Longest time of a job."""
    nodes: Mapping[str, int]
    """How many nodes are in each state."""

    @property
    def working(self) -> int:
        """Nodes that run jobs or could."""
        return sum(count for state, count in self.nodes.items() if state.rstrip("*~#!%$@^-+") in _WORKING)

    @property
    def all(self) -> int:
        """All of its nodes."""
        return sum(self.nodes.values())


@dataclass(frozen=True)
class SlurmFacts:
    """What there is to say about Slurm."""

    missing: tuple[str, ...] = ()
    """Commands of sinfo, sbatch, srun, squeue and scontrol that are not in PATH."""
    problem: str = ""
    """Why the controller did not answer; empty: it did, or was not asked."""
    partitions: tuple[Partition, ...] = ()
    """As sinfo lists them."""
    job: str = ""
    """The id of the job that this is part of; empty: of none."""
    job_nodes: tuple[str, ...] = ()
    """The nodes of that job."""


def check_slurm(facts: SlurmFacts, *, asked: bool, nodes: int) -> list[Finding]:
    """All findings about Slurm; none where there is no Slurm and nobody asked for it.

    Args:
        asked: whether --slurm was given, or this is part of a job.
        nodes: how many nodes the run is to use.
    """
    if "sinfo" in facts.missing and "sbatch" in facts.missing:
        fix = "run this on the cluster's login node, or load its Slurm module (module load slurm)"
        return [fail(_GROUP, "Slurm's commands are not in PATH", fix)] if asked else []
    found = []
    if facts.missing:
        level = fail if asked else warn
        text = f"Slurm's {', '.join(facts.missing)} {'is' if len(facts.missing) == 1 else 'are'} not in PATH"
        found.append(level(_GROUP, text, "install slurm-client, or load the cluster's Slurm module"))
    if facts.job:
        told = f"part of job {facts.job} on {len(facts.job_nodes)} node{'s' * (len(facts.job_nodes) != 1)}"
        found.append(ok(_GROUP, f"{told}: {', '.join(facts.job_nodes[:8])}{', ...' * (len(facts.job_nodes) > 8)}"))
    if facts.problem:
        level = fail if asked and not facts.job else warn  # a job that runs needs no controller
        if "configuration source" in facts.problem:
            text = "Slurm's commands are here, but no slurm.conf that names a cluster"
            if not asked:
                return [*found, ok(_GROUP, f"{text}: runs stay on this machine")]
            return [*found, level(_GROUP, text, "run this on the cluster's login node, or set SLURM_CONF to its file")]
        fix = "try again in a minute (scontrol ping); if it stays so, tell the administrator"
        return [*found, level(_GROUP, f"the controller does not answer: {facts.problem}", fix)]
    if "sinfo" in facts.missing:
        return found
    return [*found, *_partitions(facts, asked=asked, nodes=nodes)]


def _partitions(facts: SlurmFacts, *, asked: bool, nodes: int) -> list[Finding]:
    level = fail if asked and not facts.job else warn
    if not facts.partitions:
        return [level(_GROUP, "the controller answers, but you may use no partition", "ask for an account (sacctmgr)")]
    told = ", ".join(
        f"{one.name}{'*' * one.default} {one.working} of {one.all} nodes" + (", down" if not one.up else "")
        for one in facts.partitions
    )
    up = [one for one in facts.partitions if one.up and one.working]
    reason = "sinfo -R says why; take another partition (--slurm.partition), or tell the administrator"
    if not up:
        return [level(_GROUP, f"no partition can run a job now ({told})", reason)]
    if not facts.job and nodes > max(one.all for one in up):
        largest = max(up, key=lambda one: one.all)
        text = f"{nodes} nodes were asked for, but the largest partition, {largest.name}, has {largest.all}"
        return [level(_GROUP, text, f"ask for at most {largest.all}: --nodes {largest.all}")]
    if not facts.job and nodes > max(one.working for one in up):
        text = f"{nodes} nodes were asked for, and no partition has so many that work now ({told})"
        return [warn(_GROUP, text, reason)]
    dead = [one.name for one in facts.partitions if one.up and not one.working]
    if dead:
        text = f"the controller answers; no node of {', '.join(dead)} works ({told})"
        return [warn(_GROUP, text, "sinfo -R says why")]
    return [ok(_GROUP, f"the controller answers; partitions: {told}")]


def gather_slurm(environment: Mapping[str, str]) -> SlurmFacts:
    """The facts, as this machine sees them; the controller is given five seconds."""
    path = environment.get("PATH")
    commands = ("sinfo", "sbatch", "srun", "squeue", "scontrol")
    missing = tuple(name for name in commands if shutil.which(name, path=path) is None)
    allocation = find_allocation(environment)
    job, nodes = (allocation.job_id, allocation.nodes) if allocation is not None else ("", ())
    if "sinfo" in missing:
        return SlurmFacts(missing, job=job, job_nodes=nodes)
    answer = ask(["sinfo", "-h", "-o", _FORM], timeout=_SECONDS)
    if answer.code != 0:
        said = [line for line in answer.err.splitlines() if line.strip()]
        problem = answer.problem or (said[-1].strip() if said else f"sinfo ended with {answer.code}")
        return SlurmFacts(missing, problem.removeprefix("slurm_load_partitions: "), job=job, job_nodes=nodes)
    return SlurmFacts(missing, "", read_partitions(answer), job, nodes)


def read_partitions(answer: Answer) -> tuple[Partition, ...]:
    """What sinfo says, a line per partition and state of nodes."""
    found: dict[str, Partition] = {}
    for line in answer.out.splitlines():
        cells = line.strip().split("|")
        if len(cells) != 5 or not cells[4].isdecimal():
            continue
        name = cells[0].rstrip("*")
        old = found.get(name)
        nodes = dict(old.nodes) if old is not None else {}
        if int(cells[4]):
            nodes[cells[3].lower()] = nodes.get(cells[3].lower(), 0) + int(cells[4])
        found[name] = Partition(name, cells[1] == "up", cells[0].endswith("*"), cells[2], nodes)
    return tuple(found.values())
