"""What must be true of a job that has ended: every row once, every charge explained, all sums equal."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

from schemas.failures import FAILURE_KINDS, FailureClass
from schemas.run import Manifest
from tests.simulator.job import Job
from tests.simulator.shape import TYPED, route_of
from tests.simulator.store import failures_in, read_part, record_in
from tests.simulator.vendor import GOOD

ZERO = Decimal(0)


def rows(job: Job, folder: str) -> list[dict[str, Any]]:
    """All rows that readers of a folder see."""
    found = []
    for path, thing in job.objects.objects.items():
        if path.startswith(f"{folder}/"):
            found.extend(read_part(thing.data))
    return found


def failures_left(job: Job) -> list[dict[str, Any]]:
    """The failures that the newest attempts have committed."""
    newest = {path.split(".")[0]: path for path in sorted(job.objects.committed)}
    return [row for path in newest.values() for row in failures_in(job.objects.committed[path])]


def _place(row: dict[str, Any]) -> tuple[str, int]:
    return row["lineage"]["batch_id"], row["lineage"]["source"]["row"]


def _place_and_route(row: dict[str, Any]) -> tuple[str, int, str]:
    return *_place(row), row["lineage"]["route"] or ""


def note_committed(job: Job) -> None:
    """Results that are committed now: their rows must not be sent again."""
    seen = job.around.audit.finished
    for path in job.objects.shown:
        if path not in job.objects.noted:
            job.objects.noted.add(path)
            seen.update(_place(row) for row in read_part(job.objects.shown[path]))


def unfinished(job: Job) -> dict[tuple[str, int], str]:
    """The rows that another run would work on, and why."""
    left = {
        (ref.batch_id, row): "nothing is committed"
        for ref in job.refs
        for row in range(ref.first_row, ref.first_row + ref.row_count)
    }
    for row in rows(job, "results"):
        left.pop(_place(row), None)
    for row in failures_left(job):
        if FAILURE_KINDS[FailureClass(row["error_class"])].retryable:
            left[_place(row)] = row["error_class"]
        else:
            left.pop(_place(row), None)
    return left


def check_ending(job: Job) -> None:
    """All checks; the first that fails is the world's violation."""
    results, failures = rows(job, "results"), failures_left(job)
    for invariant, detail in _troubles(job, results, failures):
        job.around.world.violate(invariant, detail)
        return


def _troubles(
    job: Job, results: list[dict[str, Any]], failures: list[dict[str, Any]]
) -> Iterator[tuple[str, str]]:
    yield from _every_row_once(job, results, failures)
    yield from _results_are_answers(job, results)
    yield from _failures_have_reasons(job, failures)
    yield from _paid_once(job)
    yield from _answered_twice_at_most(job)
    yield from _all_listed(job)
    yield from _sums(job, results + failures)
    yield from _nothing_left_over(job)


def _every_row_once(
    job: Job, results: list[dict[str, Any]], failures: list[dict[str, Any]]
) -> Iterator[tuple[str, str]]:
    wanted = Counter(
        (ref.batch_id, row, route_of(row))
        for ref in job.refs
        for row in range(ref.first_row, ref.first_row + ref.row_count)
    )
    found = Counter((*_place(row), row["lineage"]["route"]) for row in results + failures)
    if found != wanted:
        yield "every row exactly once", f"missing {wanted - found}, too many {found - wanted}"


