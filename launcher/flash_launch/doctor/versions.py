"""Versions that fit each other: our bounds, torchvision's own need of torch, and the versions we were read against."""

import ast
import hashlib
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import metadata, util
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from flash_launch.doctor.findings import Finding, fail, ok, warn

__all__ = [
    "PACKAGES",
    "PackageFacts",
    "check_bounds",
    "check_pairing",
    "check_private_parts",
    "check_versions",
    "code_digest",
    "gather_packages",
    "package_folder",
]

PACKAGES = ("torch", "torchvision", "deepspeed", "pytorch-lightning", "accelerate", "wandb", "numpy", "safetensors")
"""Packages whose versions are told, and must be equal on all nodes."""

_OPTIONAL = ("accelerate", "wandb")
_PRIVATE = {
    "deepspeed": "deepspeed_private.py",
    "pytorch-lightning": "lightning/private.py",
}
_GROUP = "versions"


@dataclass(frozen=True)
class PackageFacts:
    """What is installed, and what is asked of it."""

    python: str
    """Python's version."""
    ours: str | None
    """flash-launch's version; None: it runs from a folder of sources and is not installed."""
    python_bound: str = ""
    """What flash-launch asks of Python, as a specifier."""
    installed: Mapping[str, str] = field(default_factory=dict)
    """Version by name, of all packages that are there."""
    bounds: Mapping[str, str] = field(default_factory=dict)
    """What flash-launch asks, as a specifier by name."""
    optional: tuple[str, ...] = ()
    """Names in `bounds` that need not be there."""
    torchvision_needs: str | None = None
    """What torchvision asks of torch, as a specifier; None: not known."""
    read_against: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Versions whose private parts were read, by name."""


def check_versions(facts: PackageFacts) -> list[Finding]:
    """All findings about versions."""
    return [*check_bounds(facts), *check_pairing(facts), *check_private_parts(facts)]


def check_bounds(facts: PackageFacts) -> list[Finding]:
    """Whether each package is there, in a version that flash-launch asks for."""
    found: list[Finding] = []
    if facts.ours is None:
        found.append(
            warn(
                _GROUP,
                "flash-launch is not installed here, it runs from its sources: what it needs is not known",
                "pip install -e . in flash-launch's folder",
            )
        )
    if not _fits(facts.python, facts.python_bound):
        found.append(
            fail(
                _GROUP,
                f"Python {facts.python} does not fit {facts.python_bound}",
                f"make a virtual environment with a Python {facts.python_bound}",
            )
        )
    for name, bound in facts.bounds.items():
        version = facts.installed.get(name)
        if version is None and name not in facts.optional:
            found.append(fail(_GROUP, f"{name} is not installed", f"pip install '{name}{bound}'"))
        elif version is not None and not _fits(version, bound):
            text = f"{name} {version} does not fit {bound}, which flash-launch needs"
            found.append(fail(_GROUP, text, f"pip install '{name}{bound}'"))
    if not any(finding.fix for finding in found):
        told = ", ".join(f"{name} {facts.installed[name]}" for name in PACKAGES if name in facts.installed)
        found.insert(0, ok(_GROUP, f"flash-launch {facts.ours}, Python {facts.python}, {told}"))
    return found


def check_pairing(facts: PackageFacts) -> list[Finding]:
    """Whether torchvision was built for this torch, by what it says itself."""
    torch, vision = facts.installed.get("torch"), facts.installed.get("torchvision")
    if torch is None or vision is None:
        return []  # told by check_bounds
    needs = facts.torchvision_needs
    if needs is None:
        text = f"torchvision {vision} does not say which torch it was built for"
        return [warn(_GROUP, text, "install torch and torchvision by one command, pip install torch torchvision")]
    if not _fits(torch, needs):
        text = f"torchvision {vision} was built for torch {needs}, but torch {torch} is installed"
        fix = f"pip install --upgrade 'torch{needs}' torchvision, or the torchvision of torch {torch}"
        return [fail(_GROUP, text, fix)]
    return [ok(_GROUP, f"torchvision {vision} fits torch {torch} (it needs {needs or 'any'})")]


def check_private_parts(facts: PackageFacts) -> list[Finding]:
    """Whether the libraries whose private parts transitions use are in a version that was read."""
    found: list[Finding] = []
    good: list[str] = []
    for name, versions in facts.read_against.items():
        version = facts.installed.get(name)
        if version is None:
            continue  # told by check_bounds
        if _base(version) not in versions:
            text = f"transitions use private parts of {name} that were read at {', '.join(versions)}; {version} is here"
            found.append(fail(_GROUP, text, f"pip install {name}=={versions[-1]}"))
        else:
            good.append(f"{name} {version}")
    if good:
        found.append(ok(_GROUP, f"private parts were read at these versions: {', '.join(good)}"))
    return found


def gather_packages() -> PackageFacts:
    """The facts of this machine; imports none of the packages."""
    installed: dict[str, str] = {
        canonicalize_name(name): found.version for found in metadata.distributions() if (name := _name_of(found))
    }
    # The first one on the path is the one that is imported; a second one further down must not hide it.
    for name in PACKAGES:
        try:
            installed[canonicalize_name(name)] = metadata.version(name)
        except metadata.PackageNotFoundError:
            installed.pop(canonicalize_name(name), None)
    try:
        ours = metadata.distribution("flash-launch")
    except metadata.PackageNotFoundError:
        return PackageFacts(
            platform.python_version(), None, installed=installed, read_against=_read_against(), torchvision_needs=None
        )
    required = list(_requirements(ours.requires or ()))
    needed = {canonicalize_name(one.name) for one in required if one.marker is None or one.marker.evaluate()}
    extras = {
        canonicalize_name(one.name)
        for one in required
        if canonicalize_name(one.name) not in needed and canonicalize_name(one.name) in _OPTIONAL
    }
    bounds: dict[str, str] = {
        canonicalize_name(one.name): str(one.specifier)
        for one in required
        if canonicalize_name(one.name) in needed | extras
    }
    return PackageFacts(
        python=platform.python_version(),
        ours=ours.version,
        python_bound=ours.metadata["Requires-Python"] or "",
        installed=installed,
        bounds=bounds,
        optional=tuple(sorted(extras)),
        torchvision_needs=_torchvision_needs(),
        read_against=_read_against(),
    )


def package_folder(name: str) -> Path | None:
    """The folder of a package, which is not imported; None: there is none."""
    try:
        spec = util.find_spec(name)
    except (ImportError, ValueError):
        return None
    return Path(spec.origin).parent if spec is not None and spec.origin else None


def code_digest() -> str:
    """A digest of flash-launch's own code: equal on two nodes exactly if they run the same code."""
    digest = hashlib.sha256()
    for package in ("flash_launch", "flash_strategies"):
        folder = package_folder(package)
        for path in sorted(folder.rglob("*.py")) if folder is not None else ():
            digest.update(f"{package}/{path.relative_to(folder) if folder else path}\0".encode())
            digest.update(path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _name_of(found: metadata.Distribution) -> str:
    try:
        return found.metadata["Name"] or ""
    except (KeyError, TypeError, AttributeError):  # a folder that an uninstall left half behind
        return ""


def _fits(version: str, specifier: str) -> bool:
    try:
        return SpecifierSet(specifier).contains(Version(version), prereleases=True)
    except InvalidVersion:
        return False


def _base(version: str) -> str:
    """Without what was added for a build: 2.6.6+cu130 is 2.6.6."""
    return version.split("+", 1)[0]


def _requirements(texts: Iterable[str]) -> Iterable[Requirement]:
    for text in texts:
        try:
            yield Requirement(text)
        except InvalidRequirement:
            continue


def _torchvision_needs() -> str | None:
    try:
        texts = metadata.requires("torchvision") or []
    except metadata.PackageNotFoundError:
        return None
    return next((str(one.specifier) for one in _requirements(texts) if canonicalize_name(one.name) == "torch"), None)


def _read_against() -> dict[str, tuple[str, ...]]:
    """READ_VERSIONS of the files that reach into private parts, read from their text: importing them takes seconds."""
    folder = package_folder("flash_strategies")
    found: dict[str, tuple[str, ...]] = {}
    for name, file in _PRIVATE.items():
        if folder is None or not (folder / file).exists():
            continue
        for node in ast.parse((folder / file).read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "READ_VERSIONS":
                found[name] = tuple(ast.literal_eval(node.value))
    return found
