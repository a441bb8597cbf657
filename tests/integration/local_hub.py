"""A hub of models and data sets on this machine: folders served over the hub's HTTP interface."""

import hashlib
import json
import re
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

COMMIT = "0" * 39 + "1"
FILE = re.compile(r"/(datasets/)?([\w.-]+/[\w.-]+)/resolve/[^/]+/(.+)")
ASKED = re.compile(
    r"/api/(models|datasets)/([\w.-]+/[\w.-]+)(?:/(revision|tree|paths-info)(/.*)?)?"
)


class _Handler(BaseHTTPRequestHandler):
    """`root` holds models/OWNER/NAME and datasets/OWNER/NAME."""

    root: Path
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        if file := FILE.fullmatch(path):
            kind = "datasets" if file[1] else "models"
            self._file(self.root / kind / file[2] / file[3])
        elif asked := ASKED.fullmatch(path):
            self._asked(*asked.groups())
        else:
            self._answer(404, b"", {"X-Error-Code": "RepoNotFound"})

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        asked = ASKED.fullmatch(unquote(urlsplit(self.path).path))
        if asked is None or asked[3] != "paths-info":
            self._answer(404, b"", {"X-Error-Code": "RepoNotFound"})
            return
        wanted = json.loads(body)["paths"] if body.startswith("{") else []
        self._json([e for e in self._entries(asked[1], asked[2]) if e["path"] in wanted])

    def _asked(self, kind, name, what, _):
        if not (self.root / kind / name).is_dir():
            self._answer(404, b"", {"X-Error-Code": "RepoNotFound"})
        elif what == "tree":
            self._json(self._entries(kind, name))
        else:
            files = [{"rfilename": entry["path"]} for entry in self._entries(kind, name)]
            self._json({"id": name, "sha": COMMIT, "siblings": files, "private": False, "tags": []})

    def _entries(self, kind, name):
        folder = self.root / kind / name
        return [
            {
                "type": "file", "path": file.relative_to(folder).as_posix(),
                "size": file.stat().st_size, "oid": hashlib.sha1(file.read_bytes()).hexdigest(),
            }
            for file in sorted(folder.rglob("*")) if file.is_file()
        ]  # fmt: skip

    def _file(self, file):
        if not file.is_file():
            self._answer(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
            return
        content = file.read_bytes()
        etag = f'"{hashlib.sha1(content).hexdigest()}"'
        self._answer(200, content, {"ETag": etag, "X-Repo-Commit": COMMIT})

    def _json(self, found):
        self._answer(200, json.dumps(found).encode(), {"Content-Type": "application/json"})

    def _answer(self, code, content, headers):
        self.send_response(code)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


@contextmanager
def local_hub(root):
    """Serves the folder; gives the address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"root": root}))
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
