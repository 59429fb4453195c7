"""One batch's proof: its ledger against its commit records and the rows that they name.

Everything is read anew and added up here; nothing that a run has added up is believed. Only one batch is
in memory at a time, and of its ledger no answers.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from decimal import Decimal
from itertools import pairwise
from typing import Any

import pyarrow.parquet as pq

from schemas.batches import CommitRecord, PartRef
from schemas.errors import StoreError, first_line
from schemas.ids import key_sum, row_key
from schemas.outcomes import ZERO
from transforms.call.ledger import LedgerState, RecordedCall
from transforms.failures import failures_left
from transforms.layout import COMMITS, commit_path
from transforms.store import Store
from transforms.verify_ledger import Note, Pair, ledger_place, read_state
from transforms.verify_sums import Sums, is_ambiguous, sums_of

HasAnswer = Callable[[str, int, str], bool]
_ROWS_AT_ONCE = 1024


@dataclass(slots=True)
class BatchProof:
    """What was found of one batch. `rows` and `undelivered` together must be `ledger`."""

    batch_id: str
    ledger: Sums = field(default_factory=Sums)
    rows: Sums = field(default_factory=Sums)
    undelivered: Sums = field(default_factory=Sums)
    results: int = 0
    failures: int = 0
    device_amount: Decimal = ZERO
    waiting: int = 0
    result_files: int = 0


def prove_batch(
    store: Store, batch_id: str, records: Sequence[CommitRecord], note: Note, has_answer: HasAnswer
) -> BatchProof:
    """Prove one batch: `records` are its commit records by attempt, none if nothing is committed.

    `note` is told everything worth saying. `has_answer(batch, row, route)` says whether a ledger holds
    an answer of that row, for those who share it.
    """
    prover = _Prover(store, batch_id, records, note, has_answer, read_state(store, batch_id, note))
    prover.prove()
    return prover.proof


@dataclass(slots=True)
class _Prover:
    """The proof of one batch while it is made."""

    store: Store
    batch_id: str
    records: Sequence[CommitRecord]
    note: Note
    has_answer: HasAnswer
    state: LedgerState
    proof: BatchProof = field(init=False)
    calls: dict[Pair, list[RecordedCall]] = field(default_factory=lambda: defaultdict(list))
    seen: dict[Pair, int] = field(default_factory=dict)  # pair → attempt of its row
    keys: list[int] = field(default_factory=list)  # of the rows of the newest attempt

    def prove(self) -> None:
        """Go through ledger, parts and records once."""
        self.proof = BatchProof(self.batch_id)
        for call in self.state.calls.values():
            self.calls[call.row, call.route].append(call)
        for calls in self.calls.values():
            self.proof.ledger.add(sums_of(calls, self.state.mode))
        for record in self.records:
            for part in record.parts:
                if part.is_file and (part.kind == "results" or record is self.records[-1]):
                    self._part(record, part)
                elif record is self.records[-1]:
                    self._failures(record)
            self._record(record)
        if self.records:
            self._chain()
        self._rest()

    @property
    def _place(self) -> str:
        return ledger_place(self.store, self.batch_id)

    def _contradiction(self, place: str, sentence: str) -> None:
        self.note("contradiction", place, sentence)

    def _part(self, record: CommitRecord, part: PartRef) -> None:
        path = self._where(record, part)
        if path is None:
            return
        size, digest = _digest(self.store, path)
        if (size, digest) != (part.bytes, part.sha256):
            self._contradiction(
                path, f"has {size} bytes, SHA-256 {digest}; committed were {part.bytes}, {part.sha256}"
            )
            return
        with self.store.open(path) as stream, pq.ParquetFile(stream) as parquet:
            rows = parquet.metadata.num_rows
            for piece in parquet.iter_batches(_ROWS_AT_ONCE, columns=["cost", "lineage"]):
                for row in piece.to_pylist():
                    self._row(path, row, record)
        if rows != part.rows:
            self._contradiction(path, f"has {rows} rows, committed were {part.rows}")
        if part.kind == "results":
            self.proof.results += rows
        else:
            self.proof.failures += rows

    def _failures(self, record: CommitRecord) -> None:
        """The failures that travel with the record; what `failures/` shows is held against them elsewhere."""
        path = commit_path(record.batch_id, record.attempt)
        try:
            table = failures_left(self.store, record.batch_id, record.attempt)
        except StoreError as error:
            self._contradiction(path, first_line(error))
            return
        for piece in table.select(["cost", "lineage"]).to_batches(_ROWS_AT_ONCE):
            for row in piece.to_pylist():
                self._row(path, row, record)
        self.proof.failures += table.num_rows

    def _where(self, record: CommitRecord, part: PartRef) -> str | None:
        if self.store.exists(part.final):
            self.proof.result_files += part.kind == "results"
            return part.final
        if self.store.exists(part.staged):
            self.note("unfinished", part.final, "is committed and not yet published: the next run does it")
            return part.staged
        self._contradiction(part.final, f"was committed by run {record.run_id} and is not there")
        return None

    def _row(self, path: str, row: dict[str, Any], record: CommitRecord) -> None:
        """Hold one row's cost against the calls that the ledger has for it."""
        lineage, cost = row["lineage"], row["cost"]
        pair = (lineage["source"]["row"], lineage["route"] or "")
        place = f"{path}, row {pair[0]} on route {pair[1]!r}"
        if pair in self.seen:
            self._contradiction(place, f"stands in an earlier part as well (attempt {self.seen[pair]})")
            return
        self.seen[pair] = lineage["attempt"]
        if record is self.records[-1] and lineage["attempt"] == record.attempt:
            self.keys.append(row_key(*pair))
        calls = [call for call in self.calls.get(pair, ()) if call.attempt <= lineage["attempt"]]
        if cost["basis"] == "device_seconds":
            self.proof.device_amount += cost["amount"] or ZERO
            if calls:
                self._contradiction(place, "was embedded here, and the ledger has calls for it")
            return
        sums = sums_of(calls, self.state.mode)
        self._cost(place, cost, sums)
        self._share(place, lineage, calls)
        self.proof.rows.add(sums)

    def _cost(self, place: str, cost: dict[str, Any], sums: Sums) -> None:
        known = not sums.unpriced
        expected = {
            "amount": sums.amount if known else cost["amount"],
            "list_amount": sums.list_amount if known else cost["list_amount"],
            "calls": sums.calls,
            "ambiguous_calls": sums.ambiguous,
            "ambiguous_amount": sums.ambiguous_amount,
        }
        if sums.unpriced and cost["certainty"] != "unknown":
            self._contradiction(
                place, f"cost.certainty is {cost['certainty']!r}, its calls have no known price"
            )
        for name, value in expected.items():
            if cost[name] != value:
                self._contradiction(place, f"cost.{name} is {cost[name]}, by the ledger it is {value}")

    def _share(self, place: str, lineage: dict[str, Any], calls: Sequence[RecordedCall]) -> None:
        """An answer that was taken over must be in the ledger here, and in that of the row that paid."""
        said = lineage["shared_from"]
        shared = [asdict(call.origin) for call in calls if call.end == "shared"]
        if said is None and not shared:
            return
        if said not in shared:
            where = "nowhere" if not shared else f"from {shared[-1]}"
            self._contradiction(place, f"lineage.shared_from is {said}, by the ledger its answer is {where}")
        elif not self.has_answer(said["batch_id"], said["row"], said["route"]):
            self._contradiction(
                place,
                f"shares the answer of row {said['row']} of batch {said['batch_id']}, whose ledger has none",
            )

    def _record(self, record: CommitRecord) -> None:
        """What the commit record says of its attempt's calls must be what the ledger has."""
        place = f"{COMMITS}/{self.batch_id}.{record.attempt:04d}.json"
        of_attempt = Sums()
        lost: Counter[tuple[object, ...]] = Counter()
        for calls in self.calls.values():
            mine = [call for call in calls if call.attempt == record.attempt]
            of_attempt.add(sums_of(mine, self.state.mode))
            lost.update((c.row, c.route, c.backend, c.sent_at) for c in mine if is_ambiguous(c))
        if lost != Counter((c.row, c.route, c.backend, c.sent_at) for c in record.ambiguous):
            self._contradiction(place, "its list of calls of unknown end is not that of the ledger")
        totals = [
            total
            for backends in record.totals.values()
            for total in backends.values()
            if total.basis != "device_seconds"
        ]
        said = {
            "calls": sum(total.calls for total in totals),
            "shared": sum(total.shared for total in totals),
            "ambiguous": sum(total.ambiguous for total in totals),
            "amount": sum((Decimal(total.amount) for total in totals), ZERO),
            "list_amount": sum((Decimal(total.list_amount) for total in totals), ZERO),
            "ambiguous_amount": sum((Decimal(total.ambiguous_amount) for total in totals), ZERO),
        }
        for name, value in said.items():
            found = getattr(of_attempt, name)
            if found != value:
                self._contradiction(place, f"its totals say {name} {value}, the ledger {found}")

    def _chain(self) -> None:
        """Counts and key sum of the rows are those of the records, and attempts follow each other."""
        newest, place = self.records[-1], f"{COMMITS}/{self.batch_id}"
        if [record.attempt for record in self.records] != list(range(1, len(self.records) + 1)):
            self._contradiction(place, f"attempts {[r.attempt for r in self.records]}: one is missing")
        for before, after in pairwise(self.records):
            if before.failures != after.results + after.failures:
                self._contradiction(
                    place, f"attempt {after.attempt} does not take up what {before.attempt} left undone"
                )
        expected = (sum(record.results for record in self.records), newest.failures)
        if (self.proof.results, self.proof.failures) != expected:
            self._contradiction(
                place,
                f"{self.proof.results} results and {self.proof.failures} failures are there, committed were "
                f"{expected[0]} and {expected[1]}",
            )
        elif f"{key_sum(self.keys):032x}" != newest.key_sum:
            self._contradiction(
                place, f"the rows of attempt {newest.attempt} are not those that were committed"
            )

    def _rest(self) -> None:
        """Calls of which no row tells: paid and not yet delivered, lost, or contradicting."""
        committed = self.records[-1].attempt if self.records else 0
        for pair, calls in self.calls.items():
            rest = [call for call in calls if call.attempt > self.seen.get(pair, 0)]
            self._name_ambiguous(calls)
            self.proof.waiting += sum(call.end is None and call.via is not None for call in rest)
            late = [call for call in rest if call.attempt > committed]
            if len(late) < len(rest):
                self._contradiction(
                    self._place,
                    f"row {pair[0]} on route {pair[1]!r} has calls of attempt {rest[0].attempt}, which is "
                    f"committed, and no row accounts for them",
                )
            if late:
                self._undelivered(pair, late)

    def _undelivered(self, pair: Pair, calls: Sequence[RecordedCall]) -> None:
        sums = sums_of(calls, self.state.mode)
        self.proof.undelivered.add(sums)
        if sums.answered:
            self.note(
                "undelivered",
                self._place,
                f"row {pair[0]} on route {pair[1]!r}, attempt {calls[-1].attempt}: {sums.answered} answered "
                f"calls, {sums.amount.normalize():f} USD, paid and not yet delivered",
            )

    def _name_ambiguous(self, calls: Sequence[RecordedCall]) -> None:
        for call in calls:
            if is_ambiguous(call):
                cause = call.final.get("cause", "its process died")
                worst = "?" if call.worst is None else f"{call.worst.normalize():f}"
                self.note(
                    "ambiguous",
                    self._place,
                    f"call {call.id}, row {call.row} on route {call.route!r}, backend {call.backend!r}, sent "
                    f"{call.sent_at}: {cause}; at most {worst} USD",
                )


def _digest(store: Store, path: str) -> tuple[int, str]:
    digest, size = hashlib.sha256(), 0
    with store.open(path) as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
            size += len(piece)
    return size, digest.hexdigest()
