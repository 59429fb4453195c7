"""How large a document is on its route: the rendered request, or the text's tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from decimal import Decimal
from pathlib import Path

import pyarrow as pa

from schemas.backends import EmbedderBackend
from schemas.ids import canonical_json
from schemas.outcomes import Assignment
from schemas.routes import Route
from schemas.workload import Workload
from transforms.call.codecs import base_url_of
from transforms.call.ports import SystemClock
from transforms.call.request import CallRequest
from transforms.call.site import Site, build_sites, place_of
from transforms.call.wire import EncodedRequest
from transforms.embed.model_files import describe_model
from transforms.embed.tokenization import TextTokenizer
from transforms.price import PriceBook
from transforms.prompt import CompiledPrompt, compile_prompt
from transforms.quote.sampling import Measured
from transforms.requests import prompt_request, prompt_rows, text_request

COMPLAINT_BYTES = 4096
"""Bound on what is added to an answer that is sent back: what is wrong with it, and the plea."""
MOST_KEPT = 256


@dataclass(frozen=True, slots=True)
class RequestSizes:
    """Makes a route's real requests, as the call engine would send them, and keeps their sizes.

    Without a prompt (hosted embeddings) the text itself is what is sent. Worst cases are the engine's
    own, at the prices in force at `at`.
    """

    text_column: str
    prompt: CompiledPrompt | None
    sites: Mapping[str, Site]
    at: datetime

    def __call__(
        self, chains: Sequence[tuple[str, ...]], table: pa.Table, positions: Sequence[int]
    ) -> list[Measured | None]:
        """Sizes of the requests for some rows; None where no request can be made of one."""
        requests = self._requests(chains, table, positions)
        return [None if request is None else self._measured(request) for request in requests]

    def _requests(
        self, chains: Sequence[tuple[str, ...]], table: pa.Table, positions: Sequence[int]
    ) -> list[CallRequest | None]:
        assignments = [Assignment(0, "", "", chain, None) for chain in chains]
        if self.prompt is None:
            texts = table.column(self.text_column).take(pa.array(positions, pa.int64())).to_pylist()
            return [text_request(text, "", a) for text, a in zip(texts, assignments, strict=True)]
        rows = prompt_rows(table, positions, self.prompt)
        return [self._request(row, a) for row, a in zip(rows, assignments, strict=True)]

    def _request(self, row: dict[str, object] | None, assignment: Assignment) -> CallRequest | None:
        assert self.prompt is not None
        try:
            return prompt_request(self.prompt, "", assignment, row, len(self.prompt.head))
        except ValueError:  # the template fails on this row
            return None

    def _measured(self, request: CallRequest) -> Measured | None:
        chain = request.assignment.chain
        try:
            encoded = [self.sites[name].encode(request) for name in chain]
        except ValueError:  # JSON can't carry the text
            return None
        worst = tuple(
            self._worst(self.sites[name], sent, request.repair)
            for name, sent in zip(chain, encoded, strict=True)
        )
        bodies = tuple(len(sent.wire.body) for sent in encoded)
        size = self.fixed_bytes + len(request.prompt.encode())
        return Measured(chain, size, bodies, worst, request=encoded[0].sha256)

    def _worst(self, site: Site, sent: EncodedRequest, repair: bool) -> Decimal | None:
        """What the budget reserves for a document; an answer that may be sent back is a second call."""
        first = site.worst_case(sent, self.at)
        if first is None or not repair:
            return first
        longer = bytes(len(sent.wire.body) + site.backend.max_output_tokens + COMPLAINT_BYTES)
        again = site.worst_case(replace(sent, wire=replace(sent.wire, body=longer)), self.at)
        return None if again is None else first + again

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
        return 0 if self.prompt is None else len((self.prompt.prompt.system + self.prompt.head).encode())


@dataclass(frozen=True, slots=True)
class TextTokens:
    """Counts a text's tokens with the model's own tokenizer, cut or chunked as the backend says.

    Keeps the first `MOST_KEPT` texts, to calibrate with, and counts all texts (chunks) by their tokens.
    """

    text_column: str
    tokenizer: TextTokenizer
    kept: list[str] = field(default_factory=list)
    lengths: Counter[int] = field(default_factory=Counter)

    def __call__(
        self, chains: Sequence[tuple[str, ...]], table: pa.Table, positions: Sequence[int]
    ) -> list[Measured | None]:
        """Tokens of some rows' texts; None where one can't be tokenised."""
        texts = table.column(self.text_column).take(pa.array(positions, pa.int64())).to_pylist()
        self.kept.extend(texts[: max(0, MOST_KEPT - len(self.kept))])
        tokens = self.tokenizer.encode(texts)
        counts = tokens.token_counts.tolist()
        self.lengths.update(tokens.lengths.tolist())
        return [
            None if i in tokens.errors else Measured(chain, tokens=counts[i])
            for i, chain in enumerate(chains)
        ]


def keyless_sites(workload: Workload, book: PriceBook) -> dict[str, Site]:
    """The hosted backends, ready to encode and to price but not to be called: without keys.

    Raises:
        ConfigurationError: a backend's address is none that may be called.
    """
    backends = workload.hosted_backends()
    places = {name: place_of(name, base_url_of(backend), None) for name, backend in backends.items()}
    return build_sites(backends, places, SystemClock(), book, rehearsal=False)


def measure_for(
    workload: Workload, route: Route, base_dir: Path, sites: Mapping[str, Site], at: datetime
) -> RequestSizes | TextTokens:
    """What measures a route's documents.

    Raises:
        ModelError: an embed route's model can't be used.
    """
    backend = workload.backends[route.chains[0].backends[0]]
    column = workload.input.text
    if isinstance(backend, EmbedderBackend):
        model = describe_model(backend, base_dir)
        overlap = backend.chunk_overlap if backend.long_documents == "chunk" else None
        tokenizer = TextTokenizer(model.tokenizer, model.max_length, model.prompt, model.lowercase, overlap)
        return TextTokens(column, tokenizer)
    prompt = None if route.prompt is None else compile_prompt(route.prompt, workload.prompts[route.prompt])
    return RequestSizes(column, prompt, sites, at)
