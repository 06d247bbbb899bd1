"""T5X checkpoints in gs://: Google's storage, acted on the loopback as TensorStore asks for it."""

from __future__ import annotations

import http.server
import json
import os
import re
import subprocess
import sys
import threading
import urllib.parse
from pathlib import Path

import numpy as np
import t5x_fixtures as fixtures

FLAT = fixtures.unscanned(gated=True, tied=False)
READ_BUCKET = """
import sys
import jax
import numpy as np
jax.config.update("jax_platforms", "cpu")
from dora_jax.checkpoints import t5x
for place in sys.argv[1:]:
    params = t5x.load(place)
    print(repr(float(np.asarray(params["token_embedder"]["embedding"]).astype(np.float64).sum())))
"""


class Bucket(http.server.BaseHTTPRequestHandler):
    """As much of Google's storage as reading needs: listing, and objects by name and range."""

    root: Path

    def do_GET(self) -> None:
        url = urllib.parse.urlsplit(self.path)
        query = urllib.parse.parse_qs(url.query)
        _, _, name = url.path.partition("/b/bucket/o")
        if not name:
            prefix = query.get("prefix", [""])[0]
            files = [p for p in sorted(self.root.rglob("*")) if p.is_file()]
            names = [file.relative_to(self.root).as_posix() for file in files]
            items = [{"name": name} for name in names if name.startswith(prefix)]
            self.answer(200, json.dumps({"items": items}).encode())
            return
        file = self.root / urllib.parse.unquote(name.removeprefix("/"))
        if not file.is_file():
            self.answer(404, b"")
            return
        content = file.read_bytes()
        wanted = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted is None:
            self.answer(200, content)
            return
        start, end = int(wanted[1]), int(wanted[2] or len(content) - 1)
        part = content[start : end + 1]
        span = f"bytes {start}-{start + len(part) - 1}/{len(content)}"
        self.answer(206, part, {"Content-Range": span})

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in ({"x-goog-generation": "1"} | (headers or {})).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing on the terminal."""


def test_checkpoints_in_a_bucket(tmp_path: Path) -> None:
    fixtures.write_msgpack(tmp_path / "msgpack" / "checkpoint_1000", FLAT)
    fixtures.write_orbax(tmp_path / "orbax" / "checkpoint_1000", FLAT)
    handler = type("Handler", (Bucket,), {"root": tmp_path})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = server.server_address[1]
        environment = os.environ | {
            "TENSORSTORE_GCS_HTTP_URL": f"http://127.0.0.1:{port}",
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "nobody",
        }
        places = [f"gs://bucket/{form}/checkpoint_1000" for form in ("msgpack", "orbax")]
        ended = subprocess.run(
            [sys.executable, "-c", READ_BUCKET, *places, "gs://bucket/orbax"],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        server.shutdown()
    assert ended.returncode == 0, ended.stderr
    embedding = FLAT["token_embedder.embedding"].astype(np.float64)
    assert ended.stdout.split() == [repr(float(embedding.sum()))] * 3
