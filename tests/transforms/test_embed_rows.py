"""From Parquet to Parquet through a real embedder: every vector is its own row's, whatever the rows are."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from schemas.backends import EmbedderBackend
from tests.support.documents import rows, with_bad_utf8, write
from tests.support.fakes import FakeOpeners
from tests.support.runs import Place
from tests.transforms.embed.tiny_model import REAL_MODEL
from transforms.embed.embedder import COMPANY_TOLERANCE, Embedder, open_embedder

FAMILIES = Path(__file__).parent / "embed" / "reference" / "families"
HOSTILE: dict[str, str | None] = {
    "empty": "",
    "null": None,
    "spaces": " \t\n\u2003 ",
    "control": "\x00\x01\x1b[31m\x7f",
    "right-to-left": "\u202e\u0645\u0631\u062d\u0628\u0627\u202c",
    "emoji": "\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f3f4\U000e0067\U000e007f",
    "one-word": "w" * 10_000_000,
    "long": "a b ",
    "bad-bytes": "is replaced",
    "noncharacters": "\ufffe\uffff\U0010ffff",
}


@dataclass
class RealEmbedders(FakeOpeners):
    """Opens the workload's embedder."""

    cache: Path = Path()

    def embedder(self, backend: EmbedderBackend, base_dir: Path, lengths: Any = None) -> Any:
        return open_embedder(backend, base_dir=base_dir, cache_dir=self.cache)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def place_of(folder: Path, **changes: Any) -> Place:
    backend = {"provider": "jax", "model_path": REAL_MODEL, "compute_dtype": "float32"}
    values = {"backends__emb": backend, "routes": [{"name": "vec", "backends": ["emb"]}]}
    return Place(folder, {**values, **changes})


def embedder_of(place: Place, cache: Path) -> Embedder:
    backend = place.loaded.workload.backends["emb"]
    assert isinstance(backend, EmbedderBackend)
    return open_embedder(backend, base_dir=place.loaded.base_dir, cache_dir=cache)


@pytest.mark.parametrize(("long_documents", "pairs"), [("truncate", 50_000), ("chunk", 2_000)])
def test_hostile_rows_become_a_vector_or_a_failure_with_its_reason_and_move_no_other(
    tmp_path: Path, cache: Path, long_documents: str, pairs: int
):
    place = place_of(tmp_path, backends__emb__long_documents=long_documents, limits__batch_rows=7)
    ids = [name for kind in HOSTILE for name in (kind, f"behind-{kind}")]
    given = {**HOSTILE, "long": "a b " * pairs}
    texts = [text for number, kind in enumerate(given) for text in (given[kind], f"plain words {number}")]
    table = with_bad_utf8(rows(ids, text=texts), "text", [ids.index("bad-bytes")])
    write(place.folder / "in" / "a.parquet", table)
    run = place.run(RealEmbedders(cache=cache))
    assert {report.state for report in run.reports} == {"committed"}

    failed = {row["document_id"]: row["error_class"] for row in place.rows("failures")}
    assert {"null", "bad-bytes"} <= failed.keys() <= {"null", "bad-bytes", "empty", "spaces", "one-word"}
    made = {row["document_id"]: row for row in place.rows("results/route=vec")}
    assert made.keys() | failed.keys() == set(ids)
    assert not made.keys() & failed.keys()
    embedder = embedder_of(place, cache)
    for name, text in zip(ids, texts, strict=True):
        if name in made:
            own = embedder.embed([text or ""])
            found = np.array(made[name]["embedding"])
            np.testing.assert_allclose(found, own.vectors[0], atol=COMPANY_TOLERANCE["float32"], err_msg=name)
            assert np.linalg.norm(found) == pytest.approx(1, abs=1e-5)
            assert made[name]["truncated"] == bool(own.truncated[0])
            assert made[name]["token_count"] == own.token_counts[0]
            assert made[name]["chunks"] == own.piece_counts[0]
            assert made[name]["vector_space"] == embedder.space.fingerprint
    costs = [row["cost"] for row in (*made.values(), *place.rows("failures"))]
    billed = run.manifest.devices["vec"].device_seconds
    assert sum(cost["device_seconds"] or 0 for cost in costs) == pytest.approx(billed, rel=1e-9)
    assert billed > 0


