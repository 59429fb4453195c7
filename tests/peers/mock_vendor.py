"""aimock, a mock of hosted model APIs that others wrote: its journal is a bill that is not ours.

How aimock 1.43 behaves, as tried:

- It speaks `POST /v1/messages` and `POST /v1/chat/completions` on one port and takes any key.
- `GET /__aimock/journal` gives every request as JSON: `path`, `headers` (keys redacted), `body` (both
  formats in the form of chat completions, system text as a message), `response.status`. It takes
  `status=`, `path=`, `limit=`, `offset=`. Bodies over 64 KiB are not kept.
- An entry is written when the answer is made, just before it is sent. With its own delay
  (`--chaos-latency`) a client that leaves in the meantime is never journaled; with answers made by
  a function, as here, it is: the vendor bills what it has done, whether or not anyone still listens.
- `--latency` only delays streamed chunks. Anthropic answers carry usage 0 unless a fixture says more.
- Its errors have the right status, type and `Retry-After`, but Anthropic's have no `request_id`.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import urllib.request
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
PROVIDE = "make peers"
_ENTRY = REPOSITORY / "build/peers/node_modules/@copilotkit/aimock/dist/index.js"
_LAUNCHER = Path(__file__).with_name("mock_vendor.mjs")


def missing() -> str | None:
    """Why the mock vendor can't be started, with the command that provides it; None if it can."""
    if shutil.which("node") is None:
        return "node is missing: install Node.js 20.15 or newer (for example: apt-get install nodejs npm)"
    if not _ENTRY.exists():
        return f"aimock is missing: {PROVIDE}"
    return None


@dataclass
class MockVendor:
    """A running aimock on loopback; every answer it gives is in its journal.

    Without a rule every prompt is answered with `{"error": ...}` and status 404, so start with
    `answer(...)`.
    """

    process: subprocess.Popen[str]
    url: str

    @classmethod
    def start(cls) -> MockVendor:
        """Start it at a random port of 127.0.0.1; it ends with this process at the latest."""
        command = ["node", str(_LAUNCHER), str(_ENTRY)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"the mock vendor ended with code {process.wait()} before it listened")
        return cls(process, json.loads(line)["url"])

    def stop(self) -> None:
        """Stop it and wait until it is gone."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()

    def base_url(self, provider: str) -> str:
        """The `base_url` of a backend of that provider; OpenAI's ends in `/v1`, Gemini's in `/v1beta`."""
        return self.url + {"openai": "/v1", "gemini": "/v1beta"}.get(provider, "")

    def answer(self, content: str | dict[str, Any] | list[Any], **more: Any) -> None:
        """Answer every prompt with `content` (JSON unless it is a string); see `rules` for `more`."""
        self.rules([self.rule(content, **more)])

    @staticmethod
    def rule(content: str | dict[str, Any] | list[Any], **more: Any) -> dict[str, Any]:
        """One rule that answers; `more` as in `rules`."""
        return {"content": content if isinstance(content, str) else json.dumps(content), **more}

    @staticmethod
    def failure(status: int, kind: str = "api_error", message: str = "mock", **more: Any) -> dict[str, Any]:
        """One rule that fails; `more` as in `rules`, and `retry_after` in seconds (429 has 1 by default)."""
        return {"error": {"status": status, "type": kind, "message": message}, **more}

    def rules(self, rules: list[dict[str, Any]]) -> None:
        """Replace all rules; the first that fits a prompt answers it.

        Keys besides those of `rule` and `failure`: `contains` (a part of the prompt), `model`, `usage`
        (input and output tokens; default: a token is 4 characters), `latency_ms` (least, most), `times`
        (how often the rule answers at most), `id` (a regular expression: what it finds in the prompt
        stands for `$ID` in the content).
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(rules) + "\n")
        self.process.stdin.flush()
        acknowledged = json.loads(self.process.stdout.readline())
        assert acknowledged == {"rules": len(rules)}

    def clear(self) -> None:
        """Empty the journal; the rules stay."""
        request = urllib.request.Request(f"{self.url}/__aimock/reset/journal", method="POST")
        with urllib.request.urlopen(request, timeout=120) as response:
            response.read()

    def journal(self, status: int | None = None) -> list[dict[str, Any]]:
        """Every request since the last `clear`, in the order in which they were answered."""
        query = "" if status is None else f"?status={status}"
        with urllib.request.urlopen(f"{self.url}/__aimock/journal{query}", timeout=120) as response:
            return json.load(response)

    def answered(self, pattern: str) -> Counter[str]:
        """How often each document was answered, by the id that `pattern` finds in the user's message.

        The whole match is the id, or the pattern's first group. Only answers with status 200 count:
        those are billed.
        """
        found: Counter[str] = Counter()
        for entry in self.journal(status=200):
            match = re.search(pattern, prompt_of(entry))
            if match is not None:
                found[match.group(1) if match.groups() else match.group(0)] += 1
        return found


def prompt_of(entry: dict[str, Any]) -> str:
    """The last user message of a journal entry; empty where the body was too large to be kept."""
    messages = [m for m in entry["body"].get("messages", ()) if m["role"] == "user"]
    content = messages[-1]["content"] if messages else ""
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
