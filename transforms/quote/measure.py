"""How large a document is on its route: the rendered request, or the text's tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment

from schemas.ids import canonical_json
from schemas.outcomes import Assignment
from schemas.workload import EmbedderBackend, Route, Workload
from transforms.call.request import CallRequest
from transforms.call.site import CODECS
from transforms.call.wire import encode
from transforms.embed.model_files import describe_model
from transforms.embed.tokenization import TextTokenizer
from transforms.prompt import CompiledPrompt, compile_prompt
from transforms.quote.sampling import Measured

MOST_KEPT = 256
_PRINTED = Environment(keep_trailing_newline=True, autoescape=False)  # noqa: S701 - only lexed, never rendered


@dataclass(frozen=True, slots=True)
class RequestSizes:
    """Renders a route's real requests, as the call engine would send them, and keeps their sizes.

    Without a prompt (hosted embeddings) the text itself is what is sent.
    """

    workload: Workload
    prompt: CompiledPrompt | None

    def __call__(
        self, chains: Sequence[tuple[str, ...]], rows: Sequence[Mapping[str, Any]]
    ) -> list[Measured | None]:
        """Sizes of each row's request; None where the template fails or JSON can't carry the text."""
        return [self._one(chain, row) for chain, row in zip(chains, rows, strict=True)]

    def _one(self, chain: tuple[str, ...], row: Mapping[str, Any]) -> Measured | None:
        try:
            request = self._request(chain, row)
            size = self.fixed_bytes + len(request.prompt.encode())
            bodies = tuple(self._body_bytes(name, request) for name in chain)
            return Measured(chain, size, bodies)
        except ValueError:  # the template fails on this row, or JSON can't carry the text
            return None

    def _request(self, chain: tuple[str, ...], row: Mapping[str, Any]) -> CallRequest:
        assignment = Assignment(0, "", "", chain, None)
        if self.prompt is None:
            return CallRequest(assignment, "", row[self.workload.input.text], None, "", "")
        prompt = self.prompt.prompt
        return CallRequest(assignment, prompt.system, self.prompt.render(row), prompt.json_schema, "", "")

    @property
    def fixed_bytes(self) -> int:
        """Bytes of what is the same in every request: system text and JSON Schema."""
        if self.prompt is None:
            return 0
        prompt = self.prompt.prompt
        schema = len(canonical_json(prompt.json_schema)) if prompt.json_schema else 0
        return len(prompt.system.encode()) + schema

    @property
    def shared_bytes(self) -> int:
        """Bytes at its beginning that every request shares: system text, then the template's head."""
        if self.prompt is None:
            return 0
        head = ""
        for _, token, value in _PRINTED.lex(self.prompt.prompt.template):
            if token != "data":  # noqa: S105 - a kind of token in a template
                break
            head += value
        return len((self.prompt.prompt.system + head).encode())

    def _body_bytes(self, name: str, request: CallRequest) -> int:
        backend = self.workload.hosted_backends()[name]
        codec = CODECS[backend.provider]
        return len(encode(codec, backend, request, codec.default_base_url, "live").wire.body)


@dataclass(frozen=True, slots=True)
class TextTokens:
    """Counts a text's tokens with the model's own tokenizer, cut at its maximum length.

    Keeps the first `MOST_KEPT` texts, to calibrate with.
    """

    tokenizer: TextTokenizer
    column: str
    kept: list[str] = field(default_factory=list)

    def __call__(
        self, chains: Sequence[tuple[str, ...]], rows: Sequence[Mapping[str, Any]]
    ) -> list[Measured | None]:
        """Tokens of each row's text; None where it can't be tokenised."""
        texts = [row[self.column] for row in rows]
        self.kept.extend(texts[: MOST_KEPT - len(self.kept)] if len(self.kept) < MOST_KEPT else ())
        tokens = self.tokenizer.encode(texts)
        lengths = tokens.lengths.tolist()
        return [
            None if i in tokens.errors else Measured(chain, tokens=lengths[i])
            for i, chain in enumerate(chains)
        ]


def measure_for(workload: Workload, route: Route, base_dir: Path) -> RequestSizes | TextTokens:
    """What measures a route's documents.

    Raises:
        ModelError: an embed route's model can't be used.
    """
    backend = workload.backends[route.chains[0].backends[0]]
    if isinstance(backend, EmbedderBackend):
        model = describe_model(backend, base_dir)
        tokenizer = TextTokenizer(model.tokenizer, model.max_length, model.prompt, model.lowercase)
        return TextTokens(tokenizer, workload.input.text)
    prompt = None if route.prompt is None else compile_prompt(route.prompt, workload.prompts[route.prompt])
    return RequestSizes(workload, prompt)
