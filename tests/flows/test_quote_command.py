"""`switchgear quote`: what it prints, what it answers machines, and its exit codes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from flows.backstage import Backstage
from flows.cli import app
from flows.quote_command import calibrator
from flows.quote_tables import basis_lines, due_sentence, range_text, time_sentence
from flows.report import console
from flows.steps import Ending
from tests.support.documents import rows, write
from tests.support.workloads import HOSTED, write_workload
from tests.transforms.embed.tiny_model import write_tiny_model
from transforms.quote.values import Quote, Range, Seconds

DEAR = {**HOSTED, "price": {"input_per_million": "1000", "output_per_million": "10000"}}
Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    write(tmp_path / "in" / "a.parquet", rows(range(10)))

    def invoke(*arguments: object, **changes: Any) -> Result:
        path = write_workload(tmp_path, **changes)
        out, err = console(), console(stderr=True)
        out.width = 300
        backstage = replace(Backstage.real(), out=out, err=err, run_enrich=_no_run)
        return CliRunner().invoke(app, ["quote", str(path), *map(str, arguments)], obj=backstage)

    return invoke


def _no_run(*_: Any) -> Ending:
    raise AssertionError("a quote runs nothing")


def test_it_needs_no_key_prints_every_price_and_ends_with_the_budget(run: Run) -> None:
    result = run(budget__amount="100")
    assert result.exit_code == 0, result.output
    text = result.stdout
    assert "no call was made" in text
    assert "10 rows of 10 are due in 1 batch; every row that is due was routed." in text
    for words in ("likely least", "expected", "likely most", "worst case", "$0.051", "assumed:", "method:"):
        assert words in text
    assert text.rstrip().endswith("are left.")


def test_it_says_how_long_each_route_and_the_run_take_and_what_that_rests_on(run: Run) -> None:
    text = run().stdout
    assert re.search(r"^ *ask +10 +256 +\d+ s +\d+ s +\d min \d\d s *$", text, re.MULTILINE)
    assert re.search(r"^ *the run +\d+ s +\d+ s +\d min \d\d s *$", text, re.MULTILINE)
    assert "all answers" not in text
    assert "ask: time: assumed, not measured: a call takes 0.3 to 5 s" in text
    batch = run(backends__mini={"provider": "openai", "model": "gpt-5-mini", "mode": "batch"}).stdout
    assert re.search(r"^ *all answers +5 min 00 s +1 h 00 min +24 h 00 min *$", batch, re.MULTILINE)


def test_with_json_standard_output_holds_the_quote_and_nothing_else(run: Run) -> None:
    result = run("--json")
    quote = Quote.from_json(result.stdout)
    assert quote.routes[0].documents == Range(10, 10, 10)
    assert len(result.stdout.splitlines()) == 1


def test_a_quote_that_does_not_fit_is_still_a_good_answer(run: Run) -> None:
    result = run(budget__amount="0.001", backends__mini=DEAR)
    assert result.exit_code == 0
    assert "does not fit" in result.stdout


def test_an_unknown_price_is_called_unknown(run: Run) -> None:
    result = run(backends__mini={"provider": "openai", "model": "model-of-tomorrow"})
    assert result.exit_code == 0
    assert "unknown" in result.stdout
    assert "$0 " not in result.stdout


@pytest.mark.parametrize(
    ("changes", "arguments", "words"),
    [
        ({"prompts__topic__template": "{{ nothing }}"}, (), "nothing"),
        ({}, ("--input", "nowhere"), "nowhere"),
        ({"backends__mini": {"provider": "nobody"}}, (), "provider"),
    ],
)
def test_bad_configuration_is_exit_code_2_with_a_sentence(
    run: Run, changes: dict[str, Any], arguments: tuple[str, ...], words: str
) -> None:
    result = run(*arguments, **changes)
    assert result.exit_code == 2
    assert words in result.stderr


def test_bad_usage_is_exit_code_2(run: Run) -> None:
    assert run("--sample", "1").exit_code == 2
    assert run("--sample", "many").exit_code == 2


def test_the_sample_s_size_and_other_folders_can_be_given(run: Run, tmp_path: Path) -> None:
    write(tmp_path / "more" / "b.parquet", rows(range(500)))
    arguments = ("--sample", 20, "--input", tmp_path / "more", "--output", tmp_path / "o", "--json")
    quote = Quote.from_json(run(*arguments).stdout)
    assert (quote.rows_total, quote.sample, quote.routes[0].sampled) == (500, 20, 20)
    assert not (tmp_path / "o").exists()


def test_embedders_are_timed_only_when_asked_for(run: Run, tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "model")
    changes: dict[str, Any] = {
        "backends__tiny": {"provider": "jax", "model_path": "model", "price_per_device_hour": "3.6"},
        "routes": [{"name": "embed", "backends": ["tiny"]}],
    }
    route = Quote.from_json(run("--json", **changes).stdout).routes[0]
    assert (route.device_seconds, route.price.expected) == (None, None)
    timed = run("--json", "--calibrate", **changes)
    assert timed.exit_code == 0, timed.output
    route = Quote.from_json(timed.stdout).routes[0]
    assert route.device_seconds is not None
    assert 0 < route.device_seconds.low <= route.device_seconds.expected <= route.device_seconds.high
    assert route.price.expected is not None
    assert float(route.price.expected) == pytest.approx(route.device_seconds.expected / 1000, abs=1e-9)


def test_calibrating_takes_the_model_relative_to_the_workload(tmp_path: Path) -> None:
    from tests.support.workloads import load

    write_tiny_model(tmp_path / "model")
    write(tmp_path / "in" / "a.parquet", rows(range(2)))
    changes: dict[str, Any] = {
        "backends__tiny": {"provider": "jax", "model_path": "model"},
        "routes": [{"name": "embed", "backends": ["tiny"]}],
    }
    loaded = load(tmp_path, **changes)
    found = calibrator(loaded)(loaded.workload.embedder_backends()["tiny"], ["a b", "c"])
    assert found is not None
    assert found.seconds.expected > 0


def test_alternatives_stand_side_by_side_with_their_source(run: Run) -> None:
    text = run(backends__mini={"provider": "openai", "model": "gpt-5-mini"}).stdout
    assert "The same documents another way" in text
    assert "provider batches" in text
    assert "another model" in text
    assert text.count("genai-prices") >= 4


def test_ranges_are_short_where_nothing_is_in_doubt() -> None:
    assert range_text(Range(1000, 1000, 1000)) == "1,000"
    assert range_text(Range(1, 2000, 3000)) == "1 … 2,000 … 3,000"
    assert range_text(Range(0, 0, None)) == "0 … 0 … ?"


def test_sentences_follow_the_quote(run: Run) -> None:
    quote = Quote.from_json(run("--json").stdout)
    done = replace(quote, rows_due=0)
    assert due_sentence(done) == "Nothing is due: all of 10 rows is done."
    part = replace(quote, batches_total=3, batches_due=2, rows_total=30)
    assert "in 2 batches (1 batch already done)" in due_sentence(part)
    sampled = replace(quote, routing="sample", not_sent={"null_text": 3}, notes=("remark",))
    lines = basis_lines(sampled)
    assert "will not be sent: about null_text 3" in lines
    assert "note: remark" in lines
    exact = basis_lines(replace(quote, not_sent={"null_text": 3}))
    assert "will not be sent: null_text 3" in exact


def test_a_sentence_says_how_long_the_run_takes(run: Run) -> None:
    quote = Quote.from_json(run("--json").stdout)
    known = replace(
        quote, run_seconds=Seconds(40.0, 185.0, 4200.0), wall_seconds=Seconds(40.0, 185.0, 4200.0)
    )
    said = "The run takes about 3 min 05 s (likely 40 s to 1 h 10 min)."
    assert time_sentence(known) == said
    waits = replace(known, wall_seconds=Seconds(300.0, 3600.0, 86400.0))
    assert time_sentence(waits) == f"{said} Answers of provider batches come within 24 h 00 min."
    assert time_sentence(replace(quote, run_seconds=None)) == ""
    assert time_sentence(replace(known, rows_due=0)) == ""


def test_help_says_what_it_does() -> None:
    text = CliRunner().invoke(app, ["quote", "--help"]).stdout
    for option in ("--sample", "--calibrate", "--json", "--input", "--output"):
        assert option in text
    assert "no call is made" in text


def test_json_amounts_are_decimal_strings(run: Run) -> None:
    price = json.loads(run("--json").stdout)["total"]
    assert all(isinstance(value, str) for value in price.values())
