import secrets
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from schemas.batches import CommitRecord
from tests.support.records import REF, commit_record
from transforms.batch_ids import packed_ids
from transforms.committed import AnsweredFile, Committed, Standing

FIRST, SECOND, ABSENT = "00" * 16, "ab" * 15 + "00", "ff" * 16
RECORD = commit_record(refused={"amount": "0.5"}, ref=replace(REF, duplicate_rows=(7, 9)))


def of(*records: CommitRecord) -> Committed:
    return Committed.of(records)


def test_a_batch_stands_as_its_newest_attempt_left_it() -> None:
    second = replace(RECORD, attempt=2, failures=2, failures_by_class={"refused": 2}, refused={})
    committed = of(second, RECORD, replace(RECORD, batch_id=FIRST))
    assert list(committed) == [FIRST, REF.batch_id]
    assert committed.get(REF.batch_id) == Standing(REF.batch_id, 2, {"refused": 2}, {}, (7, 9))
    expected = Standing(FIRST, 1, {"timeout": 1, "null_text": 2}, {"amount": "0.5"}, (7, 9))
    assert committed.get(FIRST) == expected
    assert (FIRST in committed, ABSENT in committed) == (True, False)
    assert committed.get(ABSENT) is None


def test_an_attempt_that_stands_twice_counts_once() -> None:
    committed = of(RECORD, RECORD)
    assert (len(committed), list(committed.attempts)) == (1, [1])


def test_nothing_is_found_where_nothing_is_committed() -> None:
    committed = of()
    assert (len(committed), list(committed), committed.get(FIRST)) == (0, [], None)
    assert list(committed.rows_of(packed_ids([FIRST, SECOND]))) == [-1, -1]
    assert list(committed.failures_in(["timeout"])) == []
    assert list(committed.files()) == []


def test_many_batches_are_looked_up_at_once() -> None:
    done = replace(RECORD, batch_id=SECOND, failures=0, failures_by_class={}, refused={})
    committed = of(done, replace(RECORD, batch_id=FIRST, attempt=3))
    rows = committed.rows_of(packed_ids([ABSENT, SECOND, FIRST, "00" * 15 + "01"]))
    assert list(rows) == [-1, 1, 0, -1]
    assert list(committed.attempts) == [3, 1]
    assert list(committed.failures_in(["null_text", "refused"])) == [2, 0]
    assert list(committed.failures_in([])) == [0, 0]


def test_each_content_of_an_input_file_is_told_once() -> None:
    other = replace(REF, generation="sha256:01")
    committed = of(
        RECORD,
        replace(RECORD, batch_id=FIRST),
        replace(RECORD, batch_id=SECOND, ref=other, run_id="run-3"),
    )
    told = sorted(committed.files(), key=lambda file: file.generation)
    assert told == [
        AnsweredFile(REF.uri, "sha256:00", "run-1"),
        AnsweredFile(REF.uri, "sha256:01", "run-3"),
    ]


IDS = st.lists(st.binary(min_size=16, max_size=16).map(bytes.hex), max_size=20)


@given(IDS, IDS)
def test_whatever_the_ids_exactly_the_committed_are_found(there: list[str], asked: list[str]) -> None:
    committed = of(*(replace(RECORD, batch_id=batch) for batch in there))
    every = [*there, *asked]
    found = [int(row) >= 0 for row in committed.rows_of(packed_ids(every))]
    assert found == [batch in there for batch in every]
    assert list(committed) == sorted(set(there))


def test_a_batch_takes_a_few_dozen_bytes() -> None:
    plain = replace(RECORD, failures=0, failures_by_class={}, refused={}, ref=REF)
    rows = (replace(plain, batch_id=secrets.token_hex(16)) for _ in range(2000))
    assert of(*rows).nbytes / 2000 < 24
