"""A small Hugging Face hub on the loopback address: as much as `snapshot_download` of huggingface_hub asks for."""

import hashlib
import json
import re
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit


def commit_of(folder: Path) -> str:
    """40 hexadecimal digits for what a folder holds: a change of it is another commit."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return hashlib.sha1(b"".join(bytes(path.relative_to(folder)) + path.read_bytes() for path in files)).hexdigest()


class Hub(ThreadingHTTPServer):
    """Serves folders as repositories.

    Attributes:
      url: for HF_ENDPOINT.
      repositories: by id, the folder that each revision is; a commit's folder is to stay as it is.
      gated: ids of repositories whose files may not be seen.
      seen: (method, path, value of the header Range) of each request.
      after: {name of a file: bytes}: its next response ends after so many bytes.
      broken: names of files for which the server has an internal error.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repositories, self.gated, self.seen, self.after, self.broken = {}, set(), [], {}, set()

    def publish(self, repository: str, folder: Path, revision: str = "main") -> str:
        """Moves a revision of a repository to a new commit, which it returns."""
        commit = commit_of(folder)
        self.repositories.setdefault(repository, {}).update({revision: folder, commit: folder})
        return commit

    def fetched(self) -> list[str]:
        """The names of the files whose content was asked for since the last call."""
        paths = [path for method, path, _ in self.seen if method == "GET" and "/resolve/" in path]
        self.seen.clear()
        return sorted(path.split("/resolve/")[1].split("/", 1)[1] for path in paths)

    def stop(self) -> None:
        """From now on nobody answers at the address."""
        self.shutdown()
        self.server_close()


@contextmanager
def serving():
    """A hub, until the end of the block."""
    hub = Hub()
    thread = Thread(target=hub.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield hub
    finally:
        hub.stop()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self):
        self._answer()

    def do_HEAD(self):
        self._answer()

    def log_message(self, *_):
        pass

    def _answer(self):
        path = unquote(urlsplit(self.path).path)
        self.server.seen.append((self.command, path, self.headers.get("Range")))
        found = re.fullmatch(r"/(?:api/models/)?([^/]+/[^/]+)/(revision|tree|resolve)/([^/]+)(?:/(.*))?", path)
        repository, kind, revision, name = found.groups() if found else (None,) * 4
        if repository not in self.server.repositories:
            return self._fail(404, "RepoNotFound")
        folder = self.server.repositories[repository].get(revision)
        if folder is None:
            return self._fail(404, "RevisionNotFound")
        if kind == "revision":
            return self._send(json.dumps({"id": repository, "sha": commit_of(folder)}).encode())
        if kind == "tree":
            files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
            entries = [
                {"type": "file", "path": str(path.relative_to(folder)), "size": path.stat().st_size, "oid": "0" * 40}
                for path in files
            ]
            return self._send(json.dumps(entries).encode())
        if repository in self.server.gated:
            return self._fail(403, "GatedRepo")
        if name in self.server.broken and self.command == "GET":
            return self._fail(500, "InternalError")
        content = (folder / name).read_bytes()
        about = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": commit_of(folder)}
        return self._send(content, about, self.server.after.pop(name, None) if self.command == "GET" else None)

    def _send(self, content: bytes, headers=(), end: int | None = None):
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        self.send_response(206 if start else 200)
        headers = dict(headers) | {"Content-Length": len(content) - start}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[start:end])

    def _fail(self, status: int, code: str):
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()
