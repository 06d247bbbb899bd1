"""A chat-completions server on the loopback: real HTTP, tokens that it counts, faults on demand."""

from __future__ import annotations

import hashlib
import json
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

KEY = "sk-test-0123456789abcdef"
MODEL = "made-up-1"

Answer = Callable[[str, list[dict[str, str]]], str]  # the text asked about, the conversation


class ChatServer:
    """Answers what `answer` says. Use as a context manager.

    Args:
        answer: the text of a reply.
        faults: what goes wrong with the n-th request for a conversation, in this order; then
            nothing more. A function may choose them by the text.
        tells_usage: whether replies say how many tokens they took.
        takes_schema: whether a response_format is accepted.
        retry_after: seconds that status 429 asks to wait.
        certificate: files of a certificate and its key; the server then speaks TLS.
        moved_to: where status 307 sends on to.

    Attributes:
        prompt_tokens, completion_tokens: of all replies that left the server whole.
        asked: how often each text was answered.
        requests: bodies of all requests, in the order of arrival.
        arrivals: when they came, seconds of a steady clock.
    """

    def __init__(
        self,
        answer: Answer,
        faults: Callable[[str], tuple[str, ...]] = lambda text: (),
        *,
        tells_usage: bool = True,
        takes_schema: bool = True,
        retry_after: float = 0.02,
        certificate: tuple[Path, Path] | None = None,
        moved_to: str = "",
    ) -> None:
        self.answer, self.faults = answer, faults
        self.tells_usage, self.takes_schema = tells_usage, takes_schema
        self.retry_after, self.moved_to = retry_after, moved_to
        self.prompt_tokens = self.completion_tokens = 0
        self.asked: Counter[str] = Counter()
        self.requests: list[dict[str, Any]] = []
        self.arrivals: list[float] = []
        self.lock = threading.Lock()
        self._seen: Counter[str] = Counter()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                server._respond(self)

            def log_message(self, *arguments: object) -> None:
                pass

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 64

            def handle_error(self, *arguments: object) -> None:
                pass  # a client that went away

        self._http = Quiet(("127.0.0.1", 0), Handler)
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*certificate)
            self._http.socket = context.wrap_socket(self._http.socket, server_side=True)
        scheme = "http" if certificate is None else "https"
        self.base_url = f"{scheme}://127.0.0.1:{self._http.server_port}/v1"

    def __enter__(self) -> ChatServer:
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def _respond(self, http: BaseHTTPRequestHandler) -> None:
        body = json.loads(http.rfile.read(int(http.headers["Content-Length"])))
        questions = [m["content"] for m in body["messages"] if m["role"] == "user"]
        text = json.loads([question for question in questions if question[:1] == "{"][-1])["text"]
        conversation = hashlib.sha256(json.dumps(body["messages"]).encode()).hexdigest()
        with self.lock:
            self.requests.append(body)
            self.arrivals.append(time.monotonic())
            place = self._seen[conversation]
            self._seen[conversation] += 1
        if http.headers["Authorization"] != f"Bearer {KEY}":
            said = f"Incorrect API key provided: {http.headers['Authorization']}"
            return _send_error(http, 401, "invalid_api_key", said)
        if body["model"] != MODEL:
            return _send_error(http, 404, "model_not_found", f"no model {body['model']}")
        if "response_format" in body and not self.takes_schema:
            return _send_error(http, 400, "unsupported", "response_format is not supported")
        faults = self.faults(text)
        if place < len(faults):
            return self._fail(http, faults[place])
        return self._complete(http, body, text)

    def _fail(self, http: BaseHTTPRequestHandler, fault: str) -> None:
        headers = {
            "429": {"Retry-After": str(self.retry_after)},
            "307": {"Location": self.moved_to},
        }
        _fail(http, fault, headers.get(fault, {}))

    def _complete(self, http: BaseHTTPRequestHandler, body: dict[str, Any], text: str) -> None:
        content = self.answer(text, body["messages"])
        usage = {
            "prompt_tokens": sum(len(m["content"]) for m in body["messages"]) // 4,
            "completion_tokens": len(content) // 4 + 1,
        }
        with self.lock:
            self.prompt_tokens += usage["prompt_tokens"]
            self.completion_tokens += usage["completion_tokens"]
            self.asked[text] += 1
        told = {"usage": usage} if self.tells_usage else {}
        if not body.get("stream"):
            choice = {"message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
            return _send(http, json.dumps({"choices": [choice], **told}).encode())
        pieces = [content[i : i + 7] for i in range(0, len(content), 7)]
        events: list[Any] = [{"choices": [{"delta": {"content": piece}}]} for piece in pieces]
        events.append({"choices": [{"delta": {}, "finish_reason": "stop"}]})
        events.append({"choices": [], **told})
        lines = [f"data: {json.dumps(event)}\n\n" for event in events]
        return _send(http, "".join([*lines, "data: [DONE]\n\n"]).encode(), "text/event-stream")


def _fail(http: BaseHTTPRequestHandler, fault: str, headers: dict[str, str]) -> None:
    if fault.isdigit():
        # A careless server says the key back.
        _send_error(http, int(fault), "fault", f"no luck with Bearer {KEY}", headers)
    elif fault == "timeout":
        time.sleep(2.5)  # longer than the patience of the tests that ask for it
        http.close_connection = True
    elif fault == "dropped":
        http.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n")
        http.wfile.write(b'Content-Length: 500\r\n\r\n{"choices": [')
        http.close_connection = True
    elif fault == "malformed":
        _send(http, b'{"choices": [{"message": {"content": "x"')
    elif fault == "cut":  # a stream whose end is missing, in a body that is whole
        _send(http, b'data: {"choices": [{"delta": {"content": "x"}}]}\n\n', "text/event-stream")
    elif fault == "error event":
        _send(http, b'data: {"error": {"message": "overloaded"}}\n\n', "text/event-stream")
    elif fault == "huge":
        message = {"role": "assistant", "content": "x" * 20_000_000}
        choice = {"message": message, "finish_reason": "stop"}
        _send(http, json.dumps({"choices": [choice]}).encode())
    else:
        raise AssertionError(fault)


def _send(
    http: BaseHTTPRequestHandler,
    content: bytes,
    kind: str = "application/json",
    status: int = 200,
    headers: dict[str, str] | None = None,
) -> None:
    http.send_response(status)
    for name, value in {"Content-Type": kind, **(headers or {})}.items():
        http.send_header(name, value)
    http.send_header("Content-Length", str(len(content)))
    http.end_headers()
    http.wfile.write(content)


def _send_error(
    http: BaseHTTPRequestHandler,
    status: int,
    code: str,
    message: str,
    headers: dict[str, str] | None = None,
) -> None:
    error = {"error": {"code": code, "message": message}}
    _send(http, json.dumps(error).encode(), status=status, headers=headers)
