"""The index of shared answers: hints in files, claims that die with their process, whole engines on one."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from schemas.errors import StoreError
from schemas.limits import Limits
from schemas.rehearsal import Rehearsal
from schemas.run import RunContext
from tests.peers.cloud_storage import CloudStorage
from tests.peers.cloud_storage import environment as cloud_environment
from tests.peers.mock_vendor import REPOSITORY, MockVendor
from tests.transforms.call.fakes import make_batch, make_workload
from transforms.cache import CACHE_VARIABLE
from transforms.call.engine import open_call_engine
from transforms.call.ledger import encode_frame, header
from transforms.call.ledger_file import ledger_path
from transforms.call.ledgers import read_spent
from transforms.call.share import Place
from transforms.call.share_index import SharedAnswers

BATCH = "0123456789abcdef" * 2
KEY = bytes(range(16))


@pytest.fixture
def index(tmp_path: Path) -> Iterator[SharedAnswers]:
    made = SharedAnswers(str(tmp_path))
    yield made
    made.close()


def answer_in_ledger(output: Path, text: str = "fine", batch_id: str = BATCH) -> Place:
    """Writes a ledger with one answer; where it stands."""
    first = encode_frame(header(batch_id, "live"))
    frame = encode_frame({"kind": "answered", "id": 1, "body": text, "of": [7, "ask", "doc-7"]})
    path = ledger_path(str(output), batch_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(first + frame)
    return Place(batch_id, len(first), int.from_bytes(frame[4:8], "little"))


def test_an_answer_that_was_added_is_found_by_others(tmp_path: Path, index: SharedAnswers) -> None:
    index.add(KEY, answer_in_ledger(tmp_path))
    other = SharedAnswers(str(tmp_path))
    found = other.find(KEY)
    other.close()
    assert found is not None
    assert (found.origin.batch_id, found.origin.row, found.origin.route) == (BATCH, 7, "ask")
    assert (found.origin.document_id, found.frame["body"], found.fresh) == ("doc-7", "fine", False)


def test_what_was_never_added_is_not_found(index: SharedAnswers) -> None:
    assert index.find(KEY) is None


def test_a_later_answer_replaces_an_earlier_one(tmp_path: Path, index: SharedAnswers) -> None:
    index.add(KEY, answer_in_ledger(tmp_path))
    index.add(KEY, answer_in_ledger(tmp_path, "better", "f" * 32))
    found = index.find(KEY)
    assert found is not None
    assert found.frame["body"] == "better"


@pytest.mark.parametrize("damage", ["other answer", "cut off", "gone"])
def test_a_hint_to_what_is_no_longer_there_finds_nothing(
    tmp_path: Path, index: SharedAnswers, damage: str
) -> None:
    index.add(KEY, answer_in_ledger(tmp_path))
    path = ledger_path(str(tmp_path), BATCH)
    if damage == "other answer":
        answer_in_ledger(tmp_path, "evil")  # as long as the first: same offset, same length
    elif damage == "cut off":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        path.unlink()
    assert index.find(KEY) is None


def test_a_torn_slot_finds_nothing_and_can_be_written_again(tmp_path: Path, index: SharedAnswers) -> None:
    place = answer_in_ledger(tmp_path)
    index.add(KEY, place)
    path = tmp_path / "shared" / "answers.0.index"
    data = bytearray(path.read_bytes())
    position = data.index(KEY) + 20
    data[position] ^= 1
    with path.open("r+b") as stream:
        stream.write(data)
    assert index.find(KEY) is None
    index.add(KEY, place)
    assert index.find(KEY) is not None


def test_more_answers_than_the_first_table_holds_go_to_the_next(tmp_path: Path) -> None:
    index, other = SharedAnswers(str(tmp_path)), SharedAnswers(str(tmp_path))
    place, source = answer_in_ledger(tmp_path), random.Random(1)
    keys = [source.randbytes(16) for _ in range(40_000)]
    for key in keys:
        index.add(key, place)
    assert len(list((tmp_path / "shared").glob("answers.*.index"))) == 2
    assert all(other.find(key) is not None for key in keys[::400])
    index.close()
    other.close()


def test_a_claim_is_exclusive_and_can_be_given_back(tmp_path: Path, index: SharedAnswers) -> None:
    other = SharedAnswers(str(tmp_path))
    assert index.claim(KEY)
    assert not other.claim(KEY)
    assert other.claim(bytes(16))
    index.release(KEY)
    assert other.claim(KEY)
    other.close()
    assert index.claim(KEY)


def test_the_claim_of_a_killed_process_is_free(tmp_path: Path, index: SharedAnswers) -> None:
    code = (
        "import sys; from transforms.call.share_index import SharedAnswers\n"
        "index = SharedAnswers(sys.argv[1]); print(index.claim(bytes(range(16))), flush=True); input()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "True\n"
    assert not index.claim(KEY)
    process.kill()
    process.communicate()
    assert index.claim(KEY)


def test_a_batch_id_that_is_none_is_left_out(index: SharedAnswers) -> None:
    index.add(KEY, Place("b1", 0, 0))
    assert index.find(KEY) is None


def test_an_index_that_cannot_be_made_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "shared").write_text("a file where the folder should be")
    with pytest.raises(StoreError, match="share_identical"):
        SharedAnswers(str(tmp_path))


def run_context(output: Path) -> RunContext:
    return RunContext("run", str(output), "w" * 64, True, 64)


@pytest.mark.parametrize("share", [True, False])
def test_engines_on_one_output_pay_each_distinct_request_once(tmp_path: Path, share: bool) -> None:
    """Two engines stand for two processes: their locks and files are their own."""
    workload = make_workload(
        limits=Limits(share_identical=share), rehearsal=Rehearsal(latency_ms=(5.0, 30.0))
    )
    engines = [
        open_call_engine(workload, run_context(tmp_path), budget_limit=None, environ={}) for _ in range(2)
    ]
    batches = [make_batch(20, prompt=f"q{n % 3}", batch_id=f"{n:032x}") for n in range(12)]
    futures = [engines[n % 2].submit(batch) for n, batch in enumerate(batches)]
    outcomes = [outcome for future in futures for outcome in future.result(60).outcomes]
    calls = sum(engine.stats().calls for engine in engines)
    shared = sum(engine.stats().shared for engine in engines)
    for engine in engines:
        engine.close()
    assert all(outcome.is_result for outcome in outcomes)
    assert (calls, shared) == ((3, 237) if share else (240, 0))
    assert (tmp_path / "shared").exists() == share
    spent = read_spent(str(tmp_path), [batch.batch_id for batch in batches])
    assert spent.list_amount == sum(outcome.charge.list_amount or 0 for outcome in outcomes)
    again = open_call_engine(workload, run_context(tmp_path), budget_limit=None, environ={})
    late = again.submit(make_batch(5, prompt="q1", batch_id="e" * 32)).result(60)
    assert again.stats().calls == (0 if share else 5)
    assert all(outcome.is_result for outcome in late.outcomes)
    again.close()


WORKER = """
import sys
from schemas.run import RunContext
from tests.transforms.call.fakes import MINI, make_batch, make_workload
from transforms.call.engine import open_call_engine

