"""`switchgear ledger verify`: proves an output's ledger against its commits, results and failures.

Every answered call must be in exactly one row's cost, and results, failures and what is paid and not yet
delivered must add up to the ledger exactly. Reads only, one batch after the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from functools import lru_cache
from typing import Any, Literal

from schemas.outcomes import money_text
from schemas.run import Manifest
from transforms.layout import (
    LEDGER,
    RESULTS,
    list_commits,
    parse_name,
    read_commit,
    run_path,
)
from transforms.output import read_manifest, read_marker
from transforms.plan_file import read_plan
from transforms.store import open_store
from transforms.verify_batch import BatchProof, prove_batch
from transforms.verify_commits import check_compacted
from transforms.verify_failures import check_failure_files
from transforms.verify_ledger import Kind, answered_pairs
from transforms.verify_sums import Sums

MOST_LISTED = 1000
"""Findings of a kind that are listed; the others are counted."""

_REMEMBERED_LEDGERS = 16
State = Literal["proven", "contradicted", "incomplete"]


@dataclass(frozen=True, slots=True)
class Finding:
    """Something worth saying, and where it is: a path in the output, perhaps with a row."""

    kind: Kind
    place: str
    sentence: str


@dataclass(slots=True)
class Verification:
    """What a proof came to.

    `proven`: everything adds up and everything paid is delivered. `incomplete`: everything adds up, and
    a run has yet to deliver or publish something. `contradicted`: something does not add up.
    """

    output: str
    rehearsal: bool
    batches: int = 0
    results: int = 0
    failures: int = 0
    ledger: Sums = field(default_factory=Sums)
    rows: Sums = field(default_factory=Sums)
    undelivered: Sums = field(default_factory=Sums)
    device_amount: Decimal = Decimal(0)
    findings: list[Finding] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def state(self) -> State:
        """The verdict."""
        if self.counts.get("contradiction"):
            return "contradicted"
        return "incomplete" if self.counts.get("undelivered") or self.counts.get("unfinished") else "proven"

    def note(self, kind: Kind, place: str, sentence: str) -> None:
        """Takes a finding in."""
        self.counts[kind] = self.counts.get(kind, 0) + 1
        if self.counts[kind] <= MOST_LISTED:
            self.findings.append(Finding(kind, place, sentence))

    def of(self, kind: Kind) -> list[Finding]:
        """The listed findings of a kind."""
        return [finding for finding in self.findings if finding.kind == kind]

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON; amounts are decimal strings."""
        return {
            "output": self.output,
            "state": self.state,
            "rehearsal": self.rehearsal,
            "batches": self.batches,
            "results": self.results,
            "failures": self.failures,
            "ledger": _plain(self.ledger),
            "rows": _plain(self.rows),
            "undelivered": _plain(self.undelivered),
            "counts": dict(self.counts),
            "findings": [{"kind": f.kind, "place": f.place, "sentence": f.sentence} for f in self.findings],
        }


def verify_output(output: str) -> Verification:
    """Prove an output at which no run is at work.

    Raises:
        OutputError: there is no output of ours.
    """
    marker = read_marker(output)
    store = open_store(output)
    found = Verification(output, bool(marker["rehearsal"]))

    @lru_cache(maxsize=_REMEMBERED_LEDGERS)
    def answered(batch_id: str) -> frozenset[tuple[int, str]]:
        return answered_pairs(store, batch_id)

    def has_answer(batch_id: str, row: int, route: str) -> bool:
        return (row, route) in answered(batch_id)

    commits = list_commits(store)
    files, left = 0, set[str]()
    for batch_id in sorted(commits.keys() | set(_ledgers(found))):
        records = [read_commit(store, batch_id, attempt) for attempt in commits.get(batch_id, ())]
        proof = prove_batch(store, batch_id, records, found.note, has_answer)
        _take(found, proof)
        files += proof.result_files
        left.update({batch_id} if proof.failures else ())
    _check_strangers(found, commits, files)
    check_compacted(store, commits, found.note)
    check_failure_files(store, commits, left, found.note)
    _check_totals(found)
    _check_run(found, commits)
    return found


def _ledgers(found: Verification) -> Iterator[str]:
    """The batches that have a ledger."""
    return open_store(found.output).folders(LEDGER)


def _take(found: Verification, proof: BatchProof) -> None:
    found.batches += 1
    found.results += proof.results
    found.failures += proof.failures
    found.ledger.add(proof.ledger)
    found.rows.add(proof.rows)
    found.undelivered.add(proof.undelivered)
    found.device_amount += proof.device_amount
    if proof.waiting:
        place = f"{LEDGER}/{proof.batch_id}"
        found.note("unfinished", place, f"{proof.waiting} requests wait in provider batches")


def _check_strangers(found: Verification, commits: dict[str, list[int]], named: int) -> None:
    """All results that a reader sees must be named by a commit record."""
    store = open_store(found.output)
    there = 0
    for path in store.list(RESULTS):
        name = parse_name(path.rsplit("/", 1)[1])
        if name is None or name[1] not in commits.get(name[0], ()):
            found.note("contradiction", path, "no commit record names it")
        else:
            there += 1
    if there != named:
        sentence = f"{there} parts of committed attempts are there, {named} are named by a commit record"
        found.note("contradiction", RESULTS, sentence)


def _check_totals(found: Verification) -> None:
    """Rows and what is not yet delivered must add up to the ledger: the sum of all sums."""
    if found.counts.get("contradiction"):
        return  # it is known already where it does not
    for name in Sums.__slots__:
        ledger = getattr(found.ledger, name)
        rows, rest = getattr(found.rows, name), getattr(found.undelivered, name)
        if name != "unpriced" and not found.ledger.unpriced and ledger != rows + rest:
            found.note(
                "contradiction", LEDGER, f"{name}: {ledger}, but rows have {rows} and {rest} is undelivered"
            )


def _check_run(found: Verification, commits: dict[str, list[int]]) -> None:
    """What the newest run planned must be committed, and its manifest must say what is there."""
    store = open_store(found.output)
    manifest = read_manifest(found.output)
    plans = [path.split("/")[1] for path in store.list("runs") if path.endswith("/plan.parquet")]
    if plans:
        refs, _ = read_plan(store, run_path(max(plans), "plan.parquet"))
        open_refs = sum(commits.get(ref.batch_id, [0])[-1] < ref.attempt for ref in refs)
        if open_refs:
            place = run_path(max(plans), "plan.parquet")
            found.note("unfinished", place, f"{open_refs} of {len(refs)} planned attempts are not committed")
    if manifest is None or manifest.run_id < max(plans, default=""):
        found.note("unfinished", "runs", "the newest run has no manifest: it was interrupted")
    elif found.state == "proven":
        _check_manifest(found, manifest)


def _check_manifest(found: Verification, manifest: Manifest) -> None:
    place = run_path(manifest.run_id, "manifest.json")
    if (manifest.results, manifest.failures) != (found.results, found.failures):
        found.note(
            "contradiction",
            place,
            f"says {manifest.results} results and {manifest.failures} failures, there are {found.results} "
            f"and {found.failures}",
        )
    spent = found.rows.amount + found.device_amount
    if not manifest.unknown_prices and Decimal(manifest.amount) != spent:
        found.note("contradiction", place, f"says that {manifest.amount} was billed, the rows say {spent}")


def _plain(sums: Sums) -> dict[str, Any]:
    values = {name: getattr(sums, name) for name in Sums.__slots__}
    return {name: money_text(v) if isinstance(v, Decimal) else v for name, v in values.items()}
