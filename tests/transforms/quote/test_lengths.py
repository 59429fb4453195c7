"""The lengths that shapes are chosen by: sampled once for an output, and again when its texts change."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from schemas.lengths import TextLengths
from tests.transforms.embed.tiny_model import write_tiny_model
from tests.transforms.quote.bench import Bench
from transforms.quote.lengths import settle_lengths
from transforms.quote.values import Quote
from transforms.store import LocalStore


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    write_tiny_model(tmp_path / "model")
    backend = {"provider": "jax", "model_path": "model", "max_length": 6}
    return Bench(tmp_path, backends__tiny=backend, routes=[{"name": "embed", "backends": ["tiny"]}])


def test_lengths_are_those_of_the_tokens_of_the_run_s_own_texts(bench: Bench) -> None:
    bench.documents(5, text=["a", "a b", "b a", "a b c d e f g h", None])
    lengths = bench.route("embed").lengths
    assert lengths == TextLengths(((3, 1), (4, 2), (6, 1)), 4, 4)


def test_a_sample_is_taken_from_all_over_the_input_and_stands_for_all_of_it(bench: Bench) -> None:
    for number, name in enumerate("abcd"):
        texts: list[Any] = ["w " * (number + 1)] * 400
        bench.write(name, documents_of(name, texts))
    lengths = bench.route("embed", sample=80).lengths
    assert lengths is not None
    assert [tokens for tokens, _ in lengths.counts] == [3, 4, 5, 6]
    assert lengths.documents == 1600
    assert 80 <= lengths.sampled < 200
    assert lengths == bench.route("embed", sample=80).lengths


def documents_of(name: str, texts: list[Any]) -> Any:
    from tests.support.documents import rows

    return rows([f"{name}{n}" for n in range(len(texts))], text=texts)


def test_of_a_text_in_chunks_each_chunk_counts_and_the_quote_pays_for_all(bench: Bench) -> None:
    bench.load(backends__tiny__long_documents="chunk", backends__tiny__chunk_overlap=1)
    bench.documents(1, text=["a b c d e f g"])
    route = bench.route("embed")  # [CLS] abcd [SEP], [CLS] defg [SEP]
    assert route.lengths == TextLengths(((6, 2),), 1, 1)
    assert route.input_tokens.expected == 12


def quoted(bench: Bench, **routes: dict[int, int]) -> Quote:
    """A quote with an embed route for each name, and so many texts of so many tokens on it."""
    bench.documents(1)
    quote = bench.quote()
    made = [
        replace(
            quote.routes[0],
            route=name,
            backends=(name[0],),
            lengths=TextLengths.of(counts, sum(counts.values()), 10_000),
        )
        for name, counts in routes.items()
    ]
    return replace(quote, routes=tuple(made))


def test_the_first_run_of_an_output_settles_them_and_its_resumes_have_the_same(
    bench: Bench, tmp_path: Path
) -> None:
    store = LocalStore(str(tmp_path / "out"))
    first = settle_lengths(store, "run-1", quoted(bench, a1={10: 300}, a2={20: 100}, b1={7: 2}))
    assert first == {
        "a": TextLengths(((10, 300), (20, 100)), 400, 20_000),
        "b": TextLengths(((7, 2),), 2, 10_000),
    }
    for run, rest in [("run-2", {500: 3}), ("run-3", {}), ("run-4", {11: 299, 21: 101})]:
        assert settle_lengths(store, run, quoted(bench, a1=rest)) == first
    assert list(store.list("lengths")) == ["lengths/run-1.json"]


def test_a_run_over_texts_of_other_lengths_gets_its_own_and_leaves_other_backends_alone(
    bench: Bench, tmp_path: Path
) -> None:
    store = LocalStore(str(tmp_path / "out"))
    settle_lengths(store, "run-1", quoted(bench, a={10: 300}, b={7: 300}))
    longer = settle_lengths(store, "run-2", quoted(bench, a={10: 200, 400: 100}, b={8: 300}))
    assert longer["a"].counts == ((10, 200), (400, 100))
    assert longer["b"].counts == ((7, 300),)
    assert settle_lengths(store, "run-3", quoted(bench, a={400: 2})) == longer
    assert sorted(store.list("lengths")) == ["lengths/run-1.json", "lengths/run-2.json"]


def test_a_run_without_embedders_keeps_nothing(tmp_path: Path) -> None:
    hosted = Bench(tmp_path)
    hosted.documents(3)
    store = LocalStore(str(tmp_path / "out"))
    assert settle_lengths(store, "run-1", hosted.quote()) == {}
    assert list(store.list("lengths")) == []
