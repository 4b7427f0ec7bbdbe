"""A stand-in for the Hub on loopback: the few endpoints that huggingface_hub and datasets ask to stream a data set of a
few files, to list and fetch a lens, and to push one.

    GET       /api/KIND/NAME[/revision/REVISION]       the commit and the file list; KIND is datasets, models or spaces
    GET       /api/KIND/NAME/tree/REVISION[/FOLDER]    the files, with sizes
    POST      /api/KIND/NAME/paths-info/REVISION       the same for named files
    HEAD, GET [/KIND]/NAME/resolve/REVISION/FILE       a file, whole or a range; models have no KIND here
    GET       /api/whoami-v2                           whose token it is
    POST      /api/repos/create                        a new model repository
    POST      /api/models/NAME/branch/BRANCH           a new branch of one
    POST      /api/models/NAME/preupload/REVISION      how files are to be sent: all within the commit
    POST      /api/models/NAME/commit/REVISION         files, as lines of JSON

A missing repository, revision or file is answered as the Hub answers it: 404 with the reason in X-Error-Code. The files
of "NAME@v1" are those of the repository NAME on the branch v1.
"""

import base64
import hashlib
import json
import threading
from collections.abc import Collection, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

Files = Mapping[str, bytes]
KINDS = ("datasets", "models", "spaces")


def commit(files: Files) -> str:
    """The commit that the server gives a repository: 40 hexadecimal digits made of its files."""
    digest = hashlib.sha1()
    for path in sorted(files):
        digest.update(f"{path}\0".encode() + files[path] + b"\0")
    return digest.hexdigest()


