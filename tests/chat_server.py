"""Local HTTP servers that stand for OpenAI-compatible endpoints, well-behaved or not."""

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from rass_core.models.chat_client import Endpoint
from rass_core.models.settings import EndpointConfig

KEY_VARIABLE = "RASS_TEST_KEY"


@dataclass(frozen=True)
class Reply:
    """What a server sends back."""

    body: str | bytes
    status: int = 200
    content_type: str = "application/json"
    after_s: float = 0.0
    """Silence before it."""
    dribble_s: float = 0.0
    """Spaces are sent before the body for so long, as proxies do to keep a connection open."""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Served:
    """A running server and what it was asked."""

    url: str
    requests: list[dict[str, Any]] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    """Lines of the endpoints that ask it."""

    def endpoint(self, **settings: Any) -> Endpoint:
        config = {
            "base_url": self.url, "model": "judge", "api_key_variable": KEY_VARIABLE, "timeout_s": 20,
            "max_concurrency": 4, "outage_s": 3, **settings,
        }  # fmt: skip
        return Endpoint(EndpointConfig(**config), self.said.append)


def asked(request: dict[str, Any]) -> str:
    """Return the prompt of a request."""
    return str(request["messages"][0]["content"])


def chat(content: Any, finish_reason: str = "stop", **message: Any) -> Reply:
    """Return a chat completion."""
    choice = {
        "index": 0,
        "finish_reason": finish_reason,
        "message": {"role": "assistant", "content": content, **message},
    }
    body = {"id": "1", "object": "chat.completion", "created": 0, "model": "judge", "choices": [choice]}
    return Reply(json.dumps(body))


def error(status: int, message: str, **fields: Any) -> Reply:
    """Return an error as servers of the OpenAI kind word it."""
    return Reply(json.dumps({"error": {"message": message, **fields}}), status)


def form(outcome: str, reason: str = "because", confidence: Any = 90) -> str:
    """Return a filled-in form."""
    return json.dumps({"reason": reason, "outcome": outcome, "confidence": confidence})


@contextmanager
def server(reply: Callable[[dict[str, Any]], Reply], port: int = 0) -> Iterator[Served]:
    """Run a real HTTP server that answers each request's JSON with a reply."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked = {"path": self.path, "authorization": self.headers["Authorization"], **body}
            served.requests.append(asked)
            answer = reply(asked)
            time.sleep(answer.after_s)
            with suppress(OSError):  # the client has hung up, as it should where the reply is slow
                self._send(answer)

        def _send(self, answer: Reply) -> None:
            data = answer.body.encode() if isinstance(answer.body, str) else answer.body
            n_spaces = int(answer.dribble_s / 0.05)
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.content_type)
            self.send_header("Content-Length", str(len(data) + n_spaces))
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.end_headers()
            for _ in range(n_spaces):
                self.wfile.write(b" ")
                self.wfile.flush()
                time.sleep(0.05)
            self.wfile.write(data)

        def log_message(self, *args: Any) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    httpd.daemon_threads, httpd.block_on_close = True, False
    served = Served(f"http://127.0.0.1:{httpd.server_port}/v1")
    thread = threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield served
    finally:
        httpd.shutdown()
        httpd.server_close()
        thread.join()
