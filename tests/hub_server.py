"""A hub for one repository on this machine: the few addresses that a download asks for, and nothing more."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def serve_dataset(repository: str, files: Mapping[str, bytes], asked: list[str]) -> Iterator[str]:
    """Serve a repository, of a data set or of a model; yields the address, and notes every path that is fetched in `asked`."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(send=False)

        def do_GET(self) -> None:
            self._answer(send=True)

        def _answer(self, *, send: bool) -> None:
            path = self.path.split("?")[0]
            prefix = f"/datasets/{repository}/resolve/{COMMIT}/"
            if path.startswith(f"/api/datasets/{repository}/revision/"):
                siblings = [{"rfilename": name} for name in files]
                self._send(json.dumps({"id": repository, "sha": COMMIT, "siblings": siblings}).encode(), send)
            elif path.startswith(f"/api/datasets/{repository}/tree/"):
                tree = [{"type": "file", "path": name, "size": len(data), "oid": "0"} for name, data in files.items()]
                self._send(json.dumps(tree).encode(), send)
            elif path.removeprefix(prefix) in files and path.startswith(prefix):
                if send:
                    asked.append(path.removeprefix(prefix))
                self._send(files[path.removeprefix(prefix)], send)
            elif (name := _file_of_model(path, repository)) in files:
                if send:
                    asked.append(name)
                self._send(files[name], send)
            else:
                self.send_response(404)
                self.send_header("X-Error-Code", "EntryNotFound" if name else "RepoNotFound")
                self.send_header("X-Repo-Commit", COMMIT)
                self.send_header("Content-Length", "0")
                self.end_headers()

        def _send(self, content: bytes, send: bool) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if send:
                self.wfile.write(content)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def _file_of_model(path: str, repository: str) -> str:
    """The file that the address of a model repository names; "" for other addresses."""
    prefixes = (f"/{repository}/resolve/{revision}/" for revision in ("main", COMMIT))
    return next((path.removeprefix(prefix) for prefix in prefixes if path.startswith(prefix)), "")
