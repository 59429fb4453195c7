"""Search over an output's embeddings from the command line, with the workload's own embedder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.outputs import launched_with
from flows.tables import Row
from flows.words import shortened
from schemas.backends import EmbedderBackend
from schemas.errors import ConfigurationError
from schemas.load import LoadedWorkload, load_workload
from schemas.routes import Route

_MAX_CELL = 60


@dataclass(frozen=True, slots=True)
class Found:
    """A document that was found. `score` is the cosine, `columns` what the output copied of it."""

    document_id: str
    score: float
    columns: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return {"document_id": self.document_id, "score": self.score, "columns": self.columns}

    def row(self) -> Row:
        """As a row of a table for people."""
        shown = {name: shortened(str(value), _MAX_CELL) for name, value in self.columns.items()}
        return {"score": f"{self.score:.3f}", "document": shortened(self.document_id, _MAX_CELL), **shown}


Search = Callable[[str, int], list[Found]]


def open_search(output: str, route: str | None = None) -> Search:
    """A search over an embed route of an output: (text, how many) → documents, nearest first.

    The embedder is opened once, so that several searches don't pay for it again.

    Raises:
        ConfigurationError: no output of ours, no such route, or its model can't be used.
    """
    parameters = launched_with(output)
    loaded = load_workload(Path(parameters.workload))
    chosen = _embed_route(loaded, route)
    backend = local_backend(loaded, chosen)

    from transforms.embed.embedder import open_embedder
    from transforms.search import search

    embedder = open_embedder(backend, base_dir=loaded.base_dir).for_queries()
    columns = loaded.workload.output.columns

    def run(query: str, k: int) -> list[Found]:
        hits = search(output, chosen.name, query, embedder, k, columns)
        return [Found(hit.document_id, hit.score, dict(hit.columns)) for hit in hits]

    return run


def local_backend(loaded: LoadedWorkload, route: Route) -> EmbedderBackend:
    """The embedder of a route; ConfigurationError when its vectors are a hosted model's."""
    backend = loaded.workload.backends[route.chains[0].backends[0]]
    if isinstance(backend, EmbedderBackend):
        return backend
    raise ConfigurationError(
        f"the vectors of route {route.name!r} are those of {backend.provider} {backend.model}: a query would "
        f"have to be sent there and paid. Search them with your own client, or embed the documents with a "
        f"model that runs here"
    )


def _embed_route(loaded: LoadedWorkload, name: str | None) -> Route:
    embed_routes = {r.name: r for r in loaded.workload.routes if loaded.workload.is_embed_route(r)}
    local = [route for route in embed_routes.values() if loaded.workload.is_local_route(route)]
    candidates = local or list(embed_routes.values())
    if name is None and len(candidates) == 1:
        return candidates[0]
    if name in embed_routes:
        return embed_routes[name]
    allowed = ", ".join(embed_routes) or "(the workload has none)"
    asked = "no route was named" if name is None else f"{name!r} is no embed route"
    raise ConfigurationError(f"{asked}: choose with --route one of: {allowed}")
