"""A local HTTP server that speaks the OpenAI chat-completions protocol and misbehaves on request.

`with Server(answer) as server:`, then point a client at `server.url`. `answer(body)` gives the
reply's text. Each entry of `server.faults` spoils one request, in order of arrival:
  429 or 429:SECONDS  refuse, with Retry-After      500, 401, 404   refuse with that status
  hang:SECONDS        say nothing for so long       reset           close the connection without a
  reply half                promise more bytes than come  truncated       a complete reply, its JSON
  cut short empty               a reply without choices       null            a reply whose content
  is null text:SOMETHING      this instead of the answer    no_usage        a reply without token
  counts echo                a refusal that repeats the Authorization header unsupported:NAME    400
  whenever the request has that setting; not used up

It also keeps /files and /batches. A batch ends after `batch_polls` looks; entries of `batch_ends`
say how, one a batch:
  completed           every request has its line        half                every other request in
  the error file (500) expired:N           only N requests were run          missing:N           the
  last N requests have no line at all refused:N           the last N were refused (400)     failed
  refused whole
Entries of `batch_faults`, WHERE:WHAT, spoil one call each; WHERE is file, create, list, poll or
content, WHAT is reset (done on the server, no reply), hang:SECONDS (likewise, late), 500 (not done)
or half (more bytes promised than come).
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
    """Records `requests` (path, body, key, arrival time), counts `replies` (200s fully sent)."""

    def __init__(
        self,
        answer: Callable[[dict], str] = lambda body: "hello",
        faults: list[str] = (),
        delay_s: float = 0.0,
    ):
        self.answer, self.faults, self.delay_s = answer, list(faults), delay_s
        self.requests: list[dict] = []
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, dict] = {}
        self.batch_polls, self.batch_ends, self.batch_faults = 1, [], []
        self.answered: list[str] = []  # custom ids that batches ran and would charge for
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

    def batch_fault(self, where: str) -> str:
        with self.lock:
            for fault in self.batch_faults:
                if fault.startswith(f"{where}:"):
                    self.batch_faults.remove(fault)
                    return fault.partition(":")[2]
        return ""

    def run_batch(self, batch: dict) -> None:
        """Answer the requests of a batch and write its output and error file."""
        end, _, count = (self.batch_ends.pop(0) if self.batch_ends else "completed").partition(":")
        lines = [
            json.loads(line)
            for line in self.files[batch["input_file_id"]].decode().split("\n")
            if line
        ]
        good, bad = lines, []
        if end == "failed":
            batch["errors"] = {
                "object": "list",
                "data": [{"code": "invalid", "message": "told to refuse the batch"}],
            }
            batch["status"] = "failed"
            return
        if end == "half":
            good, bad = lines[::2], [(line, 500, None) for line in lines[1::2]]
        elif end == "expired":
            good, bad = (
                lines[: int(count)],
                [(line, 0, "batch_expired") for line in lines[int(count) :]],
            )
        elif end == "refused":
            good, bad = lines[: -int(count)], [(line, 400, None) for line in lines[-int(count) :]]
        elif end == "missing":
            good = lines[: -int(count)]
        out = []
        for line in reversed(good):  # in any order, as the real one
            self.answered.append(line["custom_id"])
            body = {"status_code": 200, "body": completion(self, line["body"])}
            out.append({"id": "r", "custom_id": line["custom_id"], "response": body, "error": None})
        errors = [
            {
                "id": "e",
                "custom_id": line["custom_id"],
                "error": {"code": code, "message": "x"} if code else None,
                "response": (
                    {"status_code": status, "body": {"error": {"message": f"told to say {status}"}}}
                    if status
                    else None
                ),
            }
            for line, status, code in bad
        ]
        for name, found in (("output_file_id", out), ("error_file_id", errors)):
            if found:
                batch[name] = f"file-{len(self.files)}"
                self.files[batch[name]] = "\n".join(json.dumps(line) for line in found).encode()
        batch["status"] = "expired" if end == "expired" else "completed"
        batch["request_counts"] = {
            "total": len(lines),
            "completed": len(out),
            "failed": len(errors),
        }

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


def completion(server: Server, body: dict, fault: str = "", detail: str = "") -> dict:
    """The reply to a chat request, as JSON."""
    text = detail if fault == "text" else None if fault == "null" else server.answer(body)
    prompt = " ".join(message["content"] for message in body["messages"])
    usage = {"prompt_tokens": tokens(prompt), "completion_tokens": tokens(text or "")}
    choice = {
        "index": 0,
        "finish_reason": "stop",
        "message": {"role": "assistant", "content": text},
    }
    reply = {
        "id": "x",
        "object": "chat.completion",
        "created": 0,
        "model": body["model"] + "-local",
        "choices": [] if fault == "empty" else [choice],
        "usage": usage,
    }
    return {k: v for k, v in reply.items() if k != "usage"} if fault == "no_usage" else reply


def _handler(server: Server):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def do_GET(self):
            path = self.path.split("?")[0].removeprefix("/v1")
            found = re.fullmatch(r"/files/([\w-]+)/content", path)
            if found:
                self.kept("content", lambda: server.files[found[1]])
            elif path == "/batches":
                self.kept(
                    "list",
                    lambda: {
                        "object": "list",
                        "has_more": False,
                        "data": list(server.batches.values()),
                    },
                )
            else:
                self.kept("poll", lambda: self.poll(server.batches[path.rsplit("/", 1)[1]]))

        def poll(self, batch: dict) -> dict:
            batch["looks"] += 1
            if batch["looks"] > server.batch_polls and batch["status"] == "in_progress":
                server.run_batch(batch)
            return batch

        def kept(self, where: str, act):
            """Do `act` and send what it returns, unless a fault is due."""
            fault, _, detail = server.batch_fault(where).partition(":")
            try:
                if fault == "500":
                    self.send(500, {"error": {"message": "told to say 500"}})
                    return
                value = act()
                if fault == "hang":
                    time.sleep(float(detail))
                if fault == "reset":
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)
                else:
                    self.send(200, value, fault=fault)
            except (BrokenPipeError, ConnectionResetError):
                pass

        def do_POST(self):
            raw = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path.endswith("/files"):
                self.kept("file", lambda: self.keep_file(raw))
                return
            body = json.loads(raw)
            if self.path.endswith("/batches"):
                self.kept("create", lambda: self.make_batch(body))
                return
            key = self.headers.get("Authorization", "")
            with server.lock:
                server.requests.append(
                    {"path": self.path, "body": body, "key": key, "time": time.time()}
                )
                server.now += 1
                server.peak = max(server.peak, server.now)
            try:
                self.reply(body, key, *(server.next_fault(body) + ":").split(":")[:2])
            except (BrokenPipeError, ConnectionResetError):
                pass  # the client has given up
            finally:
                with server.lock:
                    server.now -= 1

        def keep_file(self, raw: bytes) -> dict:
            boundary = self.headers["Content-Type"].split("boundary=")[1].encode()
            parts = [part.split(b"\r\n\r\n", 1) for part in raw.split(b"--" + boundary)[1:-1]]
            data = next(body for head, body in parts if b'name="file"' in head).removesuffix(
                b"\r\n"
            )
            name = f"file-{len(server.files)}"
            server.files[name] = data
            return {
                "id": name,
                "object": "file",
                "bytes": len(data),
                "created_at": 0,
                "filename": "x.jsonl",
                "purpose": "batch",
                "status": "processed",
            }

        def make_batch(self, body: dict) -> dict:
            name = f"batch-{len(server.batches)}"
            server.batches[name] = {
                "id": name,
                "object": "batch",
                "endpoint": body["endpoint"],
                "input_file_id": body["input_file_id"],
                "completion_window": body["completion_window"],
                "status": "in_progress",
                "created_at": 0,
                "looks": 0,
                "metadata": body.get("metadata"),
            }
            return server.batches[name]

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
                self.send(200, completion(server, body, fault, detail), fault=fault)

        def send(
            self, status: int, value: dict | bytes, headers: dict | None = None, fault: str = ""
        ):
            data = value if isinstance(value, bytes) else json.dumps(value).encode()
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