def _results_are_answers(job: Job, results: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    shape = job.around.shape
    good = {(e.text, e.answer): e for e in job.around.vendor.journal if e.kind == GOOD}
    for row in results:
        entry = good.get((shape.text_of(*_place(row)), row["answer"]))
        if entry is None:
            yield "only whole, valid answers are results", f"{_place(row)}: {row['answer']!r}"
            continue
        call = job.around.audit.call_of(entry)
        request = row["lineage"]["request_sha256"]
        if call is not None and call.intended["request"] != request:
            yield "an answer belongs to its question", f"{entry.who} answered another request"
        committed = job.around.shape.changes_question and row["lineage"]["run_id"]
        asked = f"question {job.asked_in[committed]}" if committed else ""
        if asked and asked.encode() not in entry.body:
            yield "an answer belongs to its question", f"{entry.who} is not the answer to {asked}"


_SAID = {
    FailureClass.REFUSED: "refused",
    FailureClass.TRUNCATED: "cut off",
    FailureClass.INVALID_JSON: "no json",
    FailureClass.SCHEMA_MISMATCH: "no match",
    FailureClass.EMPTY_ANSWER: "empty",
    FailureClass.BAD_REQUEST: "400",
}


def _failures_have_reasons(job: Job, failures: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    said: dict[str, set[str]] = defaultdict(set)
    for entry in job.around.vendor.journal:
        said[entry.text].add(entry.kind)
    for row in failures:
        kind = _SAID.get(FailureClass(row["error_class"]))
        mute = _place(row) in job.around.shape.no_text
        if (kind is None and not mute) or (
            kind is not None and kind not in said[job.around.shape.text_of(*_place(row))]
        ):
            yield "a failure says what happened", f"{_place(row)}: {row['error_class']}"


def _paid_once(job: Job) -> Iterator[tuple[str, str]]:
    """Each charge is an answer in the ledger, a call that is listed as ambiguous, or lost to a power cut."""
    audit = job.around.audit
    for ref in job.refs:
        answered = Counter(c.key for c in audit.view(ref.batch_id).values() if c.kind == "answered")
        for key, times in answered.items():
            if times > 1:
                yield "an answered row is never sent again", f"{key} was answered {times} times"
    for entry in job.around.vendor.journal:
        if not entry.charged:
            continue
        call = audit.call_of(entry)
        if call is None and not entry.lost:
            yield "every charge is in the ledger", f"{entry.who} is in no ledger"
        elif call is not None and call.kind not in ("answered", "unknown"):
            yield "every charge is in the ledger", f"{entry.who} ended as {call.kind}"
        elif call is not None and call.kind == "answered" and call.amount != entry.cost:
            yield "every charge is in the ledger", f"{entry.who} cost {entry.cost}, not {call.amount}"
        elif call is not None and call.worst < entry.cost:
            yield "the worst case is the worst case", f"{entry.who} cost {entry.cost}, at most {call.worst}"


def _answered_twice_at_most(job: Job) -> Iterator[tuple[str, str]]:
    """One answer, and where it does not fit one more; of all attempts together."""
    shape = job.around.shape
    if shape.changes_question:
        return
    most = {TYPED: 1 + shape.repairs}
    for ref in job.refs:
        calls = job.around.audit.view(ref.batch_id).values()
        times = Counter((c.intended["row"], c.intended["route"]) for c in calls if c.kind == "answered")
        for (row, route), answered in times.items():
            if answered > most.get(route, 1):
                yield "a row is paid for twice at most", f"row {row} of {ref.batch_id[:6]}: {answered} times"


def _records(job: Job) -> list[dict[str, Any]]:
    return [
        record_in(thing.data) for path, thing in job.objects.objects.items() if path.startswith("commits/")
    ]


def _all_listed(job: Job) -> Iterator[tuple[str, str]]:
    """Commit records name each call without a known end, with its worst cost, and no other."""
    listed = Counter(
        (c["batch_id"], c["attempt"], c["row"], c["backend"], c["cause"], Decimal(c["worst_amount"]))
        for record in _records(job)
        for c in record["ambiguous"]
    )
    known: Counter[Any] = Counter()
    for ref in job.refs:
        for call in job.around.audit.view(ref.batch_id).values():
            told = call.intended
            if call.kind in ("unknown", None):
                cause = call.end["cause"] if call.end else "none"
                known[ref.batch_id, told["attempt"], told["row"], told["backend"], cause, call.worst] += 1
    if listed != known:
        yield "every ambiguous call is listed", f"missing {known - listed}, too many {listed - known}"


def _sums(job: Job, every: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    calls = [c for ref in job.refs for c in job.around.audit.view(ref.batch_id).values()]
    in_ledger = sum((c.amount for c in calls if c.kind == "answered"), ZERO)
    at_stake = sum((c.worst for c in calls if c.kind != "answered" and c.kind != "failed"), ZERO)
    columns = sum((row["cost"]["amount"] for row in every), ZERO)
    ambiguous = sum((row["cost"]["ambiguous_amount"] for row in every), ZERO)
    totals = [t for r in _records(job) for backends in r["totals"].values() for t in backends.values()]
    recorded = sum((Decimal(t["amount"]) for t in totals), ZERO)
    if not columns == in_ledger == recorded:
        yield "the cost column adds up", f"rows {columns}, ledgers {in_ledger}, commit records {recorded}"
    if ambiguous != at_stake:
        yield "the cost column adds up", f"ambiguous: rows {ambiguous}, ledgers {at_stake}"
    if sum(row["cost"]["calls"] for row in every) != len(calls):
        yield (
            "the cost column adds up",
            f"rows have {sum(r['cost']['calls'] for r in every)} calls of {len(calls)}",
        )
    lost = sum((e.cost for e in job.around.vendor.journal if e.lost and e.charged), ZERO)
    if job.around.vendor.bill > columns + ambiguous + lost:
        yield (
            "the cost column adds up",
            f"the bill is {job.around.vendor.bill}, the rows say {columns + ambiguous}",
        )


def check_manifest(job: Job, manifest: Manifest) -> None:
    """A run that was settled says what readers see, and is complete only when nothing is left to do."""
    job.around.world.seen.add("settled")
    results, failures, shown = rows(job, "results"), failures_left(job), rows(job, "failures")
    lags = job.around.world.lag_s > 0  # what a killed run has written may not be listed yet
    if not lags and sorted(shown, key=_place_and_route) != sorted(failures, key=_place_and_route):
        there = Counter(map(_place_and_route, shown))
        job.around.world.violate("the failures that stand are shown", f"there are {there}")
    told = (manifest.results, manifest.failures, Decimal(manifest.amount), len(manifest.ambiguous))
    columns = sum((row["cost"]["amount"] for row in results + failures), ZERO)
    listed = sum(len(record["ambiguous"]) for record in _records(job))
    if told != (len(results), len(failures), columns, listed):
        found = (len(results), len(failures), columns, listed)
        job.around.world.violate("the manifest says what is there", f"it says {told}, there is {found}")
    left = unfinished(job)
    if (manifest.state == "complete") == bool(left):
        job.around.world.violate("the manifest says what is there", f"it is {manifest.state}, left: {left}")


def _nothing_left_over(job: Job) -> Iterator[tuple[str, str]]:
    staged = [path for path in job.objects.objects if path.startswith("_staging/")]
    if staged:
        yield "nothing is left over", f"{staged}"
