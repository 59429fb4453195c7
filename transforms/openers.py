"""How a worker's parts that cost money or seconds are opened: its call engine and its embedders.

What they are made of (HTTP clients, JAX) is imported when the first one is opened.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

from schemas.backends import EmbedderBackend
from schemas.lengths import TextLengths
from schemas.run import RunContext
from schemas.workload import Workload
from transforms.managed_secrets import keys_for

if TYPE_CHECKING:
    from transforms.call.engine import CallEngine
    from transforms.embed.embeddings import TextEmbedder


@dataclass
class Openers:
    """How the parts that cost money or seconds are opened; others can be handed in instead.

    `shares_embedder` says that other processes of this machine need the same embedders.
    """

    shares_embedder: bool = field(default=False, kw_only=True)

    def engine(self, workload: Workload, run: RunContext, budget_limit: Decimal | None) -> CallEngine:
        """A call engine for the workload's hosted backends."""
        from transforms.call.engine import open_call_engine

        keys = keys_for(run.secret_project)
        return open_call_engine(workload, run, budget_limit=budget_limit, environ=keys)

    def embedder(
        self, backend: EmbedderBackend, base_dir: Path, lengths: TextLengths | None = None
    ) -> TextEmbedder:
        """An embedder: this process's own with its weights loaded, or that of the machine."""
        if self.shares_embedder:
            from transforms.embed.shared import share_embedder

            return share_embedder(backend, base_dir=base_dir, lengths=lengths)
        from transforms.embed.embedder import open_embedder

        return open_embedder(backend, base_dir=base_dir, lengths=lengths)
