"""Exact search over results on disk."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.arrow import chat_schema, embedding_schema
from schemas.errors import InputError
from transforms import search as module
from transforms.embed.embedder import Embeddings, VectorSpace
from transforms.search import Hit, search
from transforms.store import Store, open_store

DIM = 4
SPACE = VectorSpace(
    model="m",
    weights_sha256="a",
    tokenizer_sha256="b",
    settings_sha256="c",
    pooling="mean",
    normalize=True,
    max_length=256,
    dim=DIM,
    compute_dtype="float32",
    dtype="float32",
)


class FakeEmbedder:
    """Knows one vector for each query."""

    def __init__(self, space: VectorSpace = SPACE, **known: Sequence[float]) -> None:
        self.space = space
        self._known = known

    def embed(self, texts: Sequence[str]) -> Embeddings:
        vectors = np.array([self._known.get(text, [0.0] * DIM) for text in texts], np.float32)
        errors = {i: "a lone surrogate" for i, text in enumerate(texts) if text not in self._known}
        count = len(texts)
        return Embeddings(vectors, np.ones(count, np.int32), np.zeros(count, bool), np.zeros(count), errors)


def write(
    output: Path,
    name: str,
    vectors: dict[str, Sequence[float]],
    route: str = "embed",
    space: str = SPACE.fingerprint,
    dtype: str = "float32",
) -> Path:
    schema = embedding_schema([pa.field("title", pa.string())], DIM, pa.type_for_alias(dtype), space)
    flat = np.array(list(vectors.values()), dtype).reshape(-1)
    columns = {
        "document_id": pa.array(list(vectors)),
        "title": pa.array([f"title of {key}" for key in vectors]),
        "embedding": pa.FixedSizeListArray.from_arrays(pa.array(flat), type=schema.field("embedding").type),
        "token_count": pa.array([3] * len(vectors), pa.int32()),
        "truncated": pa.array([False] * len(vectors)),
    }
    arrays = [columns.get(f.name, pa.nulls(len(vectors), f.type)) for f in schema]
    path = output / "results" / f"route={route}" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(arrays, schema=schema), path, row_group_size=3)
    return path


EAST = FakeEmbedder(east=[1, 0, 0, 0])


def test_the_nearest_come_first_from_all_files_with_their_cosines(tmp_path: Path):
    write(tmp_path, "a.parquet", {"north": [0, 1, 0, 0], "east": [1, 0, 0, 0]})
    write(tmp_path, "b.parquet", {"northeast": [0.6, 0.8, 0, 0], "west": [-1, 0, 0, 0]})
    hits = search(str(tmp_path), "embed", "east", EAST, k=3)
    assert [hit.document_id for hit in hits] == ["east", "northeast", "north"]
    assert [hit.score for hit in hits] == pytest.approx([1.0, 0.6, 0.0])


def test_results_are_searched_wherever_they_are(tmp_path: Path, store: Store):
    for name, vectors in (
        ("a", {"north": [0, 1, 0, 0]}),
        ("b", {"east": [1, 0, 0, 0], "west": [-1, 0, 0, 0]}),
    ):
        path = write(tmp_path / "made", f"{name}.parquet", vectors)
        assert store.create(f"results/route=embed/{name}.parquet", path.read_bytes())
    store.create("results/route=other/c.parquet", path.read_bytes())
    hits = search(store.root, "embed", "east", EAST, k=2, columns=["title"])
    assert [(hit.document_id, hit.columns) for hit in hits] == [
        ("east", {"title": "title of east"}),
        ("north", {"title": "title of north"}),
    ]
    with pytest.raises(InputError, match="no Parquet files"):
        search(store.root, "nowhere", "east", EAST)


def test_further_columns_come_along(tmp_path: Path):
    write(tmp_path, "a.parquet", {"x": [1, 0, 0, 0]})
    (hit,) = search(str(tmp_path), "embed", "east", EAST, columns=["title", "token_count"])
    assert hit == Hit("x", 1.0, {"title": "title of x", "token_count": 3})


def test_the_document_id_may_be_asked_for_as_a_column_too(tmp_path: Path):
    write(tmp_path, "a.parquet", {"x": [1, 0, 0, 0]})
    (hit,) = search(str(tmp_path), "embed", "east", EAST, columns=["document_id"])
    assert hit.columns == {"document_id": "x"}


VECTORS = st.lists(st.lists(st.integers(-3, 3), min_size=DIM, max_size=DIM), min_size=1, max_size=40)


@settings(max_examples=40, deadline=None)
@given(VECTORS, VECTORS, st.integers(1, 50), st.integers(1, 7))
def test_streaming_finds_what_sorting_everything_finds(
    tmp_path_factory: pytest.TempPathFactory,
    first: list[list[int]],
    second: list[list[int]],
    k: int,
    rows: int,
):
    output = tmp_path_factory.mktemp("output")
    write(output, "a.parquet", {f"a{i}": vector for i, vector in enumerate(first)})
    write(output, "b.parquet", {f"b{i}": vector for i, vector in enumerate(second)})
    embedder = FakeEmbedder(q=[1, 2, -1, 0.5])
    hits = search(str(output), "embed", "q", embedder, k=k, batch_rows=rows)
    query = np.array([1, 2, -1, 0.5]) / np.linalg.norm([1, 2, -1, 0.5])
    names = [f"a{i}" for i in range(len(first))] + [f"b{i}" for i in range(len(second))]
    matrix = np.array(first + second, np.float64)
    expected = matrix @ query / np.maximum(np.linalg.norm(matrix, axis=1), 1e-30)
    assert len(hits) == min(k, len(names))
    assert [hit.score for hit in hits] == pytest.approx(sorted(expected, reverse=True)[:k], abs=1e-6)
    assert [hit.score for hit in hits] == pytest.approx(
        [expected[names.index(hit.document_id)] for hit in hits], abs=1e-6
    )
    assert len({hit.document_id for hit in hits}) == len(hits)


def test_ties_go_to_the_earlier_file_and_row(tmp_path: Path):
    write(tmp_path, "b.parquet", {f"b{i}": [1, 0, 0, 0] for i in range(9)})
    write(tmp_path, "a.parquet", {f"a{i}": [2, 0, 0, 0] for i in range(5)})
    hits = search(str(tmp_path), "embed", "east", EAST, k=7, batch_rows=2)
    assert [hit.document_id for hit in hits] == ["a0", "a1", "a2", "a3", "a4", "b0", "b1"]


def test_half_precision_vectors_are_searched_too(tmp_path: Path):
    space = dataclasses.replace(SPACE, dtype="float16")
    write(
        tmp_path,
        "a.parquet",
        {"x": [0.6, 0.8, 0, 0], "y": [0, 1, 0, 0]},
        space=space.fingerprint,
        dtype="float16",
    )
    hits = search(str(tmp_path), "embed", "east", FakeEmbedder(space, east=[1, 0, 0, 0]))
    assert hits[0].document_id == "x"
    assert hits[0].score == pytest.approx(0.6, abs=1e-3)


def test_vectors_that_are_not_normalised_are_compared_by_cosine(tmp_path: Path):
    write(tmp_path, "a.parquet", {"long": [3, 4, 0, 0], "zero": [0, 0, 0, 0], "short": [0.1, 0, 0, 0]})
    hits = search(str(tmp_path), "embed", "east", FakeEmbedder(east=[9, 0, 0, 0]))
    assert [(hit.document_id, round(hit.score, 5)) for hit in hits] == [
        ("short", 1.0),
        ("long", 0.6),
        ("zero", 0.0),
    ]


def test_another_vector_space_is_refused_before_anything_is_compared(tmp_path: Path):
    write(tmp_path, "a.parquet", {"x": [1, 0, 0, 0]})
    other = write(tmp_path, "b.parquet", {"y": [1, 0, 0, 0]}, space="space/1:feed")
    with pytest.raises(InputError) as caught:
        search(str(tmp_path), "embed", "east", EAST)
    text = str(caught.value)
    assert str(other) in text
    assert "space/1:feed" in text
    assert SPACE.fingerprint in text
    assert "embed the documents again" in text


def test_answers_of_a_hosted_route_are_no_vectors(tmp_path: Path):
    folder = tmp_path / "results" / "route=chat"
    folder.mkdir(parents=True)
    pq.write_table(chat_schema([], None).empty_table(), folder / "a.parquet")
    with pytest.raises(InputError, match="holds no embeddings"):
        search(str(tmp_path), "chat", "east", EAST)


def test_a_route_without_results_is_named(tmp_path: Path):
    with pytest.raises(InputError, match="route=nothing: no Parquet files"):
        search(str(tmp_path), "nothing", "east", EAST)


def test_an_unknown_column_is_named_with_those_there_are(tmp_path: Path):
    write(tmp_path, "a.parquet", {"x": [1, 0, 0, 0]})
    with pytest.raises(InputError, match="no column 'colour'; it has document_id, title, embedding"):
        search(str(tmp_path), "embed", "east", EAST, columns=["colour"])


def test_a_query_that_cannot_be_embedded_is_refused(tmp_path: Path):
    write(tmp_path, "a.parquet", {"x": [1, 0, 0, 0]})
    with pytest.raises(InputError, match="the query can't be embedded: a lone surrogate"):
        search(str(tmp_path), "embed", "\ud800", EAST)


def test_an_empty_query_finds_nothing_and_says_so(tmp_path: Path):
    with pytest.raises(InputError, match="the query is empty"):
        search(str(tmp_path), "embed", " ", EAST)


@pytest.mark.parametrize("k", [0, -1])
def test_fewer_than_one_hit_is_refused(tmp_path: Path, k: int):
    with pytest.raises(InputError, match="expected at least 1"):
        search(str(tmp_path), "embed", "east", EAST, k=k)


def test_a_file_that_is_no_parquet_is_named(tmp_path: Path):
    folder = tmp_path / "results" / "route=embed"
    folder.mkdir(parents=True)
    (folder / "broken.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(InputError, match=r"broken\.parquet: not readable as Parquet"):
        search(str(tmp_path), "embed", "east", EAST)


def test_a_file_whose_pages_are_damaged_is_named(tmp_path: Path):
    write(tmp_path, "a.parquet", {"x": [1, 0, 0, 0]})
    path = write(tmp_path, "b.parquet", {f"d{i}": [1.0, i, 0, 0] for i in range(30)})
    data = bytearray(path.read_bytes())
    for at in range(4, 500):  # pages; the footer stays as it is
        data[at] ^= 0x5A
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"b\.parquet: damaged \(.*ledger verify"):
        search(str(tmp_path), "embed", "east", EAST)


def test_a_vector_that_is_no_number_is_no_hit_and_hides_none(tmp_path: Path):
    write(tmp_path, "a.parquet", {"x": [1, 0, 0, 0]})
    write(tmp_path, "b.parquet", {"y": [0, 1, 0, 0], "broken": [1, np.nan, 0, 0]})
    with pytest.raises(InputError, match=r"b\.parquet: damaged .*no number"):
        search(str(tmp_path), "embed", "east", EAST)


def test_a_folder_with_a_space_and_other_files_in_it_is_fine(tmp_path: Path):
    output = tmp_path / "an output"
    path = write(output, "a.parquet", {"x": [1, 0, 0, 0]})
    (path.parent / "notes.txt").write_text("hello", encoding="utf-8")
    assert [hit.document_id for hit in search(str(output), "embed", "east", EAST)] == ["x"]
    assert [hit.document_id for hit in search(output.as_uri(), "embed", "east", EAST)] == ["x"]


def test_no_more_than_a_batch_of_vectors_is_in_memory_at_a_time(tmp_path: Path):
    many = {f"d{i}": [1.0, i, 0, 0] for i in range(5000)}
    write(tmp_path, "a.parquet", many)
    store = open_store(str(tmp_path))
    files = module._result_files(store, "embed")
    sizes = [batch.num_rows for file in files for batch in module._batches(store, file, ["embedding"], 512)]
    assert max(sizes) <= 512
    assert sum(sizes) == 5000
