"""Archives of data: fetched, and unpacked into a folder and nowhere else. Standard library only."""

from __future__ import annotations

import shutil
import sys
import tarfile
import tempfile
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from pathlib import Path, PurePosixPath

from flash_launch.errors import DataError

__all__ = ["download_data"]

SUFFIXES = (".zip", ".tar.gz", ".tgz", ".tar.bz2", ".tbz")
_SECONDS = 60
"""After which a server that sends nothing is given up."""


def download_data(url: str, path: str | Path = "data/", verbose: bool = False) -> None:
    """Fetch an archive into a folder and unpack it there; an archive that lies there already is only unpacked.

    An archive comes under its name when it is whole, and what it holds when all of it is unpacked. What is there
    already under the same names stays as it is.

    Args:
        url: http, https or file, or a path of this machine; it ends with .zip, .tar.gz, .tgz, .tar.bz2 or .tbz. An
            address of another kind is only fetched.
        path: the folder, made if need be.
        verbose: say what is done.

    Raises:
        DataError: it cannot be fetched, is no archive, or holds a member that would lie outside of the folder.
    """
    name = PurePosixPath(urllib.parse.unquote(urllib.parse.urlsplit(url).path)).name
    if not name:
        raise DataError(f"download_data was given {url!r}, which names no file: give the address of an archive")
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    archive = folder / name
    if archive.exists():
        _say(f"{archive} is there already, nothing is fetched", verbose)
    else:
        _say(f"fetching {url}", verbose)
        _fetch(url, archive)
    if name.endswith(SUFFIXES):
        _unpack(archive, folder)
        _say(f"unpacked {archive} to {folder}", verbose)


def _fetch(url: str, target: Path) -> None:
    scheme = urllib.parse.urlsplit(url).scheme
    if scheme not in ("", "http", "https", "file"):
        raise DataError(f"download_data was given {url!r}: give an http, https or file address, or a path")
    address = url if scheme else Path(url).absolute().as_uri()
    try:
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}_") as beside:
            part = Path(beside) / target.name
            with urllib.request.urlopen(address, timeout=_SECONDS) as source, part.open("wb") as sink:
                expected = source.headers.get("Content-Length")
                shutil.copyfileobj(source, sink)
            size = part.stat().st_size
            if expected is not None and size != int(expected):
                raise DataError(f"{url} could not be fetched: the server sent {size} of {expected} bytes; try again")
            part.replace(target)
    except (urllib.error.URLError, OSError) as error:
        raise DataError(
            f"{url} could not be fetched ({error}): check the address and the network, or put the file at {target}"
        ) from error


def _unpack(archive: Path, folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder, prefix=f".{archive.name}_") as name:
        inside = Path(name)
        try:
            if archive.name.endswith(".zip"):
                with zipfile.ZipFile(archive) as zipped:
                    names = zipped.namelist()
                    for member in names:
                        _check_member(member, archive)
                    if all((folder / member).exists() for member in names):
                        return
                    zipped.extractall(inside)
            else:
                with tarfile.open(archive) as tarred:
                    if all((folder / member).exists() for member in tarred.getnames()):
                        return
                    tarred.extractall(inside, filter="data")
        except (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError) as error:
            why = next(iter(str(error).splitlines()), type(error).__name__)
            raise DataError(
                f"{archive} cannot be unpacked ({why}): if it is damaged, delete it and call download_data again"
            ) from error
        _move_in(inside, folder)


def _check_member(member: str, archive: Path) -> None:
    parts = PurePosixPath(member.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or ":" in parts.parts[:1]:
        raise DataError(f"{archive} holds {member!r}, which would lie outside of the folder: it is not unpacked")


def _move_in(inside: Path, folder: Path) -> None:
    for entry in inside.iterdir():
        target = folder / entry.name
        if entry.is_dir() and not entry.is_symlink() and target.is_dir():
            _move_in(entry, target)
        elif not target.exists():
            try:
                entry.rename(target)
            except OSError:  # another rank was faster
                if not target.is_dir():
                    raise
                _move_in(entry, target)


def _say(line: str, verbose: bool) -> None:
    if verbose:
        print(line, file=sys.stderr)