def test_rows_that_are_permuted_doubled_and_dropped_keep_their_own_vectors(tmp_path: Path, cache: Path):
    rng = np.random.default_rng(4)
    words = ["red", "green", "blue", "seven", "eleven", "north", "south", "salt"]
    texts = [" ".join(rng.choice(words, size)) for size in rng.integers(1, 30, 120)]
    order = rng.integers(0, len(texts), 300)  # some twice and more, some never
    place = place_of(tmp_path, limits__batch_rows=64)
    ids = [f"{row}-{text}" for row, text in enumerate(order)]
    write(place.folder / "in" / "a.parquet", rows(ids, text=[texts[text] for text in order]), row_group=100)
    place.run(RealEmbedders(cache=cache))
    made = place.rows("results/route=vec")
    assert [row["document_id"] for row in made] == ids
    embedder = embedder_of(place, cache)
    alone = np.array([embedder.embed([text]).vectors[0] for text in texts[:12]])
    whole = embedder.embed(texts).vectors
    np.testing.assert_allclose(whole[:12], alone, atol=COMPANY_TOLERANCE["float32"])
    found = np.array([row["embedding"] for row in made])
    np.testing.assert_allclose(found, whole[order], atol=COMPANY_TOLERANCE["float32"])
    nearest = (found @ whole.T).argmax(1)
    assert [texts[text] for text in nearest] == [texts[text] for text in order]


def test_several_models_in_one_run_give_each_row_the_vector_of_its_own_text_by_its_own_model(
    tmp_path: Path, cache: Path
):
    """Batches share steps, routes share models, rows fail, and which rows a route takes differs."""
    shared = {"provider": "jax", "compute_dtype": "float32"}
    chunks = {"long_documents": "chunk", "chunk_overlap": 3, "max_length": 40}
    settings: dict[str, dict[str, Any]] = {
        "whole": {**shared, "model_path": str(FAMILIES / "bert")},
        "pieces": {**shared, "model_path": str(FAMILIES / "qwen3"), **chunks, "dimensions": 20},
    }
    names = {"one": "whole", "two": "pieces", "three": "whole"}
    routes: list[dict[str, Any]] = [{"name": name, "backends": [used]} for name, used in names.items()]
    routes[0]["when"] = "size % 2 = 0"
    place = Place(
        tmp_path,
        {
            **{f"backends__{name}": values for name, values in settings.items()},
            "match": "all",
            "routes": routes,
            "limits__batch_rows": 11,
        },
    )
    rng = np.random.default_rng(11)
    odd = [None, "", " \u2003", "\x00", "w" * 3000]
    texts = [
        odd[row % len(odd)] if row % 7 == 0 else f"{row} " + "row and column " * rng.integers(0, 40)
        for row in rng.integers(0, 60, 80).tolist()  # some twice and more
    ]
    write(place.folder / "in" / "a.parquet", rows(range(80), text=texts, size=list(range(80))), row_group=30)
    assert {report.state for report in place.run(RealEmbedders(cache=cache)).reports} == {"committed"}

    failed = {int(row["document_id"]) for row in place.rows("failures")}
    assert failed == {row for row, text in enumerate(texts) if text is None or not text.strip()}
    for route, used in names.items():
        backend = place.loaded.workload.backends[used]
        assert isinstance(backend, EmbedderBackend)
        embedder = open_embedder(backend, base_dir=place.loaded.base_dir, cache_dir=cache)
        made = {int(row["document_id"]): row for row in place.rows(f"results/route={route}")}
        taken = set(range(0, 80, 2 if route == "one" else 1)) - failed
        assert made.keys() == taken
        alone = {text: embedder.embed([text]) for text in {texts[row] or "" for row in taken}}
        for number, row in made.items():
            own = alone[texts[number] or ""]
            np.testing.assert_allclose(
                row["embedding"], own.vectors[0], atol=COMPANY_TOLERANCE["float32"], err_msg=f"{number}"
            )
            assert (row["token_count"], row["chunks"]) == (own.token_counts[0], own.piece_counts[0])
            assert row["vector_space"] == embedder.space.fingerprint
