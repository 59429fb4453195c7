"""The workload: what to read, where to send it, under which rules, at what price at most.

One TOML file, checked as a whole by pydantic; unknown keys are errors. `schemas.load` reads it and
turns what pydantic finds into errors that name the file, the key path, the value and what is allowed.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from schemas.backends import Backend, EmbedderBackend, HostedBackend
from schemas.budget import Budget, Review
from schemas.ids import canonical_json, sha256_hex
from schemas.limits import Limits
from schemas.rehearsal import Rehearsal
from schemas.routes import Policy, Prompt, Route
from schemas.sections import Name, Section


class Input(Section):
    """Which documents to read."""

    uri: str = Field(min_length=1, description="a folder, a file or a glob; relative to the workload file")
    id: str = Field(min_length=1, description="column of the document id")
    text: str = Field(min_length=1, description="column of the text (string)")
    columns: tuple[str, ...] = Field((), description="further columns that expressions and prompts use")
    filter: str | None = Field(None, description="SQL expression; rows for which it is not true are skipped")
    unique_ids: Literal["run", "batch"] = Field(
        "run", description="where ids must be unique: in the whole input, or only inside a batch"
    )
    max_text_chars: int = Field(1_000_000, ge=1, description="a longer text is a failure")
    unreadable_files: Literal["fail", "skip"] = Field(
        "fail", description="a file that is no readable Parquet stops the run, or is skipped and listed"
    )

    @property
    def needed_columns(self) -> tuple[str, ...]:
        """Every column that is read, once each, the id first and the text second."""
        return tuple(dict.fromkeys((self.id, self.text, *self.columns)))


class Output(Section):
    """Where results go, and which input columns go along."""

    uri: str = Field(min_length=1, description="a folder; relative to the workload file")
    columns: tuple[str, ...] = Field((), description="input columns that are copied into the results")
    compression: Literal["zstd", "snappy", "none"] = Field("zstd", description="of the Parquet parts")


class Workload(Section):
    """One workload file."""

    name: Name = Field(description="of the workload, in reports")
    match: Literal["first", "all"] = Field(
        "first", description="a document goes to the first route that matches, or to all"
    )
    input: Input
    routes: tuple[Route, ...] = Field(min_length=1)
    backends: dict[Name, Backend] = Field(min_length=1)
    prompts: dict[Name, Prompt] = Field(default_factory=dict)
    policy: Policy = Policy()
    budget: Budget = Budget()
    review: Review = Review()
    output: Output
    limits: Limits = Limits()
    rehearsal: Rehearsal = Rehearsal()

    def digest(self) -> str:
        """Digest of all that decides the answers and how the input is cut; 64 hexadecimal digits.

        Budget, review, prices, times, concurrency and the addresses of input and output are left out: a
        raised cap or a moved folder is the same workload. `batch_rows` and `batch_bytes` are in it,
        because with other batches nothing that is committed would be found again. A key that is newer
        than the first release counts only where it is not at its default.
        """
        content = self.model_dump(mode="json", exclude={"budget", "review", "limits", "output", "rehearsal"})
        content["input"].pop("uri")
        content["input"].pop("unreadable_files")
        content["output_columns"] = list(self.output.columns)
        content["batches"] = [self.limits.batch_rows, self.limits.batch_bytes]
        for route in content["routes"]:
            route.pop("share")
        for backend in content["backends"].values():
            for key in _NO_PART_OF_THE_ANSWER:
                backend.pop(key, None)
            kind = EmbedderBackend if backend["provider"] == "jax" else HostedBackend
            _drop_defaults(backend, kind, _NEWER_BACKEND_KEYS)
        for prompt in content["prompts"].values():
            _drop_defaults(prompt, Prompt, ("repair",))
        return sha256_hex(canonical_json(content))

    def shares(self) -> dict[str, int]:
        """The weights of the routes where they wait for the same lane."""
        return {route.name: route.share for route in self.routes}

    def hosted_backends(self) -> dict[str, HostedBackend]:
        """The hosted backends by name."""
        return {n: b for n, b in self.backends.items() if isinstance(b, HostedBackend)}

    def embedder_backends(self) -> dict[str, EmbedderBackend]:
        """The JAX embedders by name."""
        return {n: b for n, b in self.backends.items() if isinstance(b, EmbedderBackend)}

    def route(self, name: str) -> Route:
        """The route of that name; KeyError if there is none."""
        for route in self.routes:
            if route.name == name:
                return route
        raise KeyError(name)

    def is_embed_route(self, route: Route) -> bool:
        """Whether the route's results are vectors, of an embedder here or of a hosted model."""
        return self.is_local_route(route) or self.hosted_embeddings(route) is not None

    def is_local_route(self, route: Route) -> bool:
        """Whether the route's documents go to an embedder here (a chain is all hosted or all embedder)."""
        return isinstance(self.backends[route.chains[0].backends[0]], EmbedderBackend)

    def hosted_embeddings(self, route: Route) -> HostedBackend | None:
        """The hosted backend that makes the route's vectors; None when they are no hosted model's."""
        backend = self.backends[route.chains[0].backends[0]]
        return backend if isinstance(backend, HostedBackend) and backend.operation == "embeddings" else None


_NO_PART_OF_THE_ANSWER = (
    "price",
    "price_per_device_hour",
    "device_watts",
    "tensor_parallel",
    "step_tokens",
    "max_in_flight",
    "requests_per_minute",
    "tokens_per_minute",
    "mode",
    "batch_bucket",
    "api_key_env",
    "project",
    "prompt_caching",
    "query_prefix",
)
_NEWER_BACKEND_KEYS = (
    *("platform", "operation", "location", "dimensions", "send_dimensions"),
    *("prompt_name", "prefix", "long_documents", "chunk_overlap"),
)


def _drop_defaults(section: dict[str, Any], model: type[Section], keys: tuple[str, ...]) -> None:
    for key in keys:
        if key in section and section[key] == model.model_fields[key].default:
            del section[key]
