"""A local HTTP server that speaks the OpenAI chat-completions protocol and misbehaves on request.

`with Server(answer) as server:`, then point a client at `server.url`. `answer(body)` gives the reply's text.
Each entry of `server.faults` spoils one request, in order of arrival:
  429 or 429:SECONDS  refuse, with Retry-After      500, 401, 404   refuse with that status
  hang:SECONDS        say nothing for so long       reset           close the connection without a reply
  half                promise more bytes than come  truncated       a complete reply, its JSON cut short
  empty               a reply without choices       null            a reply whose content is null
  text:SOMETHING      this instead of the answer    no_usage        a reply without token counts
  echo                a refusal that repeats the Authorization header
  unsupported:NAME    400 whenever the request has that setting; not used up
"""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server:
    """Records `requests` (path, body, key, arrival time) and counts `replies` (200s that were fully sent)."""

    def __init__(self, answer: Callable[[dict], str] = lambda body: "hello", faults: list[str] = (),
                 delay_s: float = 0.0):
        self.answer, self.faults, self.delay_s = answer, list(faults), delay_s
        self.requests: list[dict] = []
        self.replies = self.now = self.peak = 0
        self.lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"

    def __enter__(self) -> Server:
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._http.shutdown()
        self._http.server_close()

    def next_fault(self, body: dict) -> str:
        with self.lock:
            for fault in self.faults:
                if fault.startswith("unsupported:"):
                    if fault.split(":")[1] in body:
                        return fault
                else:
                    self.faults.remove(fault)
                    return fault
        return ""


def tokens(text: str) -> int:
    """The server's token count: words and signs."""
    return len(re.findall(r"\w+|\S", text))


def _handler(server: Server):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            key = self.headers.get("Authorization", "")
            with server.lock:
                server.requests.append({"path": self.path, "body": body, "key": key, "time": time.time()})
                server.now += 1
                server.peak = max(server.peak, server.now)
            try:
                self.reply(body, key, *(server.next_fault(body) + ":").split(":")[:2])
            except (BrokenPipeError, ConnectionResetError):
                pass  # the client has given up
            finally:
                with server.lock:
                    server.now -= 1

        def reply(self, body: dict, key: str, fault: str, detail: str):
            time.sleep(float(detail) if fault == "hang" else server.delay_s)
            if fault == "reset":
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
            elif fault in ("429", "500", "401", "404"):
                wait = {"Retry-After": detail or "0.05"}
                self.send(int(fault), {"error": {"message": f"told to say {fault}"}}, wait)
            elif fault == "echo":
                self.send(400, {"error": {"message": f"bad request with {key}"}})
            elif fault == "unsupported":
                message = f"Unsupported parameter: '{detail}' is not supported with this model."
                self.send(400, {"error": {"message": message, "param": detail}})
            else:
                self.send(200, self.completion(body, fault, detail), fault=fault)

        def completion(self, body: dict, fault: str, detail: str) -> dict:
            text = detail if fault == "text" else None if fault == "null" else server.answer(body)
            prompt = " ".join(message["content"] for message in body["messages"])
            usage = {"prompt_tokens": tokens(prompt), "completion_tokens": tokens(text or "")}
            choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
            reply = {"id": "x", "object": "chat.completion", "created": 0, "model": body["model"] + "-local",
                     "choices": [] if fault == "empty" else [choice], "usage": usage}
            return {k: v for k, v in reply.items() if k != "usage"} if fault == "no_usage" else reply

        def send(self, status: int, value: dict, headers: dict | None = None, fault: str = ""):
            data = json.dumps(value).encode()
            data = data[: len(data) // 2] if fault == "truncated" else data
            if status == 200 and fault != "half":
                with server.lock:
                    server.replies += 1
            self.send_response(status)
            own = {"Content-Type": "application/json", "Content-Length": str(len(data))}
            for name, content in {**own, **(headers or {})}.items():
                self.send_header(name, content)
            self.end_headers()
            if fault == "half":
                data, self.close_connection = data[: len(data) // 2], True
            self.wfile.write(data)

    return Handler
