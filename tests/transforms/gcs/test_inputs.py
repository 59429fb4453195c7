"""Input files in Cloud Storage: found, described and read as local ones are, at the generation planned."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from schemas.batches import BatchRef
from schemas.errors import InputChangedError, InputError, UnreadableBatchError
from schemas.limits import Limits
from schemas.workload import Input
from tests.peers.cloud_storage import CloudStorage
from tests.support import documents
from tests.support.flaky_cloud import Weather, flaky, only
from transforms.cut import cut_batches
from transforms.duplicates import IdRun, find_duplicates
from transforms.files import find_input, refuse_own_results
from transforms.gcs import inputs
from transforms.gcs.inputs import Ranges, find_objects
from transforms.probe import Reader, ReaderDiedError, ReaderLimits
from transforms.read import BatchReader
from transforms.store import Store, open_store

SETTINGS = Input(uri="x", id="id", text="text", columns=("kind", "size"))


def upload(store: Store, path: Path, name: str) -> None:
    assert store.create(name, path.read_bytes())


@pytest.fixture
def bucket(cloud_storage: CloudStorage) -> str:
    return cloud_storage.bucket()


@pytest.fixture
def filled(bucket: str, tmp_path: Path) -> str:
    """A folder with two files in it, one of them in a folder of its own, and what is not to be read."""
    store = open_store(bucket)
    one = documents.write(tmp_path / "in/one.parquet", documents.rows(range(50)), row_group=20)
    two = documents.write(tmp_path / "in/deep/two.parquet", documents.rows(range(50, 80)))
    upload(store, one, "in/one.parquet")
    upload(store, two, "in/deep/two.parquet")
    for name in ("in/_tmp/x.parquet", "in/.hidden.parquet", "in/notes.txt", "inside/other.parquet"):
        store.create(name, b"no")
    return bucket


@pytest.mark.parametrize(
    ("address", "names"),
    [
        ("in", ["in/deep/two.parquet", "in/one.parquet"]),
        ("in/", ["in/deep/two.parquet", "in/one.parquet"]),
        ("in/one.parquet", ["in/one.parquet"]),
        ("in/*.parquet", ["in/.hidden.parquet", "in/one.parquet"]),
        ("in/o*.parquet", ["in/one.parquet"]),
        ("in/**/t?o.parquet", ["in/deep/two.parquet"]),
        ("i[mn]/[!.]*.parquet", ["in/one.parquet"]),
        ("none", []),
        ("in/[.parquet", []),
    ],
)
def test_an_address_is_an_object_a_folder_or_a_glob(filled: str, address: str, names: list[str]) -> None:
    assert [found.path for found in find_objects(f"{filled}/{address}")] == [f"{filled}/{n}" for n in names]


@pytest.mark.parametrize(
    "address", ["a[1]b?", "a[1]b?/", "a[1]b?/é #1 %41+.parquet", "a[[]1]b[?]/*.parquet", "a*/*#1*"]
)
def test_names_may_have_any_signs_and_those_of_globs_are_first_taken_as_they_stand(
    bucket: str, address: str
) -> None:
    store, name = open_store(bucket), "a[1]b?/é #1 %41+.parquet"
    store.create(name, b"yes")
    store.create("a1bc/other.parquet", b"no")  # what a glob would match
    assert [found.path for found in find_objects(f"{bucket}/{address}")] == [f"{bucket}/{name}"]
    assert open_store(f"{bucket}/a[1]b?").read("é #1 %41+.parquet") == b"yes"


def test_files_are_described_as_local_ones_are(filled: str, tmp_path: Path) -> None:
    there, here = find_input(f"{filled}/in", SETTINGS), find_input(str(tmp_path / "in"), SETTINGS)
    assert there.schema == here.schema
    assert [(f.size, f.schema, f.row_groups) for f in there.files] == [
        (f.size, f.schema, f.row_groups) for f in here.files
    ]
    assert [f.uri for f in there.files] == [f"{filled}/in/deep/two.parquet", f"{filled}/in/one.parquet"]
    assert all(f.generation.startswith("gcs:") and f.generation[4:].isdigit() for f in there.files)


def planned(address: str) -> tuple[list[BatchRef], pa.Schema]:
    found = find_input(address, SETTINGS)
    return list(cut_batches(found.files, Limits(batch_rows=8))), found.schema


def test_batches_are_read_row_for_row_as_from_local_files(filled: str, tmp_path: Path) -> None:
    tables = []
    for address in (f"{filled}/in", str(tmp_path / "in")):
        refs, schema = planned(address)
        reader = BatchReader(schema)
        tables.append([reader.read(ref).to_pylist() for ref in refs])
        reader.close()
    assert tables[0] == tables[1]


def test_files_of_many_blocks_are_read_whole(bucket: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(inputs, "BLOCK_BYTES", 10_007)
    texts = [f"{n} " * (n % 97) for n in range(5000)]
    table = documents.rows(range(5000), text=texts)
    upload(
        open_store(bucket), documents.write(tmp_path / "a.parquet", table, compression="none"), "a.parquet"
    )
    found = find_input(f"{bucket}/a.parquet", SETTINGS)
    refs = list(cut_batches(found.files, Limits(batch_rows=1000)))
    reader = BatchReader(found.schema)
    rows = [row for ref in refs for row in reader.read(ref).to_pylist()]
    reader.close()
    assert rows == [{"id": str(n), "text": texts[n], "kind": "note", "size": n} for n in range(5000)]


def test_an_object_that_was_replaced_since_the_plan_is_not_read(filled: str, tmp_path: Path) -> None:
    refs, schema = planned(f"{filled}/in/one.parquet")
    store = open_store(filled)
    _, generation = store.read_versioned("in/one.parquet")
    other = documents.write(tmp_path / "other.parquet", documents.rows(range(50), text="new"), row_group=20)
    store.swap("in/one.parquet", other.read_bytes(), generation)
    with pytest.raises(InputChangedError, match=r"one\.parquet has changed since this run was planned"):
        BatchReader(schema).read(refs[0])
    again, _ = planned(f"{filled}/in/one.parquet")
    assert again[0].batch_id != refs[0].batch_id


def test_an_object_that_is_gone_is_said(filled: str) -> None:
    refs, schema = planned(f"{filled}/in/one.parquet")
    open_store(filled).delete("in/one.parquet")
    with pytest.raises(InputChangedError):
        BatchReader(schema).read(refs[0])


def test_objects_that_are_no_parquet_are_all_named(bucket: str) -> None:
    store = open_store(bucket)
    store.create("in/empty.parquet", b"")
    store.create("in/text.parquet", b"not parquet at all")
    with pytest.raises(InputError) as error:
        find_input(f"{bucket}/in", SETTINGS)
    assert "in/empty.parquet: the object is empty (0 bytes)" in str(error.value)
    assert "in/text.parquet: no readable Parquet file" in str(error.value)


def test_nothing_and_other_kinds_of_storage_are_refused_with_what_to_give(bucket: str) -> None:
    with pytest.raises(InputError, match="as a folder or a glob it holds no Parquet files"):
        find_input(f"{bucket}/nothing", SETTINGS)
    with pytest.raises(InputError, match="no such kind of input; give a path, or gs://BUCKET/FOLDER"):
        find_input("s3://bucket/x", SETTINGS)


def test_results_are_never_read_as_documents(filled: str) -> None:
    found = find_input(f"{filled}/in", SETTINGS)
    with pytest.raises(InputError, match="lies in the output folder"):
        refuse_own_results(found, f"{filled}/in/deep")
    refuse_own_results(found, f"{filled}/i")


def test_repeated_ids_are_found_across_objects(bucket: str, tmp_path: Path) -> None:
    store = open_store(bucket)
    for name, ids in {"a": ["1", "2", "3"], "b": ["3", "4", "1"]}.items():
        upload(store, documents.write(tmp_path / name, documents.rows(ids)), f"in/{name}.parquet")
    found = find_input(f"{bucket}/in", SETTINGS)
    runs = [IdRun(file.uri, 0) for file in found.files]
    repeated = find_duplicates(runs, found.schema, "id", None)
    assert [repeated.rows_of(number) for number in range(2)] == [[], [0, 2]]


class Recorded:
    """Files elsewhere, and what was asked for."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.asked: list[tuple[str, int, int]] = []

    def size(self, uri: str) -> int:
        return len(self.data)

    def fetch(self, uri: str, start: int, length: int) -> bytes:
        self.asked.append((uri, start, length))
        return self.data[start : start + length]


