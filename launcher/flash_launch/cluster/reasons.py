"""Why a job waits, in plain words, and whether it will ever start."""

from dataclasses import dataclass

__all__ = ["Reason", "explain"]


@dataclass(frozen=True)
class Reason:
    """Why a job pends."""

    name: str
    """Slurm's word."""
    words: str
    """What it means."""
    never: bool = False
    """Whether waiting does not help."""


_NEVER = {
    "PartitionNodeLimit": "it asks for more nodes than the partition has or allows, or than are up: ask for fewer with "
    "--nodes, or for another partition",
    "PartitionTimeLimit": "its time limit is longer than the partition allows: give a shorter --slurm.time, or another "
    "partition",
    "PartitionConfig": "the partition's configuration does not allow this job",
    "DependencyNeverSatisfied": "the job it was to wait for did not end as it should: its condition can never hold",
    "BadConstraints": "no node has what it asks for (--slurm.constraint, gpus, cpus, mem)",
    "InvalidAccount": "the account is not known here: give another --slurm.account",
    "InvalidQOS": "the quality of service is not known here: give another --slurm.qos",
    "AccountNotAllowed": "the account may not use this partition",
    "QOSNotAllowed": "this quality of service may not be used in the partition",
    "QOSTimeLimit": "the quality of service does not allow such a long --slurm.time",
    "QOSMaxWallDurationPerJobLimit": "the quality of service does not allow such a long --slurm.time",
    "AssocMaxWallDurationPerJobLimit": "your account does not allow such a long --slurm.time",
    "QOSMaxNodePerJobLimit": "the quality of service does not allow that many nodes in one job",
    "AssocMaxNodePerJobLimit": "your account does not allow that many nodes in one job",
    "QOSMaxGRESPerJob": "the quality of service does not allow that many GPUs in one job",
    "ReservationDeleted": "its reservation is gone",
}
_WAITING = {
    "None": "it has just come",
    "Priority": "other jobs are before it",
    "Resources": "it is next, and waits for nodes to become free",
    "Dependency": "it waits for another job",
    "BeginTime": "it was requeued and starts again in a moment",
    "JobHeldUser": "you hold it: scontrol release JOB",
    "JobHeldAdmin": "an administrator holds it",
    "JobArrayTaskLimit": "as many runs of the sweep as --slurm.array-limit allows are running",
    "ReqNodeNotAvail": "nodes that it needs are down, drained or reserved",
    "PartitionDown": "the partition is down",
    "PartitionInactive": "the partition is not active",
    "Reservation": "it waits for its reservation to begin",
    "Licenses": "it waits for licences",
    "Prolog": "the nodes are being prepared",
    "NodeDown": "a node that it needs is down",
    "Cleaning": "its last attempt is being cleared away",
    "launch failed requeued held": "it could not be started on a node, and is held: see the node's slurmd log, then "
    "scontrol release JOB",
    "job requeued in held state": "it was requeued and held: scontrol release JOB",
}
_ENDINGS = ("Grp", "MaxJobs", "MaxCpu", "MaxNode", "MaxGRES", "MaxMemory", "MaxTRES", "Resource")


def explain(reason: str) -> Reason:
    """Slurm's word for why a job pends, in plain words."""
    name = reason.strip("()").partition(",")[0].replace("_", " ").strip()
    name = name if name in _WAITING else reason.strip("()").partition(",")[0].strip()
    if name in _NEVER:
        return Reason(name, _NEVER[name], never=True)
    if name in _WAITING:
        return Reason(name, _WAITING[name])
    if name.startswith(("QOS", "Assoc")) and any(part in name for part in _ENDINGS):
        return Reason(name, "you, your group or its quality of service use all they may: it waits until less is used")
    return Reason(name, "see `man squeue`, JOB REASON CODES")
