"""A small HTTP server that judges as a rule says."""

from __future__ import annotations

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class JudgeServer:
    """Grades an answer by its length, and prefers the longer of two, or whichever comes first.

    Attributes:
        asked: bodies of the requests.
        keys: their Authorization.
        manner: how it judges: length, place, or silent.
        probes: requests for one token, which are not among `asked`.
        refuses: status and message of every answer; None: it judges.
        left: answers until it begins to refuse; None: it never does.
    """

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.manner = "length"
        self.probes = 0
        self.refuses: tuple[int, str] | None = None
        self.left: int | None = None
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if body.get("max_tokens") == 1:
                    outer.probes += 1
                elif outer.left == len(outer.asked):
                    outer.refuses = (500, "out of memory")
                if outer.refuses is None and body.get("max_tokens") != 1:
                    outer.asked.append(body)
                    outer.keys.append(self.headers["Authorization"])
                if outer.refuses is None:
                    turns = body.get("messages", [{"content": ""}])
                    said = outer.judged(turns[-1]["content"])
                    self.answer(200, {"choices": [{"message": {"role": "assistant"}}]}, said)
                else:
                    self.answer(outer.refuses[0], {"error": {"message": outer.refuses[1]}})

            def do_GET(self) -> None:
                self.answer(200, {"data": [{"id": "j"}, {"id": "k"}]})

            def answer(self, status: int, content: dict[str, Any], said: str = "") -> None:
                if said:
                    content["choices"][0]["message"]["content"] = said
                encoded = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(encoded)))
                self.end_headers()
                self.wfile.write(encoded)

            def log_message(self, *args: Any) -> None:
                """Nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def judged(self, prompt: str) -> str:
        """What it says to a prompt."""
        if self.manner == "silent":
            return "I would rather not say."
        if "[Answer" not in prompt:
            return "a"
        answers = re.findall(r"\[Answer[^\]]*\]\n(.*?)\n\[End", prompt, re.DOTALL)
        if len(answers) == 1:
            said = f"From [[1]] to [[10]], for {len(answers[0])} letters"
            return f"{said}: [[{self.grade(answers[0])}]]"
        if self.manner == "place" or len(answers[0]) > len(answers[1]):
            return "[[A]]"
        return "[[B]]" if len(answers[1]) > len(answers[0]) else "[[C]]"

    @staticmethod
    def grade(answer: str) -> int:
        """Its grade of an answer."""
        return 1 + len(answer) % 10

    def stop(self) -> None:
        """End it."""
        self._server.shutdown()
        self._server.server_close()