def test_a_reader_is_handed_ranges_of_the_file_that_it_was_asked_about(tmp_path: Path) -> None:
    path = documents.write(tmp_path / "a.parquet", documents.rows(range(10)))
    reader = Reader(ReaderLimits())
    reader.elsewhere = Recorded(path.read_bytes())
    schema, groups = reader.footer("gs://bucket/a", path.stat().st_size, ("id",))
    assert (schema.names, groups[0][0]) == (["id", "text", "kind", "size"], 10)
    assert {uri for uri, _, _ in reader.elsewhere.asked} == {"gs://bucket/a"}
    with pytest.raises(ReaderDiedError):  # a reader that asks without having been asked
        reader._hand_over("", 0, 10)
    reader.close()


def test_a_reader_whose_ranges_can_not_be_had_is_ended_and_the_reason_told(tmp_path: Path) -> None:
    class Gone(Recorded):
        def fetch(self, uri: str, start: int, length: int) -> bytes:
            raise FileNotFoundError(uri)

    reader = Reader(ReaderLimits())
    reader.elsewhere = Gone(b"x" * 1000)
    with pytest.raises(FileNotFoundError):
        reader.footer("gs://bucket/a", 1000, ("id",))
    assert not reader.alive


def test_blocks_are_fetched_once_while_neighbours_need_them(filled: str) -> None:
    ranges = Ranges()
    uri = f"{filled}/in/one.parquet"
    whole = open_store(filled).read("in/one.parquet")
    assert ranges.fetch(uri, 0, 10) == whole[:10]
    open_store(filled).delete("in/one.parquet")
    assert ranges.fetch(uri, 5, 100) == whole[5:105]  # it is here already
    assert ranges.fetch(uri, len(whole) - 3, 100) == whole[-3:]


def test_a_file_that_comes_in_one_piece_is_compared_with_its_checksum(
    filled: str, cloud_storage: CloudStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = open_store(filled).read("in/one.parquet")
    weather = Weather(0, {})
    weather.choose = only("flipped", "alt=media", 2)
    with flaky(cloud_storage.url, weather) as url:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", url)
        assert Ranges().fetch(f"{filled}/in/one.parquet", 4, 100) == whole[4:104]
    assert weather.counts["flipped"] == 2


def test_a_batch_of_another_size_than_planned_is_no_batch(filled: str) -> None:
    refs, schema = planned(f"{filled}/in/one.parquet")
    with pytest.raises(UnreadableBatchError, match="the footer promises 99 rows"):
        BatchReader(schema).read(replace(refs[0], row_count=99))
