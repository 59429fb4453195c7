"""`ledger verify`: an honest output is proven; whatever is changed in it afterwards is found, and named."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from schemas.errors import OutputError
from schemas.ids import sha256_hex
from tests.support import documents, workloads
from tests.support.drive import drive
from transforms.call.ledger import encode_frame, scan
from transforms.commit_file import packed, packed_in, parse_commit, unpacked
from transforms.verify import Verification, verify_output

ROWS = 60
FAULTS = {"refusal": 0.1, "truncated_body": 0.15, "server_error": 0.1}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a rehearsal with faults and duplicates, tried again once."""
    folder = tmp_path_factory.mktemp("finished")
    ids = [f"doc-{n}" for n in range(ROWS)]
    texts = [f"document {n % 45}" for n in range(ROWS)]
    documents.write(folder / "in" / "a.parquet", documents.rows(ids, text=texts), row_group=20)
    workload = workloads.write_workload(
        folder,
        limits={"batch_rows": 20, "max_calls": 2},
        rehearsal={"latency_ms": [0, 2], "faults": FAULTS},
    )
    first = drive(workload, rehearsal=True)
    second = drive(workload, rehearsal=True)
    assert first.state == "incomplete"
    assert second.batches_committed_by_this_run > 0, "something must have been tried again"
    return folder / "out"


@pytest.fixture
def output(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished, tmp_path / "out")


def places(found: Verification, kind: Any) -> str:
    return "\n".join(f"{f.place}: {f.sentence}" for f in found.of(kind))


def test_an_honest_output_is_proven_and_everything_is_accounted_for(finished: Path) -> None:
    found = verify_output(str(finished))
    assert places(found, "contradiction") == ""
    assert found.state == "proven"
    assert found.results + found.failures == ROWS
    assert found.rows == found.ledger
    assert found.ledger.list_amount > 0
    assert found.ledger.shared > 0
    assert found.undelivered.calls == 0
    assert len(found.of("ambiguous")) == found.ledger.ambiguous > 0


def test_a_proof_reads_only(output: Path) -> None:
    before = snapshot(output)
    verify_output(str(output))
    assert snapshot(output) == before


def snapshot(output: Path) -> dict[str, tuple[int, int]]:
    return {str(p): (p.stat().st_mtime_ns, p.stat().st_size) for p in output.rglob("*")}


def test_what_is_no_output_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="no Switchgear output"):
        verify_output(str(tmp_path))


def some(output: Path, pattern: str) -> Path:
    return sorted(output.glob(pattern))[0]


def change_json(path: Path, change: Callable[[dict[str, Any]], None], tail: str | None = None) -> None:
    """Change the first line, and put `tail` behind it or else what was there."""
    head, *lines = path.read_text("utf-8").split("\n")
    data = json.loads(head)
    change(data)
    path.write_text("\n".join([json.dumps(data), *(lines if tail is None else [tail])]), "utf-8")


def change_ledger(output: Path, change: Callable[[list[dict[str, Any]]], None]) -> str:
    path = some(output, "ledger/*/calls.ledger")
    frames, _ = scan(path.read_bytes())
    change(frames)
    path.write_bytes(b"".join(map(encode_frame, frames)))
    return path.parent.name