output, url, number = sys.argv[1], sys.argv[2], int(sys.argv[3])
workload = make_workload({"mini": MINI.model_copy(update={"base_url": url})})
run = RunContext("run", output, "w" * 64, False, 64)
engine = open_call_engine(workload, run, budget_limit=None, environ={"OPENAI_API_KEY": "sk-test-not-a-key"})
batches = [
    make_batch(15, ("mini",), f"{number * 5 + n:032x}", prompt=f"document {n} of five") for n in range(5)
]
print("ready", flush=True)
sys.stdin.readline()
futures = [engine.submit(batch) for batch in batches]
print(sum(outcome.is_result for future in futures for outcome in future.result(120).outcomes), flush=True)
engine.close()
"""


@pytest.mark.peer
def test_worker_processes_of_a_machine_pay_each_distinct_request_once_on_object_storage(
    one_cloud_storage: CloudStorage, mock_vendor: MockVendor, tmp_path: Path
) -> None:
    """As `--workers 3` starts them; the vendor's journal is the bill."""
    pattern = r"document (\d+) of"
    mock_vendor.answer("an answer about $ID", id=pattern, latency_ms=[100, 300])
    output = f"{one_cloud_storage.bucket()}/out"
    environment = {**cloud_environment(one_cloud_storage.url), CACHE_VARIABLE: str(tmp_path / "cache")}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, output, mock_vendor.base_url("openai"), str(number)],
            cwd=REPOSITORY,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(3)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:  # all are up: they ask at the same time
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    printed = [process.communicate(timeout=200)[0] for process in processes]
    assert printed == ["75\n"] * 3
    assert mock_vendor.answered(pattern) == {str(n): 1 for n in range(5)}


def test_a_key_is_not_in_the_index(tmp_path: Path) -> None:
    """Slots hold digests, ids and offsets: nothing of a request or an answer."""
    index = SharedAnswers(str(tmp_path))
    index.add(KEY, answer_in_ledger(tmp_path, "a very private answer"))
    index.close()
    data = b"".join(path.read_bytes() for path in (tmp_path / "shared").iterdir())
    assert b"private" not in data
    locks = list((tmp_path / "shared").glob("asking.*.lock"))
    assert locks
    assert {lock.stat().st_size for lock in locks} == {0}


def test_an_answer_is_found_among_slots_that_wrap_round_and_hold_what_looks_like_its_key(
    tmp_path: Path, index: SharedAnswers
) -> None:
    """A batch id that is another's key, and a run of slots that goes on at the table's beginning."""
    last = (1 << 14) - 1  # slots of the first table
    names = [number.to_bytes(8, "big") + last.to_bytes(8, "little") for number in range(1, 40)]
    for position, key in enumerate(names):
        index.add(key, Place(names[-1 - position].hex(), position, 7))
    fresh = SharedAnswers(str(tmp_path))
    found = [fresh._find_place(key) for key in names]
    assert found == [Place(names[-1 - n].hex(), n, 7) for n in range(len(names))]
    assert fresh._find_place((99).to_bytes(8, "big") + last.to_bytes(8, "little")) is None
    fresh.close()
