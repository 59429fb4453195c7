"""What an earlier attempt of a batch left undone: the pairs to try again, what they cost, the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from schemas.batches import BatchRef
from schemas.outcomes import Charge, Usage
from transforms.failures import failures_left
from transforms.store import Store
from transforms.work import Prior


@dataclass(frozen=True, slots=True)
class Previous:
    """The failures of the previous attempt, in two.

    `retry` maps (row, route) to what it has cost so far; `carried` are the rows that stay failures.
    """

    retry: dict[tuple[int, str], Prior]
    carried: pa.Table


def load_previous(store: Store | None, ref: BatchRef) -> Previous | None:
    """What the batch's previous attempt left; None for a first attempt, and where there is no output yet.

    Raises:
        StoreError: see `failures_left`.
    """
    if store is None or ref.previous_attempt is None:
        return None
    table = failures_left(store, ref.batch_id, ref.previous_attempt)
    classes = pa.array(list(ref.retry_classes), pa.string())
    again = pc.or_(table.column("retryable"), pc.is_in(table.column("error_class"), value_set=classes))
    rows = table.filter(again).select(["gen_ai", "cost", "lineage"]).to_pylist()
    retry = {(row["lineage"]["source"]["row"], row["lineage"]["route"] or ""): _prior(row) for row in rows}
    return Previous(retry, table.filter(pc.invert(again)))


def _prior(row: dict[str, Any]) -> Prior:
    usage, cost = row["gen_ai"]["usage"], row["cost"]
    return Prior(
        usage=Usage(
            usage["input_tokens"],
            usage["output_tokens"],
            usage["cache_read"]["input_tokens"],
            usage["cache_creation"]["input_tokens"],
        ),
        charge=Charge(
            amount=cost["amount"],
            list_amount=cost["list_amount"],
            basis=cost["basis"],
            certainty=cost["certainty"],
            price_source=cost["price_source"],
            price_as_of=cost["price_as_of"],
            device_seconds=cost["device_seconds"],
            energy_wh_low=cost["energy_wh_low"],
            energy_wh_high=cost["energy_wh_high"],
            currency=cost["currency"],
        ),
        calls=cost["calls"],
        replayed_calls=cost["replayed_calls"],
        ambiguous_calls=cost["ambiguous_calls"],
        ambiguous_amount=str(cost["ambiguous_amount"]),
    )