@contextmanager
def serve(
    datasets: Mapping[str, Files] | None = None,
    *,
    spaces: Mapping[str, Files] | None = None,
    models: MutableMapping[str, Files] | None = None,
    accounts: Mapping[str, Mapping[str, object]] | None = None,
    cut: Collection[str] = (),
    full: Collection[str] = (),
    requests: list[str] | None = None,
) -> Iterator[str]:
    """Serve repositories ("namespace/name" to files) while the context lasts; gives the address for HF_ENDPOINT.

    models: receives what is pushed. accounts: what whoami says, by token. cut: files of which only a part is sent.
    full: model repositories that take no commit. requests: filled with what was asked, "GET /path". All can be changed
    meanwhile.
    """

    class Handler(_Handler):
        """This server's."""

    Handler.repositories = {
        kind: {} if files is None else files for kind, files in zip(KINDS, (datasets, models, spaces), strict=True)
    }
    Handler.accounts, Handler.cut, Handler.full = accounts or {}, cut, full
    Handler.requests = [] if requests is None else requests
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
    repositories: Mapping[str, Mapping[str, Files]]
    accounts: Mapping[str, Mapping[str, object]]
    cut: Collection[str]
    full: Collection[str]
    requests: list[str]

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = urlsplit(self.path).path
        self.requests.append(f"{self.command} {path}")
        match [unquote(part) for part in path.strip("/").split("/")]:
            case ["api", "whoami-v2"]:
                self._send_json(self._account, 200 if self._account else 401)
            case ["api", "validate-yaml"]:
                self._send_json({"errors": [], "warnings": []})
            case ["api", "repos", "create"]:
                self._create(json.loads(body))
            case ["api", "models", space, name, "branch" | "preupload" | "commit" as act, revision]:
                self._change(f"{space}/{name}", act, revision, body)
            case ["api", kind, space, name, *rest] if kind in KINDS:
                self._answer_api(kind, f"{space}/{name}", rest, body)
            case [kind, space, name, "resolve", revision, *parts] if kind in KINDS:
                self._answer_file(kind, f"{space}/{name}", revision, "/".join(parts))
            case [space, name, "resolve", revision, *parts]:
                self._answer_file("models", f"{space}/{name}", revision, "/".join(parts))
            case _:
                self._refuse("RepoNotFound")

    do_HEAD = do_POST = do_GET  # noqa: N815 - the names that http.server calls

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: a failing test would otherwise drown in requests."""

    @property
    def _account(self) -> Mapping[str, object]:
        return self.accounts.get((self.headers.get("Authorization") or "").removeprefix("Bearer "), {})

    def _files(self, kind: str, name: str, revision: str) -> Files | None:
        """The files of a revision, a branch or a commit; None, once refused, if there are none."""
        branches = {key: files for key, files in self.repositories[kind].items() if key.partition("@")[0] == name}
        for key, files in branches.items():
            if revision in (commit(files), key.partition("@")[2] or "main"):
                return files
        self._refuse("RevisionNotFound" if branches else "RepoNotFound")
        return None

    def _answer_api(self, kind: str, name: str, rest: list[str], body: bytes) -> None:
        files = self._files(kind, name, rest[1] if len(rest) > 1 else "main")
        match rest:
            case _ if files is None:
                return
            case [] | ["revision", _]:
                siblings = [{"rfilename": path} for path in files]
                self._send_json({"id": name, "sha": commit(files), "private": "private" in name, "siblings": siblings})
            case ["tree", _]:
                self._send_json([_entry(path, files[path]) for path in files])
            case ["paths-info", _]:
                asked = parse_qs(body.decode()).get("paths", [])
                self._send_json([_entry(path, files[path]) for path in asked if path in files])
            case _:
                self._refuse("EntryNotFound")

    def _answer_file(self, kind: str, name: str, revision: str, path: str) -> None:
        files = self._files(kind, name, revision)
        if files is None:
            return
        if path not in files:
            return self._refuse("EntryNotFound", files)
        content, asked = files[path], self.headers.get("Range")
        status, extra = (
            200,
            {
                "ETag": f'"{hashlib.sha1(content).hexdigest()}"',
                "X-Repo-Commit": commit(files),
                "Accept-Ranges": "bytes",
            },
        )
        if path in self.cut and self.command == "GET":
            content = content[: len(content) // 2]
        if asked:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            stop = min(int(last) + 1, len(content)) if last else len(content)
            if int(first) >= len(content):
                return self._send(416, b"", {"Content-Range": f"bytes */{len(content)}"})
            status, extra["Content-Range"] = 206, f"bytes {first}-{stop - 1}/{len(content)}"
            content = content[int(first) : stop]
        self._send(status, content, extra)

    def _create(self, wanted: Mapping[str, str]) -> None:
        if not self._account:
            return self._send_json({"error": "who are you?"}, 401)
        name = f"{wanted['organization'] or self._account['name']}/{wanted['name']}"
        models = self.repositories["models"]
        there = name in models
        if not there:
            models[name] = {}  # type: ignore[index] # models can be changed
        self._send_json({"url": f"http://{self.headers['Host']}/{name}"}, 409 if there else 200)

    def _change(self, name: str, act: str, revision: str, body: bytes) -> None:
        """A new branch, or a commit and the question before it."""
        models = self.repositories["models"]
        key = name if revision == "main" else f"{name}@{revision}"
        if not self._account or name in self.full:
            return self._send_json({"error": "the storage is full" if self._account else "who are you?"}, 403)
        if act == "branch":
            models.setdefault(key, {})  # type: ignore[attr-defined]
            self._send_json({})
        elif self._files("models", name, revision) is None:
            return
        elif act == "preupload":
            files = json.loads(body)["files"]
            self._send_json(
                {"files": [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in files]}
            )
        else:
            sent = [line["value"] for line in map(json.loads, body.splitlines()) if line["key"] == "file"]
            models[key] = {**models[key], **{file["path"]: base64.b64decode(file["content"]) for file in sent}}  # type: ignore[index]
            sha = commit(models[key])
            self._send_json({"commitUrl": f"http://{self.headers['Host']}/{name}/commit/{sha}", "commitOid": sha})

    def _refuse(self, code: str, files: Files | None = None) -> None:
        commit_header = {"X-Repo-Commit": commit(files)} if files is not None else {}
        self._send(404, b"", {"X-Error-Code": code, "X-Error-Message": "not found", **commit_header})

    def _send_json(self, value: object, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

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
