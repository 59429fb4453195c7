"""One vector space per route of an output: vectors of two spaces look alike and can't be compared."""

from __future__ import annotations

import json

from schemas.errors import OutputError
from schemas.ids import canonical_json
from transforms.store import Store


def space_path(route: str) -> str:
    """Name of the record of a route's vector space."""
    return f"spaces/{route}.json"


def guard_space(store: Store, route: str, fingerprint: str, description: str) -> None:
    """Claim a route's vector space for an output, or make sure that it is the one it has.

    The first worker that embeds for the route creates the record; the space of a machine can differ
    from that of another (`compute_dtype = "auto"` follows the hardware), and then it is refused.

    Raises:
        OutputError: the output's vectors of that route live in another space.
    """
    record = {"fingerprint": fingerprint, "description": description}
    if store.create(space_path(route), canonical_json(record)):
        return
    found = json.loads(store.read(space_path(route)))
    if found["fingerprint"] != fingerprint:
        raise OutputError(
            f"route {route!r} of {store.root} holds vectors of {found['description']}; this process would "
            f"add vectors of {description}. They can't be compared: give a new output folder, or the same "
            "model files and the same compute_dtype as before"
        )
