"""Whether nodes run different versions of what must be the same, and what that does to a verdict."""

from collections.abc import Sequence
from dataclasses import replace

from flash_launch.verdict.facts import AgentEnd
from flash_launch.verdict.told import Kind, Verdict

__all__ = ["mismatch", "with_versions"]

_LIKELY = (Kind.EXCEPTION, Kind.IMPORT_ERROR, Kind.HANG, Kind.CRASH, Kind.EXITED)
"""Failures that another version on one node may well be the cause of; the others stand for themselves."""


def mismatch(agents: Sequence[AgentEnd]) -> tuple[str, ...]:
    """One line per package that is not the same on all nodes."""
    told = [end for end in agents if end.versions]
    lines: list[str] = []
    for package in sorted({name for end in told for name in end.versions}):
        places: dict[str, list[str]] = {}
        for end in told:
            where = f"node {end.node}{f' ({end.host})' if end.host else ''}"
            version = end.versions.get(package, "missing")
            if package == "python":  # 3.11.4 and 3.11.6 go together
                version = ".".join(version.split(".")[:2])
            places.setdefault(version, []).append(where)
        if len(places) > 1:
            rarest = sorted(places.items(), key=lambda item: len(item[1]))
            lines.append(f"{package} is " + ", ".join(f"{version} on {_some(on)}" for version, on in rarest))
    return tuple(lines)


def with_versions(verdict: Verdict, differences: Sequence[str]) -> Verdict:
    """The verdict of a launch whose nodes differ."""
    text = "; ".join(differences)
    if verdict.kind not in _LIKELY:
        return replace(verdict, also=(*verdict.also, f"besides, the nodes differ: {text}"))
    return replace(
        verdict,
        kind=Kind.WRONG_VERSION,
        transient=False,
        detail="\n".join(filter(None, (f"the nodes run different versions: {text}", verdict.detail))),
        advice="install the same versions on all nodes, or use one environment that all nodes see, then start again"
        + (f". If that is not it: {verdict.advice}" if verdict.advice else ""),
    )


def _some(places: Sequence[str]) -> str:
    return ", ".join(places) if len(places) <= 3 else f"{len(places)} nodes, {places[0]} first"
