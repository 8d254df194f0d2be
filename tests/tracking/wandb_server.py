"""A W&B server on loopback, as far as recording needs one: GraphQL for runs, the file stream, and uploads of files."""

from __future__ import annotations

import contextlib
import gzip
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEY = "local-" + "0123456789abcdef" * 2 + "01234567"


@dataclass
class Server:
    """What was sent, and how to answer."""

    url: str = ""
    lines: list[dict[str, object]] = field(default_factory=list)
    """History, as the file stream brought it."""
    offsets: list[int] = field(default_factory=list)
    """Where each piece of history was put."""
    buckets: list[dict[str, object]] = field(default_factory=list)
    """Variables of UpsertBucket."""
    summary: dict[str, object] = field(default_factory=dict)
    exit_code: int | None = None
    files: list[str] = field(default_factory=list)
    operations: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    committed: bool = False
    """The artifact is whole."""
    status: int = 200
    """Answers everything but GET / with this status."""
    stream_status: int = 200
    """Answers the file stream with this status."""
    swallow: bool = False
    """Takes requests from now on, and never answers."""
    stop: bool = False
    """Somebody pressed stop on the run's page."""

    def answer(self, query: str, variables: dict[str, object]) -> dict[str, object]:
        found = re.search(r"(?:query|mutation)\s+(\w+)", query)
        name = found.group(1) if found else "?"
        self.operations.append(name)
        if name == "Viewer":
            return {"viewer": {"id": "u", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}}
        if name == "ServerFeaturesQuery":
            return {"serverInfo": {"features": []}}
        if name == "RunResumeStatus":
            return {"model": {"id": "p", "name": "p", "entity": {"id": "e", "name": "me"}, "bucket": self._bucket()}}
        if name == "UpsertBucket":
            self.buckets.append(variables)
            project = {"id": "p", "name": variables.get("project"), "entity": {"id": "e", "name": "me"}}
            bucket = {"id": "b", "name": variables.get("name"), "displayName": variables.get("displayName")}
            bucket |= {"config": None, "summaryMetrics": None, "sweepName": None, "historyLineCount": 0}
            return {"upsertBucket": {"bucket": {**bucket, "project": project}, "inserted": len(self.buckets) == 1}}
        if name == "RunStoppedStatus":
            return {"project": {"run": {"stopped": self.stop}}}
        if name == "CreateRunFiles":
            files = [{"name": file, "uploadUrl": f"{self.url}/upload/{file}"} for file in _texts(variables["files"])]
            return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}
        if "rtifact" in name:
            return self._artifact(name, variables)
        self.unknown.append(name)
        return {}

    def _artifact(self, name: str, variables: dict[str, object]) -> dict[str, object]:
        """An artifact's way to the server: made, its manifest, its files, done."""
        if name == "CreateArtifact":
            made = {"id": "a", "state": "PENDING", "artifactSequence": {"latestArtifact": None}}
            return {"createArtifact": {"artifact": made}}
        if name == "CreateArtifactManifest":
            file = {"id": "f", "uploadUrl": f"{self.url}/upload/manifest", "uploadHeaders": []}
            return {"createArtifactManifest": {"artifactManifest": {"id": "m", "file": file}}}
        if name == "UpdateArtifactManifest":
            file = {"id": "f", "uploadUrl": f"{self.url}/upload/manifest", "uploadHeaders": []}
            return {"updateArtifactManifest": {"artifactManifest": {"id": "m", "file": file}}}
        if name == "CreateArtifactFiles":
            given = variables["input"]
            assert isinstance(given, dict)
            specs = given["artifactFiles"]
            assert isinstance(specs, list)
            edges = [
                {
                    "node": {
                        "storagePath": f"path/{spec['name']}",
                        "uploadUrl": f"{self.url}/upload/artifact/{spec['name']}",
                        "uploadHeaders": [],
                        "uploadMultipartUrls": None,
                        "artifact": {"id": "a"},
                    }
                }
                for spec in specs
            ]
            return {"createArtifactFiles": {"files": {"edges": edges}}}
        if name == "CommitArtifact":
            self.committed = True
            return {"commitArtifact": {"artifact": {"id": "a", "digest": "d"}}}
        self.unknown.append(name)
        return {"artifact": None}

    def _bucket(self) -> dict[str, object] | None:
        if not self.buckets:
            return None
        tail = json.dumps([json.dumps(line) for line in self.lines[-1:]])
        return {
            "id": "b",
            "name": self.buckets[0].get("name"),
            "historyLineCount": len(self.lines),
            "eventsLineCount": 0,
            "logLineCount": 0,
            "historyTail": tail,
            "eventsTail": "[]",
            "summaryMetrics": json.dumps(self.summary),
            "displayName": "x",
            "config": "{}",
            "wandbConfig": json.dumps({"t": 1}),
            "tags": [],
            "notes": None,
        }


def _texts(value: object) -> list[str]:
    assert isinstance(value, list)
    return [str(item) for item in value]


def _handler(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None: ...

        def do_GET(self) -> None:
            self._send({}, 200)

        def do_PUT(self) -> None:
            server.files.append(self.path.removeprefix("/upload/"))
            self._body()
            self._send({}, 200)

        def do_POST(self) -> None:
            body = self._body()
            while server.swallow:
                time.sleep(0.2)
            if server.status != 200:
                self._send({"errors": [{"message": "no"}]}, server.status)
            elif self.path == "/graphql":
                self._send({"data": server.answer(str(body["query"]), dict(body.get("variables") or {}))}, 200)  # type: ignore[call-overload]
            elif self.path.endswith("/file_stream") and server.stream_status != 200:
                self._send({"error": "no"}, server.stream_status)
            elif self.path.endswith("/file_stream"):
                self._stream(body)
                self._send({"limits": {}, "stopped": server.stop}, 200)
            else:
                server.unknown.append(self.path)
                self._send({}, 404)

        def _stream(self, body: dict[str, object]) -> None:
            files = body.get("files") or {}
            assert isinstance(files, dict)
            if history := files.get("wandb-history.jsonl"):
                server.offsets.append(history["offset"])
                del server.lines[history["offset"] :]
                server.lines += [json.loads(line) for line in history["content"]]
            if summary := files.get("wandb-summary.json"):
                server.summary = json.loads(summary["content"][-1])
            if body.get("complete"):
                server.exit_code = int(str(body.get("exitcode")))

        def _body(self) -> dict[str, object]:
            data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Content-Encoding") == "gzip":
                data = gzip.decompress(data)
            with contextlib.suppress(ValueError):
                read = json.loads(data)
                return read if isinstance(read, dict) else {}
            return {}

        def _send(self, value: object, status: int) -> None:
            data = json.dumps(value).encode()
            with contextlib.suppress(OSError):
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

    return Handler


class _Http(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """A client that goes away is no error."""


@contextlib.contextmanager
def wandb_server() -> Iterator[Server]:
    """A server that answers."""
    server = Server()
    http = _Http(("127.0.0.1", 0), _handler(server))
    server.url = f"http://127.0.0.1:{http.server_port}"
    threading.Thread(target=http.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.swallow = False
        http.shutdown()


@contextlib.contextmanager
def black_hole() -> Iterator[str]:
    """The address of a server that takes connections and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(50)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def nobody() -> str:
    """An address where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"
