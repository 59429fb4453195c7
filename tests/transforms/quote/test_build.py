"""Quotes of small inputs: exact where it can be, complete, deterministic, and without a trace."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schemas.errors import InputError, OutputError, WorkloadError
from schemas.failures import FailureClass
from tests.support.documents import rows, with_bad_utf8
from tests.support.workloads import EMBEDDER, HOSTED, TOPIC_SCHEMA
from tests.transforms.quote.bench import NOW, Bench, used
from transforms.batchmode.standing import OpenBatch
from transforms.quote.build import quote_workload
from transforms.quote.values import Price, Quote, Range

REPOSITORY = Path(__file__).parents[3]
TIMEOUT = FailureClass.TIMEOUT
REFUSED = FailureClass.REFUSED


def millionths(tokens_in: int, tokens_out: int) -> Decimal:
    """At 1 USD a million input tokens and 10 USD a million output tokens."""
    return Decimal(tokens_in + 10 * tokens_out).scaleb(-6)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


# ---- exact on tiny inputs


def test_one_document_priced_by_hand(bench: Bench) -> None:
    """The text sent is `About: text of 0`: 16 bytes, so 3 to 26 tokens by the stated ratio, 12 expected."""
    bench.documents(1)
    quote = bench.quote()
    route = quote.routes[0]
    assert (quote.rows_total, quote.rows_due, quote.batches_due, quote.rows_read) == (1, 1, 1, 1)
    assert quote.routing == "every row"
    assert route.documents == Range(1, 1, 1)
    assert route.input_tokens == Range(3, 12, 26)
    assert route.output_tokens == Range(1, 512, 1024)
    body = json.dumps(
        {
            "model": "gpt-5-mini",
            "messages": [{"role": "user", "content": "About: text of 0"}],
            "max_completion_tokens": 1024,
        },
        separators=(",", ":"),
    )
    assert route.input_bound == len(body) + 512
    assert route.price == Price(
        low=millionths(3, 1),
        expected=millionths(12, 512),
        high=millionths(26, 1024),
        worst=millionths(len(body) + 512, 1024),
        sampling_low=millionths(12, 512),
        sampling_high=millionths(12, 512),
    )
    assert (route.certainty, route.price_source) == ("estimated", "workload")
    assert quote.total == route.price


def test_bytes_are_counted_and_not_characters(bench: Bench) -> None:
    bench.documents(1, text="ä" * 93)  # 186 bytes, and `About: ` has 7
    assert bench.route().input_tokens.expected == round(193 / 4) + 8


def test_system_text_and_schema_are_part_of_every_request(bench: Bench) -> None:
    bench.documents(1)
    plain = bench.route().input_tokens.expected
    bench.load(prompts__topic__system="s" * 400)
    with_system = bench.route().input_tokens.expected
    bench.load(prompts__topic__json_schema=TOPIC_SCHEMA)
    with_schema = bench.route().input_tokens.expected
    size = len(json.dumps(TOPIC_SCHEMA, separators=(",", ":")))
    assert (with_system - plain, with_schema - with_system) == (100, round((416 + size) / 4) - 104)


def test_an_answers_length_comes_from_its_schema(bench: Bench) -> None:
    bench.documents(1)
    bench.load(prompts__topic__json_schema=TOPIC_SCHEMA)
    route = bench.route()
    # {"topic":"…","score":123} has 2 + 9 + 82 + 8 + 3 = 105 bytes and a comma in the keys' count
    assert route.output_tokens.expected == round((2 + 7 + 2 + 82 + 7 + 2 + 3) / 4)
    assert "JSON Schema" in route.output_basis
    assert route.output_tokens.high == 1024


def test_a_repair_is_in_the_worst_case_and_only_there(bench: Bench) -> None:
    bench.documents(1)
    bench.load(prompts__topic__json_schema=TOPIC_SCHEMA, prompts__topic__repair=False)
    once = bench.route().price
    bench.load(prompts__topic__repair=True)
    twice = bench.route().price
    assert once.worst is not None
    assert twice.worst is not None
    assert twice.worst > 2 * once.worst
    assert (once.low, once.expected, once.high) == (twice.low, twice.expected, twice.high)


def test_many_documents_are_the_sum_of_each(bench: Bench) -> None:
    texts = ["x" * n for n in range(1, 41)]
    bench.documents(40, text=texts)
    route = bench.route()
    assert route.documents == Range(40, 40, 40)
    assert route.input_tokens.expected == sum(round((7 + n) / 4) + 8 for n in range(1, 41))
    assert route.per_document is not None
    assert (route.per_document.p50, route.per_document.most) == (round(28 / 4) + 8, round(47 / 4) + 8)


def test_the_worst_case_is_the_sum_of_what_the_engine_reserves(bench: Bench) -> None:
    from schemas.outcomes import Assignment
    from transforms.call.request import CallRequest
    from transforms.call.site import build_sites, place_of
    from transforms.call.wire import EncodedRequest
    from transforms.price import PriceBook

    class Clock:
        def now(self) -> Any:
            return NOW

        def monotonic(self) -> float:
            return 0.0

    bench.load(backends__mini={"provider": "openai", "model": "gpt-5-mini", "max_output_tokens": 77})
    texts = ['quote " and ümlaut', "plain", "x" * 3000]
    bench.documents(3, text=texts)
    backends = bench.loaded.workload.hosted_backends()
    place = {"mini": place_of("mini", "https://api.openai.com/v1", None)}
    site = build_sites(backends, place, Clock(), PriceBook(), False)["mini"]  # type: ignore[arg-type]
    reserved = Decimal(0)
    for text in texts:
        request = CallRequest(Assignment(0, "ask", "", ("mini",), None), "", f"About: {text}", None, "", "")
        encoded: EncodedRequest = site.encode(request)
        worst = site.worst_case(encoded, NOW)
        assert worst is not None
        reserved += worst
    assert bench.route().price.worst == reserved


# ---- what is sent, and to whom


def test_faulty_filtered_and_rejected_rows_are_not_priced(bench: Bench) -> None:
    bench.load(
        input__filter="kind <> 'skip'",
        policy__reject=[{"name": "big", "when": "size >= 100", "reason": "too big"}],
        routes=[{"name": "ask", "when": "kind <> 'lost'", "backends": ["mini"], "prompt": "topic"}],
    )
    kinds = ["note", "skip", "note", "note", "lost", "note", "note"]
    table = rows(
        [0, 1, 2, None, 4, 5, 0], kind=kinds, size=[1, 1, 100, 1, 1, 1, 1], text=["t"] * 5 + [" ", "t"]
    )
    bench.write("a", table)
    quote = bench.quote()
    assert quote.routes[0].documents == Range(1, 1, 1)
    assert quote.not_sent == {
        "duplicate_id": 1, "empty_text": 1, "no_route": 1, "null_id": 1, "policy_rejected": 1,
    }  # fmt: skip


def test_repeated_ids_of_the_whole_input_are_priced_once(bench: Bench) -> None:
    bench.write("a", rows(["x", "y"]))
    bench.write("b", rows(["y", "z"]))
    quote = bench.quote()
    assert (quote.rows_due, quote.routes[0].documents.expected) == (4, 3)


def test_text_that_is_no_utf8_and_a_template_that_fails_are_not_sent(bench: Bench) -> None:
    bench.load(prompts__topic__template="{{ 10 // size }} {{ text }}")
    bench.write("a", with_bad_utf8(rows(range(5), size=[1, 2, 0, 1, 1]), "text", [0]))
    quote = bench.quote()
    assert quote.routes[0].documents == Range(3, 3, 3)
    assert quote.not_sent == {"invalid_text": 1, "prompt_error": 1}


def test_each_route_is_priced_by_itself(bench: Bench) -> None:
    bench.load(
        routes=[
            {"name": "short", "when": "size < 3", "backends": ["mini"], "prompt": "topic"},
            {"name": "rest", "backends": ["dear"], "prompt": "topic"},
        ],
        backends__dear={**HOSTED, "price": {"input_per_million": "100", "output_per_million": "1000"}},
    )
    bench.documents(10)
    quote = bench.quote()
    short, rest = quote.routes
    assert (short.documents.expected, rest.documents.expected) == (3, 7)
    assert short.price.expected is not None
    assert rest.price.expected is not None
    assert rest.price.expected / 7 == short.price.expected / 3 * 100
    assert quote.total.expected == short.price.expected + rest.price.expected


def test_with_all_matches_a_document_is_priced_on_every_route(bench: Bench) -> None:
    again = [{"name": name, "backends": ["mini"], "prompt": "topic"} for name in ("one", "two")]
    bench.load(match="all", routes=again)
    bench.documents(4)
    assert [route.documents.expected for route in bench.quote().routes] == [4, 4]


def test_the_chain_s_dearest_backend_bounds_the_price_and_the_first_is_expected(bench: Bench) -> None:
    dear = {**HOSTED, "price": {"input_per_million": "5", "output_per_million": "50"}}
    bench.load(routes=[{"name": "ask", "backends": ["mini", "dear"], "prompt": "topic"}], backends__dear=dear)
    bench.documents(1)
    route = bench.route()
    assert route.backends == ("mini", "dear")
    assert route.price.expected == millionths(12, 512)
    assert route.price.high == 5 * millionths(26, 1024)
    assert [a.expected for a in route.alternatives if a.kind == "chain"] == [5 * millionths(12, 512)]


def test_a_split_is_priced_arm_by_arm(bench: Bench) -> None:
    dear = {**HOSTED, "price": {"input_per_million": "5", "output_per_million": "50"}}
    split = [{"weight": 3, "backends": ["mini"]}, {"weight": 1, "backends": ["dear"]}]
    bench.load(routes=[{"name": "ask", "split": split, "prompt": "topic"}], backends__dear=dear)
    bench.documents(200, text="t" * 9)
    price = bench.route().price.expected
    assert price is not None
    each = millionths(12, 512)
    dear_ones = (price - 200 * each) / (4 * each)
    assert dear_ones == int(dear_ones)
    assert 30 <= dear_ones <= 70


# ---- unknown is unknown


def test_an_unknown_price_is_said_and_never_zero(bench: Bench) -> None:
    bench.load(backends__mini={"provider": "openai", "model": "model-of-tomorrow"}, budget__amount="1")
    bench.documents(3)
    quote = bench.quote()
    route = quote.routes[0]
    assert route.price == Price()
    assert (route.certainty, route.price_source) == ("unknown", None)
    assert route.input_tokens.expected > 0
    assert quote.total.expected is None
    assert (quote.budget.fits, "a price is missing" in quote.budget.sentence) == ("unknown", True)
    assert any("model-of-tomorrow" in note for note in route.notes)


def test_an_unknown_price_further_down_the_chain_leaves_the_expected_one_known(bench: Bench) -> None:
    bench.load(
        routes=[{"name": "ask", "backends": ["mini", "new"], "prompt": "topic"}],
        backends__new={"provider": "openai", "model": "model-of-tomorrow"},
    )
    bench.documents(1)
    route = bench.route()
    assert route.price.expected == millionths(12, 512)
    assert (route.price.high, route.price.worst) == (None, None)
    chain = [(a.expected, a.certainty) for a in route.alternatives if a.kind == "chain"]
    assert chain == [(None, "unknown")]


def test_an_input_without_rows_costs_nothing(bench: Bench) -> None:
    bench.documents(0)
    bench.load(budget__amount="1")
    quote = bench.quote()
    assert (quote.rows_total, quote.batches_due, quote.routes[0].documents) == (0, 0, Range(0, 0, 0))
    assert quote.total.worst == 0
    assert quote.budget.fits == "yes"


def test_bad_configuration_is_named(bench: Bench) -> None:
    bench.documents(1)
    bench.load(prompts__topic__template="{{ nothing }}")
    with pytest.raises(WorkloadError, match="nothing"):
        bench.quote()
    bench.load(input__uri="nowhere")
    with pytest.raises(InputError, match="nowhere"):
        bench.quote()


# ---- the output: what is there is not priced again


def test_committed_batches_are_not_priced_again(bench: Bench) -> None:
    bench.load(limits__batch_rows=4)
    bench.documents(10)
    bench.begin()
    whole = bench.quote()
    bench.commit(bench.due()[0])
    rest = bench.quote()
    assert (whole.rows_due, rest.rows_due, rest.rows_total) == (10, 6, 10)
    assert (rest.batches_total, rest.batches_due) == (3, 2)
    assert rest.routes[0].documents == Range(6, 6, 6)
    for ref in bench.due():
        bench.commit(ref)
    done = bench.quote()
    assert (done.rows_due, done.total.worst) == (0, 0)


def test_of_a_batch_with_failures_the_retryable_ones_are_priced(bench: Bench) -> None:
    bench.documents(10)
    bench.begin()
    bench.commit(bench.due()[0], [TIMEOUT, TIMEOUT, REFUSED])
    assert bench.quote().rows_due == 2
    assert bench.route().documents == Range(2, 2, 2)
    assert bench.route(retry_classes=("refused",)).documents == Range(3, 3, 3)


def test_failures_that_a_killed_run_did_not_publish_are_priced_and_stay_where_they_are(bench: Bench) -> None:
    bench.documents(10)
    bench.begin()
    bench.commit(bench.due()[0], [TIMEOUT], publish=False)
    before = snapshot(Path(bench.store.root))
    assert bench.route().documents == Range(1, 1, 1)
    assert snapshot(Path(bench.store.root)) == before


def test_answers_in_the_ledger_of_an_unfinished_batch_are_not_priced(bench: Bench) -> None:
    from transforms.call.ledger import encode_frame, header
    from transforms.call.ledger_file import ledger_path

    bench.documents(5)
    bench.begin()
    ref = bench.due()[0]
    path = ledger_path(bench.store.root, ref.batch_id)
    path.parent.mkdir(parents=True)
    calls = [
        {"kind": "intended", "id": i, "attempt": 1, "row": i, "route": "ask", "backend": "mini", "call": 1,
         "request": "r" * 64, "worst": "0.01", "at": "2026-11-22T09:00:00+00:00"}
        for i in (1, 2)
    ]  # fmt: skip
    ends = [
        {"kind": "answered", "id": 1, "status": 200, "headers": {}, "body": "{}", "latency_ms": 1.0,
         "usage": {"input_tokens": 1, "output_tokens": 1, "cache_read_input_tokens": None,
                   "cache_creation_input_tokens": None},
         "charge": {"amount": "0.005", "list_amount": "0.005", "basis": "tokens", "certainty": "exact",
                    "price_source": None, "price_as_of": None, "currency": "USD"},
         "at": "2026-11-22T09:00:01+00:00"}
    ]  # fmt: skip
    frames = [header(ref.batch_id, "live"), *calls, *ends]
    path.write_bytes(b"".join(encode_frame(frame) for frame in frames))
    bench.load(budget__amount="1")
    quote = bench.quote()
    assert quote.routes[0].documents == Range(4, 4, 4)  # the other call's end is not known: it is sent again
    assert any("1 answers" in note for note in quote.notes)
    assert quote.budget.caps[0].spent == Decimal(
        "0.015"
    )  # what was answered, and the worst case of the other


def test_requests_that_wait_in_provider_batches_are_mentioned(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.documents(1)
    bench.begin()
    job = OpenBatch("tag", "mini", "gpt-5-mini", "submitted", 7, "batch-1", None, "", "0.1")
    monkeypatch.setattr("transforms.quote.ground.open_batches", lambda _: [job])
    assert any("7 requests wait in provider batches" in note for note in bench.quote().notes)


@pytest.mark.parametrize("rehearsal", [True, False])
def test_an_output_that_a_run_would_refuse_counts_as_empty_and_a_note_says_so(
    bench: Bench, rehearsal: bool
) -> None:
    bench.documents(4)
    bench.begin(rehearsal=rehearsal)
    bench.commit(bench.due()[0])
    if not rehearsal:
        bench.load(prompts__topic__template="Otherwise: {{ text }}")
    quote = bench.quote()
    assert quote.rows_due == 4
    what = "rehearsed results" if rehearsal else "another version"
    assert any(what in note and "would refuse" in note for note in quote.notes)


def test_a_folder_of_somebody_else_is_noted_and_left_alone(bench: Bench) -> None:
    bench.documents(1)
    stranger = Path(bench.loaded.output_uri, "precious.txt")
    stranger.parent.mkdir()
    stranger.write_text("mine")
    assert any("no output of Switchgear" in note for note in bench.quote().notes)
    assert [p.name for p in stranger.parent.iterdir()] == ["precious.txt"]


def test_a_replaced_input_file_is_refused_as_a_run_would(bench: Bench) -> None:
    bench.documents(4)
    bench.begin()
    bench.commit(bench.due()[0])
    bench.documents(5)
    with pytest.raises(OutputError, match="was replaced"):
        bench.quote()


def test_answers_that_are_there_measure_those_to_come(bench: Bench) -> None:
    bench.load(limits__batch_rows=30)
    bench.documents(100, text="x" * 93)
    bench.begin()
    for ref, tokens in zip(bench.due()[:2], (40, 60), strict=True):
        bench.commit(ref, outcome=used(50, tokens))
    route = bench.route()
    assert route.documents.expected == 40
    assert route.output_tokens.expected == 40 * 50
    assert "measured: 60 documents" in route.output_basis
    assert route.input_tokens.expected == 40 * 50  # 100 bytes each, and 50 tokens billed for each
    assert "2.00 UTF-8 bytes" in route.input_basis


def test_the_budget_is_compared_with_what_is_left(bench: Bench) -> None:
    bench.load(limits__batch_rows=5, budget__amount="1")
    bench.documents(10)
    bench.begin()
    bench.commit(bench.due()[0])  # five answers at one cent
    (cap,) = bench.quote().budget.caps
    assert (cap.limit, cap.spent, cap.left) == (Decimal(1), Decimal("0.05"), Decimal("0.95"))


# ---- without a trace


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(p.relative_to(folder)): (p.stat().st_mtime_ns, p.read_bytes() if p.is_file() else b"")
        for p in sorted(folder.rglob("*"))
    }


def test_nothing_is_written_anywhere(bench: Bench) -> None:
    bench.load(budget__amount="1", limits__batch_rows=3)
    bench.documents(10)
    before = snapshot(bench.folder)
    bench.quote()
    assert snapshot(bench.folder) == before
    bench.begin()
    bench.commit(bench.due()[0], [TIMEOUT])
    before = snapshot(bench.folder)
    bench.quote()
    assert snapshot(bench.folder) == before


def test_no_socket_is_opened_no_key_is_read_and_no_file_is_opened_for_writing(bench: Bench) -> None:
    """By the interpreter's own audit events, in a process of its own without any key."""
    bench.documents(5)
    bench.begin()
    script = """
import sys
from datetime import UTC, datetime
from pathlib import Path
from schemas.load import load_workload
from transforms.batchmode.standing import OpenBatch
from transforms.quote.build import quote_workload
seen = []
def audit(event, arguments):
    if event.startswith(("socket.", "os.mkdir", "os.rename", "os.remove", "os.link", "shutil.")):
        seen.append((event, str(arguments)))
    if event == "open" and set(str(arguments[1])) & set("wax+"):
        seen.append((event, str(arguments)))
loaded = load_workload(Path(sys.argv[1]))
sys.addaudithook(audit)
quote = quote_workload(loaded, datetime.now(UTC))
assert quote.routes[0].documents.expected == 5, quote
print(seen)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(bench.loaded.path)],
        cwd=REPOSITORY,
        env={"PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


def test_quoting_works_with_the_network_off(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a quote must not open a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    bench.documents(3)
    assert bench.quote().rows_due == 3


def test_heavy_engines_are_not_needed() -> None:
    script = (
        "import sys, transforms.quote.build\n"
        "print([m for m in ('apache_beam', 'prefect', 'jax', 'aiohttp') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


# ---- samples


def many_batches(bench: Bench, batches: int, **changes: Any) -> None:
    """Batches of ten documents whose texts grow from batch to batch, and whose kinds come in blocks."""
    texts = ["x" * (50 + 7 * (n // 10) + n % 10) for n in range(batches * 10)]
    kinds = ["rare" if n // 10 == 77 else "often" for n in range(batches * 10)]
    bench.load(limits__batch_rows=10, **changes)
    bench.documents(batches * 10, text=texts, kind=kinds)


TWO_ROUTES = [
    {"name": "rare", "when": "kind = 'rare'", "backends": ["mini"], "prompt": "topic"},
    {"name": "ask", "backends": ["mini"], "prompt": "topic"},
]


def test_conditions_are_evaluated_on_every_row_where_that_is_cheap(bench: Bench) -> None:
    many_batches(bench, 150, routes=TWO_ROUTES)
    quote = bench.quote(sample=100)
    assert quote.routing == "conditions on every row"
    rare, often = quote.routes
    assert rare.documents == Range(10, 10, 10)  # its one batch was read
    # no faulty row in 64 batches: by the rule of three fewer than 3/64 of all are
    assert often.documents == Range(1490 - 70, 1490, 1490)
    assert quote.rows_read < 1500


def test_a_route_that_one_sample_does_not_meet_has_an_upper_bound_and_no_price(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transforms.quote.population._SURVEY_ROWS", 0)
    many_batches(bench, 150, routes=TWO_ROUTES)
    for seed in range(20):  # batch 77 is in 64 of 150 samples
        quote = bench.quote(sample=100, seed=seed)
        assert quote.routing == "sample"
        rare, often = quote.routes
        if rare.documents.expected == 0:
            assert rare.documents == Range(0, 0, -(-3 * 1500 // 64))
            assert (rare.price.expected, rare.price.high, rare.price.worst) == (0, None, None)
            assert quote.total.high is None
        assert often.documents.low <= 1490 <= (often.documents.high or 0)
    assert any(bench.quote(seed=s).routes[0].documents.expected == 0 for s in range(5))


def test_the_interval_of_real_quotes_covers_the_whole_input_s_price(bench: Bench) -> None:
    many_batches(bench, 150)
    truth = sum(round((7 + 50 + 7 * (n // 10) + n % 10) / 4) + 8 for n in range(1500))
    whole = 1500 * Decimal("0.00512") + Decimal(truth).scaleb(-6)
    covered = 0
    for seed in range(20):
        price = bench.route(sample=150, seed=seed).price
        assert price.sampling_low is not None
        assert price.sampling_high is not None
        covered += price.sampling_low <= whole <= price.sampling_high
    assert covered >= 17  # of 20 at 95 %: fewer happen once in 200 tries


def test_the_same_input_and_seed_give_the_same_quote_and_another_seed_another(bench: Bench) -> None:
    many_batches(bench, 150)
    first, second = bench.quote(sample=100, seed=5), bench.quote(sample=100, seed=5)
    assert first == second
    assert bench.quote(sample=100, seed=6).routes != first.routes


def test_a_larger_sample_looks_at_more_documents(bench: Bench) -> None:
    many_batches(bench, 100)
    small, large = bench.route(sample=64), bench.route(sample=1000)
    assert small.sampled < large.sampled == 640  # all of the batches that are read


def test_batches_that_can_t_be_read_are_left_out_and_named(bench: Bench) -> None:
    bench.documents(50, text=[f"{n}" * 200 for n in range(50)])
    path = bench.folder / "in" / "b.parquet"
    bench.write("b", rows(range(50, 100), text=[f"{n}" * 200 for n in range(50)]), compression="zstd")
    data = bytearray(path.read_bytes())
    data[4:400] = bytes(396)
    path.write_bytes(bytes(data))
    bench.load(input__unique_ids="batch")
    quote = bench.quote()
    assert quote.routes[0].documents == Range(50, 50, 50)
    assert any("can't be read" in note for note in quote.notes)


# ---- machines read it too


def test_json_goes_there_and_back(bench: Bench) -> None:
    bench.load(budget__amount="1")
    bench.documents(3)
    quote = bench.quote()
    assert Quote.from_json(quote.to_json()) == quote
    assert Quote.from_json(json.dumps(quote.to_dict())) == quote
    price = json.loads(quote.to_json())["routes"][0]["price"]
    assert all(isinstance(v, str) and "E" not in v for v in price.values())


def test_a_quote_of_another_version_is_not_read(bench: Bench) -> None:
    bench.documents(1)
    data = {**bench.quote().to_dict(), "version": "quote/99"}
    with pytest.raises(ValueError, match="quote/99"):
        Quote.from_json(json.dumps(data))


TEXTS = st.lists(st.text(st.characters(exclude_categories=("Cs",)), max_size=60), min_size=1, max_size=12)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=TEXTS)
def test_whatever_the_texts_the_figures_are_in_order_and_add_up(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str]
) -> None:
    bench = Bench(tmp_path_factory.mktemp("any"))
    bench.write("a", rows(range(len(texts)), text=texts))
    quote = bench.quote()
    price, route = quote.total, quote.routes[0]
    assert None not in (price.low, price.expected, price.high, price.worst)
    assert price.low <= price.expected <= price.high <= price.worst  # type: ignore[operator]
    assert route.documents.expected + sum(quote.not_sent.values()) == len(texts)
    assert Quote.from_json(quote.to_json()) == quote


# ---- embeddings


def test_an_embed_route_without_a_model_is_a_configuration_error(bench: Bench) -> None:
    from schemas.errors import ModelError

    bench.load(backends__minilm=EMBEDDER, routes=[{"name": "embed", "backends": ["minilm"]}])
    bench.documents(1)
    with pytest.raises(ModelError, match="some_model"):
        bench.quote()


def test_hosted_embeddings_have_tokens_and_no_answers(bench: Bench) -> None:
    backend = {
        "provider": "openai", "model": "text-embedding-3-small", "operation": "embeddings", "dimensions": 8,
    }  # fmt: skip
    bench.load(backends__mini=backend, routes=[{"name": "ask", "backends": ["mini"]}])
    bench.documents(2, text="x" * 400)
    route = bench.route()
    assert route.output_tokens == Range(0, 0, 0)
    assert route.input_tokens.expected == 2 * (100 + 8)
    assert route.price.expected == Decimal("0.00000002") * 216  # 0.02 USD a million
    assert route.price.worst is not None


@pytest.mark.parametrize(
    ("backend", "certain"),
    [
        ({"provider": "gemini", "model": "gemini-3.6-flash"}, True),
        ({"provider": "gemini", "model": "gemini-3.6-flash", "platform": "vertex", "project": "my-project",
          "location": "global"}, True),
        ({"provider": "anthropic", "model": "claude-haiku-4-5", "platform": "vertex", "project": "my-project",
          "location": "us-east5"}, True),
        ({"provider": "openai", "model": "some-server-s-own", "base_url": "http://127.0.0.1:8000/v1",
          "requires_key": False}, False),
        ({"provider": "gemini", "model": "gemini-embedding-001", "operation": "embeddings", "dimensions": 8},
         True),
    ],
)  # fmt: skip
def test_every_kind_of_backend_can_be_quoted_without_a_key(
    bench: Bench, backend: dict[str, Any], certain: bool
) -> None:
    prompt = {} if "operation" in backend else {"prompt": "topic"}
    bench.load(backends__mini=backend, routes=[{"name": "ask", "backends": ["mini"], **prompt}])
    bench.documents(3)
    route = bench.route()
    assert route.documents == Range(3, 3, 3)
    assert (route.price.expected is not None) == certain
    if route.price.worst is not None:
        assert route.price.low is not None
        assert route.price.high is not None
        assert 0 < route.price.low <= route.price.high <= route.price.worst


def test_a_backend_in_batch_mode_is_expected_at_half_and_at_most_at_the_full_price(bench: Bench) -> None:
    online = {"provider": "openai", "model": "gpt-5-mini"}
    bench.documents(2)
    bench.load(backends__mini=online)
    full = bench.route()
    bench.load(backends__mini={**online, "mode": "batch"})
    half = bench.route()
    assert full.price.expected is not None
    assert half.price.expected == full.price.expected / 2
    assert half.price.high == full.price.high
    assert half.price.worst == full.price.worst
    assert [a.expected for a in half.alternatives if a.kind == "online"] == [full.price.expected]
    assert not [a for a in half.alternatives if a.kind == "batch"]


def test_the_function_takes_any_table_that_the_workload_reads(tmp_path: Path) -> None:
    """Dictionary-encoded texts and integer ids, as other writers make them."""
    bench = Bench(tmp_path)
    table = pa.table(
        {
            "id": pa.array([1, 2, 3], pa.int64()),
            "text": pa.array(["a", "b", "a"]).dictionary_encode(),
            "kind": ["note"] * 3,
            "size": [1, 2, 3],
        }
    )
    bench.write("a", table)
    assert quote_workload(bench.loaded, NOW).routes[0].documents == Range(3, 3, 3)


# ---- how long it takes


def test_a_quote_says_how_long_the_route_and_the_run_take_and_why(bench: Bench) -> None:
    bench.documents(40)
    bench.load(backends__mini={**HOSTED, "max_in_flight": 8, "requests_per_minute": 10})
    quote = bench.quote()
    route = quote.routes[0]
    assert (route.calls, route.calls_at_a_time) == (Range(40, 40, 40), 8)
    assert route.wall_seconds == quote.run_seconds == quote.wall_seconds
    assert quote.run_seconds is not None
    assert 240 < quote.run_seconds.expected < 300, "40 calls at 10 a minute"
    assert "assumed, not measured" in route.wall_basis
    assert "requests_per_minute" not in route.wall_basis
    assert Quote.from_json(quote.to_json()) == quote


def test_without_a_stated_limit_the_quote_says_that_it_counts_on_none(bench: Bench) -> None:
    bench.documents(1)
    assert "no `requests_per_minute` is stated" in bench.route().wall_basis


def test_identical_requests_are_sent_once_unless_the_workload_says_otherwise(bench: Bench) -> None:
    bench.documents(40, text="the same")
    assert bench.route().calls == Range(1, 1, 40), "at the most each is sent"
    bench.load(limits={"share_identical": False})
    assert bench.route().calls == Range(40, 40, 40)


def test_documents_in_provider_batches_take_their_window_and_the_run_does_not(bench: Bench) -> None:
    bench.documents(40)
    bench.load(backends__mini={**HOSTED, "mode": "batch"}, limits={"batch_deadline_h": 12})
    quote = bench.quote()
    assert quote.run_seconds is not None
    assert quote.wall_seconds is not None
    assert quote.run_seconds.high < 300
    assert (quote.wall_seconds.expected, quote.wall_seconds.high) == (3600.0, 43_200.0)
    assert quote.routes[0].wall_seconds == quote.wall_seconds
    assert "in provider batches" in quote.routes[0].wall_basis


def test_the_time_of_a_run_that_embeds_is_unknown_until_the_device_is_measured(
    bench: Bench, tmp_path: Path
) -> None:
    from tests.transforms.embed.tiny_model import write_tiny_model
    from transforms.quote.embedding import Throughput
    from transforms.quote.values import Seconds

    write_tiny_model(tmp_path / "model")
    bench.documents(4)
    bench.load(
        backends__tiny={"provider": "jax", "model_path": "model"},
        routes=[{"name": "embed", "backends": ["tiny"]}],
    )
    assert (bench.quote().run_seconds, bench.route("embed").wall_seconds) == (None, None)
    measured = bench.quote(calibrate=lambda *_: Throughput(Seconds(10.0, 20.0, 30.0), "measured"))
    device = measured.routes[0].device_seconds
    assert device is not None
    assert measured.run_seconds is not None
    assert measured.run_seconds.high > device.high > 100


def test_only_the_batches_that_are_wanted_are_quoted(bench: Bench) -> None:
    bench.load(limits__batch_rows=10)
    bench.documents(30)
    wanted = bench.due()[1].batch_id
    quote = bench.quote(only_batches=(wanted[:12],))
    assert (quote.batches_due, quote.rows_due, quote.routes[0].documents) == (1, 10, Range(10, 10, 10))
    with pytest.raises(InputError, match="no such batch"):
        bench.quote(only_batches=("nothing",))
