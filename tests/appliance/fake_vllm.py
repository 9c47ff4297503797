"""Runs as vLLM's API server does, with nothing behind it: ``-m vllm.entrypoints.openai.api_server …``, a worker process, adapters by name.

An answer is "NAME: " and the question's words, or what the question tells it to do: CRASH ends it after the first word. The files
`broken`, `hung` and `sick` in the model's folder make it end at once, answer nothing, and say that it is not well.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar


def _option(name: str) -> str:
    return sys.argv[sys.argv.index(name) + 1]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    adapters: ClassVar[dict[str, str]] = {}

    def log_message(self, *_: object) -> None:
        """Nothing."""

    def do_GET(self) -> None:
        while (MODEL / "hung").exists():
            time.sleep(0.05)
        if self.path == "/health":
            self._send(503 if (MODEL / "sick").exists() else 200, {})
        elif self.headers.get("Authorization") != f"Bearer {os.environ['VLLM_API_KEY']}":
            self._send(401, {"error": "Unauthorized"})
        else:
            self._send(200, {"data": [{"id": name} for name in (_option("--served-model-name"), *self.adapters)]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/tokenize":
            self._send(200, {"count": sum(len(message["content"].split()) for message in body["messages"])})
        elif self.path == "/v1/load_lora_adapter":
            self._load(body["lora_name"], Path(body["lora_path"]))
        elif self.path == "/v1/unload_lora_adapter":
            known = self.adapters.pop(body["lora_name"], None)
            self._send(200 if known else 404, {"error": {"message": "removed" if known else "cannot be found"}})
        else:
            self._chat(body)

    def _load(self, name: str, path: Path) -> None:
        if name in self.adapters:
            self._send(400, {"error": {"message": f"The lora adapter '{name}' has already been loaded."}})
        elif not path.is_absolute() or not (path / "adapter_config.json").is_file():
            self._send(404, {"error": {"message": f"No adapter found for {path}"}})
        elif (path / "refuse").exists():
            self._send(500, {"error": {"message": "Call to add_lora method failed"}})
        else:
            self.adapters[name] = str(path)
            self._send(200, {})

    def _chat(self, body: dict[str, Any]) -> None:
        if body["model"] not in (_option("--served-model-name"), *self.adapters):
            self._send(404, {"error": {"message": f"The model `{body['model']}` does not exist."}})
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        words = [f"{body['model']}:", *body["messages"][-1]["content"].split()]
        for word in words:
            self._event({"choices": [{"index": 0, "delta": {"content": f"{word} "}, "finish_reason": None}]})
            if "CRASH" in words:
                os._exit(1)
        self._event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        self._event({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": len(words)}})
        self.wfile.write(b"data: [DONE]\n\n")
        self.close_connection = True

    def _event(self, data: dict[str, Any]) -> None:
        self.wfile.write(b"data: " + json.dumps(data, ensure_ascii=False).encode() + b"\n\n")
        self.wfile.flush()

    def _send(self, status: int, data: dict[str, Any]) -> None:
        content = json.dumps(data).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


class Server(ThreadingHTTPServer):
    # As many as connect at once; the default of 5 loses some.
    request_queue_size = 128


def write_python(path: Path) -> Path:
    """A program in place of the Python of vLLM's environment."""
    path.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S {__file__} "$@"\n', "utf-8")
    path.chmod(0o755)
    return path


if __name__ == "__main__":
    MODEL = Path(_option("--model"))
    if (MODEL / "broken").exists():
        sys.exit("this model cannot be loaded")
    # What vLLM's EngineCore and Worker are: a process that outlives a killed server.
    subprocess.Popen([sys.executable, "-I", "-S", "-c", "import time; time.sleep(600)", "worker of", str(MODEL)])
    Server(("127.0.0.1", int(_option("--port"))), Handler).serve_forever()
