"""Nodes against each other: versions, code, GPUs, clocks, the shared folder, and who reaches whom. Pure."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from flash_launch.doctor.findings import Finding, Status, fail, ok, warn
from flash_launch.doctor.probe import NodeFacts

__all__ = [
    "ClockWindow",
    "check_clocks",
    "check_equal",
    "check_meeting",
    "check_shared_folder",
    "check_unanswered",
    "merge_findings",
]

_GROUP = "nodes"
_WARN_SECONDS, _FAIL_SECONDS = 2.0, 60.0


@dataclass(frozen=True)
class ClockWindow:
    """How far a node's clock can be ahead of the caller's: what was seen around one answer."""

    least: float
    """Seconds; negative: behind."""
    most: float
    """Seconds."""

    @property
    def surely_off(self) -> float:
        """By how much it differs at least."""
        return max(0.0, self.least, -self.most)

    def within(self, other: "ClockWindow") -> "ClockWindow":
        """What both answers say."""
        least, most = max(self.least, other.least), min(self.most, other.most)
        return ClockWindow(least, most) if least <= most else self


def check_equal(nodes: Mapping[str, NodeFacts], caller: NodeFacts | None) -> list[Finding]:
    """Whether all nodes have what must be equal, or should.

    Args:
        nodes: by the name under which the caller knows a node.
        caller: the machine that the command is run on, whose code and packages must be the same; None: one of `nodes`.
    """
    found = []
    code = {name: facts.code for name, facts in nodes.items()} | ({"here": caller.code} if caller else {})
    if len(set(code.values())) > 1:
        text = f"the code of flash-launch differs: {_told(code)}"
        found.append(fail(_GROUP, text, "install the same version on all nodes, or use one shared folder"))
    everyone = {**nodes, **({"here": caller} if caller else {})}
    for package in sorted({name for facts in everyone.values() for name in facts.packages}):
        versions = {name: facts.packages.get(package, "not installed") for name, facts in everyone.items()}
        if len(set(versions.values())) == 1:
            continue
        if package == "flash-launch" and len(set(code.values())) > 1:
            continue  # told above
        text = f"{package} differs: {_told(versions)}"
        if package == "python" and len({version.rsplit(".", 1)[0] for version in versions.values()}) == 1:
            found.append(warn(_GROUP, text, "use the same Python on all nodes"))
        else:
            fix = "install the same versions on all nodes (pip freeze > r.txt here, pip install -r r.txt there)"
            found.append(fail(_GROUP, text, fix))
    if not found:
        found.append(ok(_GROUP, f"the same code and packages on all {len(nodes)} nodes"))
    return [*found, *_hardware(nodes)]


def _hardware(nodes: Mapping[str, NodeFacts]) -> list[Finding]:
    found = []
    counts = {name: len(facts.gpus) for name, facts in nodes.items()}
    if len(set(counts.values())) > 1:
        fewest = min(counts.values())
        text = f"the number of GPUs differs: {_told({name: str(count) for name, count in counts.items()})}"
        fix = f"--procs-per-node {fewest}" if fewest else "leave out the nodes without GPUs, or --accelerator cpu"
        found.append((warn if fewest else fail)(_GROUP, text, fix))
    models = {name: ", ".join(sorted(set(facts.gpus))) for name, facts in nodes.items() if facts.gpus}
    if len(set(models.values())) > 1:
        text = f"the GPUs differ: {_told(models)}"
        fix = "take equal nodes (--slurm.constraint): the slowest and the smallest decides for all ranks"
        found.append(warn(_GROUP, text, fix))
    for what, values, fix in (
        (
            "the NVIDIA driver",
            {name: facts.driver or "none" for name, facts in nodes.items()},
            "ask the administrator for the same driver on all nodes",
        ),
        (
            "the C library (glibc)",
            {name: facts.glibc for name, facts in nodes.items()},
            "use the same image on all nodes: what one node builds may not run on another",
        ),
        (
            "the kernel",
            {name: facts.kernel for name, facts in nodes.items()},
            "nothing to do if the rest works; the same image on all nodes is better",
        ),
    ):
        if len(set(values.values())) > 1:
            found.append(warn(_GROUP, f"{what} differs: {_told(values)}", fix))
    return found or [ok(_GROUP, f"the same GPUs, driver, kernel and C library on all {len(nodes)} nodes")]


def check_clocks(windows: Mapping[str, ClockWindow]) -> list[Finding]:
    """Whether the clocks agree; logs and checkpoints are put in order by them."""
    off = {name: window.surely_off for name, window in windows.items() if window.surely_off > _WARN_SECONDS}
    fix = "chronyc makestep, or systemctl restart systemd-timesyncd (by the administrator)"
    found = []
    for name, seconds in off.items():
        way = "ahead of" if windows[name].least > 0 else "behind"
        text = f"the clock of {name} is {seconds:,.0f} s {way} this machine's"
        found.append((fail if seconds > _FAIL_SECONDS else warn)(_GROUP, text, fix))
    if found or not windows:
        return found
    return [ok(_GROUP, f"no clock is seen to differ by more than {_WARN_SECONDS:g} s")]


def check_shared_folder(nodes: Mapping[str, NodeFacts], folder: str, problem: str = "") -> list[Finding]:
    """Whether all nodes see a file that the caller wrote into the output folder.

    Args:
        problem: why the caller could not write one; empty: it did.
    """
    if problem:
        text = f"whether all nodes share {folder} could not be tried, no file could be written there: {problem}"
        return [
            fail(_GROUP, text, "give a folder that can be written to here, and that all nodes share (--output-dir)")
        ]
    blind = [name for name, facts in nodes.items() if facts.sees_token is False]
    if blind:
        text = f"{', '.join(blind)} {'does' if len(blind) == 1 else 'do'} not see what is written to {folder} here"
        fix = "give a folder on a file system that all nodes share (NFS, Lustre, ...) by --output-dir"
        return [fail(_GROUP, text, fix)]
    return [ok(_GROUP, f"all {len(nodes)} nodes see the folder {folder}")]


def check_meeting(results: Mapping[str, Mapping[str, str]]) -> list[Finding]:
    """Whether every node reached every other one.

    Args:
        results: by node, and by the other node: "" or why it was not reached.
    """
    bad = [(one, other, why) for one, others in results.items() for other, why in others.items() if why]
    if not bad:
        return [ok(_GROUP, f"all {len(results)} nodes reach each other's ports")] if len(results) > 1 else []
    fix = (
        "let TCP through between the nodes, on all ports above 1023 (NCCL and gloo choose theirs), or name the right "
        "interface by NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME"
    )
    found = [fail(_GROUP, f"{one} does not reach {other}: {why}", fix) for one, other, why in bad[:6]]
    if len(bad) > 6:
        found.append(fail(_GROUP, f"and {len(bad) - 6} more pairs of nodes do not reach each other", fix))
    return found


def check_unanswered(problems: Mapping[str, tuple[str, str]]) -> list[Finding]:
    """A finding for each node on which the checks did not run: what was wrong, and the fix."""
    return [fail(_GROUP, problem, fix) for problem, fix in problems.values()]


def merge_findings(findings: Mapping[str, list[Finding]], hosts: Mapping[str, str]) -> list[Finding]:
    """The findings of all nodes; what all of them found is told once, without a node.

    Of what is OK everywhere and differs by its numbers and by the machine's name only, the first node's is told.

    Args:
        hosts: each node's own name for itself.
    """
    merged: dict[tuple[str, Status, str, str], dict[str, Finding]] = {}
    for node, own in findings.items():
        for finding in own:
            text = finding.text
            if finding.status is Status.OK:
                names = "|".join(re.escape(name) for name in (hosts[node], node))
                text = re.sub(rf"(?<![\w.-])({names})(?![\w-])|[\d.,:]+", "#", text)
            merged.setdefault((finding.group, finding.status, text, finding.fix), {})[node] = finding
    told = []
    for by_node in merged.values():
        first = next(iter(by_node.values()))
        where = ", ".join(by_node)
        if len(by_node) == len(findings):
            alike = len({finding.text for finding in by_node.values()}) == 1
            where = "" if alike else f"{next(iter(by_node))}, others alike"
        told.append(replace(first, node=where))
    return told


def _told(values: Mapping[str, str]) -> str:
    """Values with the nodes that have them, the rarest first: it is most likely the one that is wrong."""
    by_value: dict[str, list[str]] = {}
    for name, value in values.items():
        by_value.setdefault(value, []).append(name)
    parts = [
        f"{value} on {', '.join(names[:4])}{f' and {len(names) - 4} more' * (len(names) > 4)}"
        for value, names in sorted(by_value.items(), key=lambda entry: len(entry[1]))
    ]
    return "; ".join(parts)
