"""A stand-in for the Hub on loopback: the few endpoints that huggingface_hub and datasets ask to stream a data set of a few files.

    GET       /api/datasets/NAME[/revision/SHA]        the commit and the file list
    GET       /api/datasets/NAME/tree/SHA[/FOLDER]     the files, with sizes
    POST      /api/datasets/NAME/paths-info/SHA        the same for named files
    HEAD, GET /datasets/NAME/resolve/SHA/FILE          a file, whole or a range

A missing data set, revision or file is answered as the Hub answers it: 404 with the reason in X-Error-Code.
"""

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

Files = Mapping[str, bytes]


def commit(files: Files) -> str:
    """The commit that the server gives a data set: 40 hexadecimal digits made of its files."""
    digest = hashlib.sha1()
    for path in sorted(files):
        digest.update(f"{path}\0".encode() + files[path] + b"\0")
    return digest.hexdigest()


@contextmanager
def serve(datasets: Mapping[str, Files]) -> Iterator[str]:
    """Serve data sets ("namespace/name" to files) while the context lasts; gives the address for HF_ENDPOINT."""

    class Handler(_Handler):
        repositories = datasets

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # the client keeps its connection
    repositories: Mapping[str, Files]

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        match parts:
            case ["api", "datasets", space, name, *rest]:
                self._answer_api(f"{space}/{name}", rest, body)
            case ["datasets", space, name, "resolve", revision, *path]:
                self._answer_file(f"{space}/{name}", revision, "/".join(path))
            case _:
                self._refuse("RepoNotFound")

    do_HEAD = do_POST = do_GET  # noqa: N815 - the names that http.server calls

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: a failing test would otherwise drown in requests."""

    def _answer_api(self, name: str, rest: list[str], body: bytes) -> None:
        files = self.repositories.get(name)
        if files is None:
            return self._refuse("RepoNotFound")
        sha = commit(files)
        if len(rest) > 1 and rest[1] not in (sha, "main"):
            return self._refuse("RevisionNotFound")
        match rest:
            case [] | ["revision", _]:
                self._send_json({"id": name, "sha": sha, "private": False, "siblings": [{"rfilename": path} for path in files]})
            case ["tree", _]:
                self._send_json([_entry(path, files[path]) for path in files])
            case ["paths-info", _]:
                asked = parse_qs(body.decode()).get("paths", [])
                self._send_json([_entry(path, files[path]) for path in asked if path in files])
            case _:
                self._refuse("EntryNotFound")

    def _answer_file(self, name: str, revision: str, path: str) -> None:
        files = self.repositories.get(name)
        if files is None:
            return self._refuse("RepoNotFound")
        if path not in files:
            return self._refuse("EntryNotFound", files)
        content, asked = files[path], self.headers.get("Range")
        status, extra = 200, {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": commit(files), "Accept-Ranges": "bytes"}
        if asked:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            stop = min(int(last) + 1, len(content)) if last else len(content)
            if int(first) >= len(content):
                return self._send(416, b"", {"Content-Range": f"bytes */{len(content)}"})
            status, extra["Content-Range"] = 206, f"bytes {first}-{stop - 1}/{len(content)}"
            content = content[int(first) : stop]
        self._send(status, content, extra)

    def _refuse(self, code: str, files: Files | None = None) -> None:
        commit_header = {"X-Repo-Commit": commit(files)} if files is not None else {}
        self._send(404, b"", {"X-Error-Code": code, "X-Error-Message": "not found", **commit_header})

    def _send_json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, content: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _entry(path: str, content: bytes) -> dict[str, object]:
    return {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
