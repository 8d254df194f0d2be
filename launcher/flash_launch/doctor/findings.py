"""A finding of the doctor: one line, OK, WARN or FAIL, with the fix; and the order in which groups are told."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

__all__ = ["GROUPS", "Finding", "Status", "fail", "finding_from_json", "ok", "sort_findings", "warn"]

GROUPS = ("versions", "GPUs", "network", "folders", "limits", "environment", "W&B", "Slurm", "ranks", "nodes")
"""Groups of findings, in the order in which they are shown."""


class Status(StrEnum):
    """How a check ended."""

    OK = "OK"
    WARN = "WARN"
    FAIL = "FAIL"


@dataclass(frozen=True)
class Finding:
    """What one check found."""

    group: str
    """One of GROUPS."""
    status: Status
    """OK; WARN: a run works, slower or not everywhere; FAIL: a run would break."""
    text: str
    """What was found, in one sentence."""
    fix: str = ""
    """What to do about it; a command where there is one. Empty if OK."""
    node: str = ""
    """The nodes it was found on; empty: this machine, or all that were examined."""

    def to_json(self) -> dict[str, str]:
        """The finding as an object of strings."""
        return {
            "group": self.group,
            "status": str(self.status),
            "text": self.text,
            "fix": self.fix,
            "node": self.node,
        }


def finding_from_json(values: Mapping[str, object], node: str = "") -> Finding:
    """The finding in an object that `to_json` made.

    Raises:
        ValueError, KeyError: it is none.
    """
    texts = {name: str(values[name]) for name in ("group", "text", "fix")}
    return Finding(status=Status(str(values["status"])), node=node or str(values["node"]), **texts)


def ok(group: str, text: str) -> Finding:
    """A check that found nothing wrong."""
    return Finding(group, Status.OK, text)


def warn(group: str, text: str, fix: str) -> Finding:
    """A check that found what works, and can be better."""
    return Finding(group, Status.WARN, text, fix)


def fail(group: str, text: str, fix: str) -> Finding:
    """A check that found what would break a run."""
    return Finding(group, Status.FAIL, text, fix)


def sort_findings(findings: Iterable[Finding]) -> list[Finding]:
    """The findings by group; within a group they stay as they were found."""
    return sorted(findings, key=lambda finding: GROUPS.index(finding.group))
