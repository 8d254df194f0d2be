"""Archives are fetched whole or not at all, and unpacked into their folder and nowhere else."""

from __future__ import annotations

import io
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from flash_launch.core.data.utils import download_data
from flash_launch.errors import DataError

FILES = {"pets/train/cat/1.txt": b"a cat", "pets/readme.txt": b"pets"}


def zipped(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def tarred(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, f"w:{'bz2' if path.name.endswith(('bz2', 'tbz')) else 'gz'}") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def held(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def server() -> Iterator[tuple[str, dict[str, tuple[bytes, int]]]]:
    """A web server, and what it has: by path the content, and the length it claims."""
    pages: dict[str, tuple[bytes, int]] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path not in pages:
                self.send_error(404)
                return
            content, length = pages[self.path]
            self.send_response(200)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Nothing."""

    found = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=found.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{found.server_port}", pages
    found.shutdown()
    found.server_close()
    thread.join()


@pytest.mark.parametrize("name", ["pets.zip", "pets.tar.gz", "pets.tgz", "pets.tar.bz2", "pets.tbz"])
def test_a_local_archive_by_path_and_by_address(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    make: Callable[[Path, dict[str, bytes]], Path] = zipped if name.endswith("zip") else tarred
    archive = make(tmp_path / name, FILES)
    for number, url in enumerate((str(archive), archive.as_uri())):
        folder = tmp_path / f"data{number}"
        download_data(url, folder)
        assert held(folder) == {**FILES, name: archive.read_bytes()}
        assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []
    assert capfd.readouterr().err == ""
    (tmp_path / "data0/pets/readme.txt").write_bytes(b"mine")  # what is there stays
    (tmp_path / "data0/pets/train/cat/1.txt").unlink()
    download_data("http://127.0.0.1:9/" + name, tmp_path / "data0", verbose=True)  # not asked for
    assert held(tmp_path / "data0")["pets/train/cat/1.txt"] == b"a cat"
    assert held(tmp_path / "data0")["pets/readme.txt"] == b"mine"
    assert "is there already, nothing is fetched" in capfd.readouterr().err


def test_from_a_server(server: tuple[str, dict[str, tuple[bytes, int]]], tmp_path: Path) -> None:
    address, pages = server
    content = zipped(tmp_path / "a.zip", FILES).read_bytes()
    pages["/some/pets%20.zip?key=1"] = (content, len(content))
    download_data(f"{address}/some/pets%20.zip?key=1", tmp_path / "data")
    assert held(tmp_path / "data") == {**FILES, "pets .zip": content}
    with pytest.raises(DataError, match=r"could not be fetched .*404.*or put the file at"):
        download_data(f"{address}/none.zip", tmp_path / "other")
    pages["/cut.zip"] = (content[:50], len(content))
    with pytest.raises(DataError, match="could not be fetched"):
        download_data(f"{address}/cut.zip", tmp_path / "other")
    assert held(tmp_path / "other") == {}


@pytest.mark.parametrize("member", ["../out.txt", "/out.txt", "a/../../out.txt"])
@pytest.mark.parametrize("kind", ["zip", "tgz"])
def test_nothing_lands_outside_of_the_folder(member: str, kind: str, tmp_path: Path) -> None:
    make: Callable[[Path, dict[str, bytes]], Path] = zipped if kind == "zip" else tarred
    archive = make(tmp_path / f"bad.{kind}", {"good.txt": b"", member: b"out"})
    folder = tmp_path / "deep/er/data"
    if kind == "tgz" and member.startswith("/"):  # tar's own rule: below the folder
        download_data(str(archive), folder)
    else:
        with pytest.raises(DataError, match=r"bad\."):
            download_data(str(archive), folder)
        assert set(held(folder)) == {archive.name}
    assert not list(tmp_path.glob("out.txt"))
    assert not list(tmp_path.glob("deep/**/out.txt")) or kind == "tgz"
    assert not Path("/out.txt").exists()


def test_links_do_not_lead_outside(tmp_path: Path) -> None:
    archive = tmp_path / "links.tgz"
    with tarfile.open(archive, "w:gz") as file:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc"
        file.addfile(link)
    with pytest.raises(DataError, match="cannot be unpacked"):
        download_data(str(archive), tmp_path / "data")


@pytest.mark.parametrize("name", ["broken.zip", "broken.tgz"])
def test_what_is_no_archive(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"<html>not found</html>")
    with pytest.raises(DataError, match=f"{name} cannot be unpacked .*delete it and call download_data again"):
        download_data(str(tmp_path / name), tmp_path / "data")
    with pytest.raises(DataError, match="names no file"):
        download_data("https://example.org/", tmp_path)
    with pytest.raises(DataError, match="give an http, https or file address"):
        download_data("ftp://example.org/a.zip", tmp_path)


def test_a_plain_file_is_fetched(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("a,b")
    download_data(str(tmp_path / "labels.csv"), tmp_path / "data")
    assert held(tmp_path / "data") == {"labels.csv": b"a,b"}


def test_ranks_may_unpack_at_the_same_time(tmp_path: Path) -> None:
    files = {f"pets/{number % 7}/{number}.txt": b"x" for number in range(200)}
    archive = zipped(tmp_path / "pets.zip", files)
    failed: list[Exception] = []

    def fetch() -> None:
        try:
            download_data(str(archive), tmp_path / "data")
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=fetch) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert held(tmp_path / "data") == {**files, "pets.zip": archive.read_bytes()}