def first(frames: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    return next(frame for frame in frames if frame["kind"] == kind)


def forge(output: Path, kind: str, change: Callable[[dict[str, Any]], None]) -> str:
    """Change the first row of a part and make size, digest and count in the commit record fit it."""
    if kind == "failures":
        return forge_failures(output, change)
    path = some(output, "results/*/*.parquet")
    table = pq.read_table(path)
    rows = table.to_pylist()
    change(rows[0])
    pq.write_table(table.from_pylist(rows, schema=table.schema), path)
    batch, attempt, _ = path.name.split(".")

    def fit(record: dict[str, Any]) -> None:
        for part in record["parts"]:
            if part["final"].endswith(path.name):
                data = path.read_bytes()
                part.update(bytes=len(data), sha256=sha256_hex(data))

    change_json(output / "commits" / f"{batch}.{attempt}.json", fit)
    return path.name


def forge_failures(output: Path, change: Callable[[dict[str, Any]], None]) -> str:
    """The same with failures that stand, which travel with the record."""
    newest = {path.name.split(".")[0]: path for path in sorted(output.glob("commits/*.json"))}
    path = next(path for path in newest.values() if b"\n" in path.read_bytes())
    tail = path.read_bytes().partition(b"\n")[2]
    table = unpacked(packed_in(tail))
    rows = table.to_pylist()
    change(rows[0])
    data = packed(table.from_pylist(rows, schema=table.schema))

    def fit(record: dict[str, Any]) -> None:
        record["parts"][-1].update(bytes=len(data), sha256=sha256_hex(data))

    change_json(path, fit, json.dumps({"failures": base64.b64encode(data).decode()}))
    return path.name


def set_cost(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda row: row["cost"].update({name: value})


def test_a_row_whose_cost_was_changed_is_named(output: Path) -> None:
    from decimal import Decimal

    name = forge(output, "results", set_cost("list_amount", Decimal("0.5")))
    found = verify_output(str(output))
    assert found.state == "contradicted"
    assert name in places(found, "contradiction")
    assert "cost.list_amount is 0.5" in places(found, "contradiction")


@pytest.mark.parametrize(("field", "value"), [("calls", 17), ("ambiguous_calls", 9), ("amount", None)])
def test_any_cost_field_of_a_result_or_failure_that_was_changed_is_found(
    output: Path, field: str, value: Any
) -> None:
    for kind in ("results", "failures"):
        forge(output, kind, set_cost(field, value))
    assert places(verify_output(str(output)), "contradiction").count(f"cost.{field} is") == 2


def test_a_row_that_stands_twice_is_found(output: Path) -> None:
    path = some(output, "results/*/*.parquet")
    table = pq.read_table(path)
    rows = table.to_pylist()
    rows[1] = rows[0]
    pq.write_table(table.from_pylist(rows, schema=table.schema), path)
    batch, attempt, _ = path.name.split(".")
    data = path.read_bytes()

    def fit(record: dict[str, Any]) -> None:
        for part in record["parts"]:
            if part["kind"] == "results":
                part.update(bytes=len(data), sha256=sha256_hex(data))

    change_json(output / "commits" / f"{batch}.{attempt}.json", fit)
    found = places(verify_output(str(output)), "contradiction")
    assert "stands in an earlier part as well" in found
    assert "no row accounts for them" in found


def test_a_changed_byte_of_a_part_is_found(output: Path) -> None:
    path = some(output, "results/*/*.parquet")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert path.name in places(verify_output(str(output)), "contradiction")


def test_a_part_that_is_gone_is_found(output: Path) -> None:
    path = some(output, "results/*/*.parquet")
    path.unlink()
    assert f"{path.name}: was committed" in places(verify_output(str(output)), "contradiction")


@pytest.mark.parametrize("name", ["f" * 32 + ".0001.parquet", "stranger.parquet"])
def test_a_part_that_no_commit_names_is_found(output: Path, name: str) -> None:
    shutil.copy(some(output, "results/*/*.parquet"), output / "results" / "route=ask" / name)
    found = places(verify_output(str(output)), "contradiction")
    assert f"{name}: no commit record names it" in found


def test_a_part_under_another_route_is_found(output: Path) -> None:
    path = some(output, "results/*/*.parquet")
    other = output / "results" / "route=other"
    other.mkdir()
    shutil.copy(path, other / path.name)
    assert "are named by a commit record" in places(verify_output(str(output)), "contradiction")


def test_an_answer_that_vanished_from_the_ledger_is_found(output: Path) -> None:
    def vanish(frames: list[dict[str, Any]]) -> None:
        gone = first(frames, "answered")["id"]
        frames[:] = [frame for frame in frames if frame.get("id") != gone]

    batch = change_ledger(output, vanish)
    assert batch in places(verify_output(str(output)), "contradiction")


def test_an_answer_that_was_added_to_the_ledger_is_found(output: Path) -> None:
    def add(frames: list[dict[str, Any]]) -> None:
        intended, answered = first(frames, "intended"), first(frames, "answered")
        frames.append({**intended, "id": 9999})
        frames.append({**answered, "id": 9999})

    batch = change_ledger(output, add)
    assert batch in places(verify_output(str(output)), "contradiction")


def test_a_charge_that_was_changed_in_the_ledger_is_found(output: Path) -> None:
    change_ledger(output, lambda frames: first(frames, "answered")["charge"].update(list_amount="99"))
    found = places(verify_output(str(output)), "contradiction")
    assert "by the ledger it is 99" in found
    assert "its totals say list_amount" in found


def test_a_call_of_unknown_end_that_was_dropped_is_found(output: Path) -> None:
    def drop(record: dict[str, Any]) -> None:
        record["ambiguous"] = record["ambiguous"][1:]

    for path in sorted(output.glob("commits/*.json")):
        if parse_commit(path.read_bytes())[0].ambiguous:
            change_json(path, drop)
            break
    assert "calls of unknown end is not that of the ledger" in places(
        verify_output(str(output)), "contradiction"
    )


def test_totals_and_counts_that_were_changed_are_found(output: Path) -> None:
    path = some(output, "commits/*.json")
    change_json(path, lambda record: record.update(results=record["results"] + 1))
    assert "results and" in places(verify_output(str(output)), "contradiction")


def test_rows_that_are_not_those_committed_are_found(output: Path) -> None:
    newest = sorted(output.glob("commits/*.json"))[-1]
    change_json(newest, lambda record: record.update(key_sum="0" * 32))
    assert "are not those that were committed" in places(verify_output(str(output)), "contradiction")


def test_a_shared_answer_without_a_payer_is_found(output: Path) -> None:
    def shift(frames: list[dict[str, Any]]) -> None:
        for frame in frames:
            if frame["kind"] == "shared":
                frame["from"]["row"] += 1000

    for path in sorted(output.glob("ledger/*/calls.ledger")):
        frames, _ = scan(path.read_bytes())
        shift(frames)
        path.write_bytes(b"".join(map(encode_frame, frames)))
    assert "lineage.shared_from is" in places(verify_output(str(output)), "contradiction")


def test_a_payer_whose_ledger_was_lost_is_missed_by_those_who_share(output: Path) -> None:
    shared = next(
        frame
        for path in sorted(output.glob("ledger/*/calls.ledger"))
        for frame in scan(path.read_bytes())[0]
        if frame["kind"] == "shared"
    )
    shutil.rmtree(output / "ledger" / shared["from"]["batch_id"])
    assert "whose ledger has none" in places(verify_output(str(output)), "contradiction")


def test_a_torn_tail_is_named_and_contradicts_nothing(output: Path) -> None:
    path = some(output, "ledger/*/calls.ledger")
    with path.open("ab") as stream:
        stream.write(b"\x40\x00\x00\x00torn")
    found = verify_output(str(output))
    assert found.state == "proven"
    assert f"{path.parent.name}/calls.ledger: 8 bytes" in places(found, "torn")


@pytest.mark.parametrize("part", [0.3, 0.6, 0.95])
def test_damage_inside_a_ledger_is_found(output: Path, part: float) -> None:
    path = some(output, "ledger/*/calls.ledger")
    data = bytearray(path.read_bytes())
    data[int(len(data) * part)] ^= 1
    path.write_bytes(data)
    assert verify_output(str(output)).state == "contradicted"


def shown(output: Path) -> Path:
    return some(output, "failures/*.parquet")


def rename_by_digest(path: Path) -> Path:
    return path.rename(path.with_name(f"{sha256_hex(path.read_bytes())[:32]}.parquet"))


def test_a_failure_that_is_shown_otherwise_than_it_was_committed_is_found(output: Path) -> None:
    path = shown(output)
    table = pq.read_table(path)
    rows = table.to_pylist()
    rows[-1]["message"] = "nothing happened"
    pq.write_table(table.from_pylist(rows, schema=table.schema), path)
    path = rename_by_digest(path)
    assert f"{path.name}: says something else than commits/" in places(
        verify_output(str(output)), "contradiction"
    )


def test_failures_of_no_record_are_found(output: Path) -> None:
    stranger = output / "failures" / "stranger.parquet"
    shutil.copy(shown(output), stranger)
    assert f"{stranger.name}: no commit record names it" in places(
        verify_output(str(output)), "contradiction"
    )
    stranger.unlink()
    batch = pq.read_table(shown(output)).column("lineage")[0]["batch_id"].as_py()
    for path in output.glob(f"commits/{batch}.*"):
        path.unlink()
    found = places(verify_output(str(output)), "contradiction")
    assert f"{shown(output).name}: no commit record names it: batch {batch}" in found


def test_failures_that_a_later_attempt_has_replaced_wait_for_the_next_run(output: Path) -> None:
    batch = pq.read_table(shown(output)).column("lineage")[0]["batch_id"].as_py()
    newest = sorted(output.glob(f"commits/{batch}.*"))[-1]
    number = int(newest.name.split(".")[1])
    shutil.copy(newest, newest.with_name(f"{batch}.{number + 1:04d}.json"))
    assert f"takes them away: batch {batch}, attempt {number}" in places(
        verify_output(str(output)), "unfinished"
    )


def test_failures_that_a_file_does_not_name_are_found(output: Path) -> None:
    path = shown(output)
    table = pq.read_table(path)
    twice = pa.concat_tables([table, table]).replace_schema_metadata(table.schema.metadata)
    pq.write_table(twice, path)
    path = rename_by_digest(path)
    assert f"{path.name}: has rows of batches that it does not name" in places(
        verify_output(str(output)), "contradiction"
    )


def test_failures_that_are_not_shown_twice_there_or_damaged_wait_for_the_next_run(output: Path) -> None:
    path = shown(output)
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    assert "is not what was written" in places(verify_output(str(output)), "unfinished")
    path.write_bytes(data.replace(b"switchgear.attempts", b"switchgear.attempt_"))
    assert "is not what was written" in places(verify_output(str(output)), "unfinished")
    path.write_bytes(data)
    table = pq.read_table(path)
    pq.write_table(table, output / "failures" / "again.parquet", compression="none")
    rename_by_digest(output / "failures" / "again.parquet")
    assert "shows failures that another file shows too" in places(verify_output(str(output)), "unfinished")
    for each in output.glob("failures/*"):
        each.unlink()
    found = verify_output(str(output))
    assert (found.state, "are not shown yet" in places(found, "unfinished")) == ("incomplete", True)


@pytest.fixture
def undelivered(output: Path) -> tuple[Path, str]:
    """A batch whose newest attempt was never committed: its answers are paid and in no row."""
    commit = sorted(output.glob("commits/*.0001.json"))[0]
    batch = commit.name.split(".")[0]
    for path in [*output.glob(f"commits/{batch}.*"), *output.glob(f"results/*/{batch}.*")]:
        path.unlink()
    for path in [*output.glob("failures/*"), *output.glob("compacted/*")]:
        path.unlink()
    return output, batch


def test_answers_that_no_commit_has_delivered_are_listed_as_paid(undelivered: tuple[Path, str]) -> None:
    output, batch = undelivered
    found = verify_output(str(output))
    assert found.state == "incomplete"
    assert found.undelivered.answered == len(found.of("undelivered")) > 0
    assert batch in places(found, "undelivered")
    assert not [f.sentence for f in found.findings if "E-" in f.sentence], "amounts are written out"
    assert found.ledger.list_amount == found.rows.list_amount + found.undelivered.list_amount


def test_an_interrupted_run_is_incomplete(output: Path) -> None:
    newest = sorted(output.glob("runs/*/manifest.json"))[-1]
    newest.unlink()
    found = verify_output(str(output))
    assert found.state == "incomplete"
    assert "interrupted" in places(found, "unfinished")


def test_a_manifest_that_says_something_else_is_found(output: Path) -> None:
    newest = sorted(output.glob("runs/*/manifest.json"))[-1]
    change_json(newest, lambda manifest: manifest.update(amount="5"))
    assert "says that 5 was billed" in places(verify_output(str(output)), "contradiction")


def test_a_proof_as_json_has_exact_amounts_as_strings(finished: Path) -> None:
    said = json.loads(json.dumps(verify_output(str(finished)).to_dict()))
    assert (said["state"], said["rehearsal"]) == ("proven", True)
    assert said["ledger"] == said["rows"]
    assert isinstance(said["ledger"]["list_amount"], str)


def test_only_so_many_findings_are_listed_and_all_are_counted(finished: Path) -> None:
    found = Verification(str(finished), True)
    for n in range(1500):
        found.note("torn", f"place {n}", "torn")
    assert len(found.findings) == 1000
    assert found.counts == {"torn": 1500}
