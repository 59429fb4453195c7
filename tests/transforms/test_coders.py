import pickle
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam import typehints
from apache_beam.coders import registry
from apache_beam.testing.util import assert_that

from pipelines.options import pipeline_options
from schemas.batches import BatchRef
from transforms.coders import RecordBatchCoder, TableCoder, register_arrow_coders
from transforms.work import WorkBatch

BIG = pa.table({"id": range(10_000), "text": ["some text that is long enough to weigh"] * 10_000})


@pytest.fixture(autouse=True)
def _registered() -> None:
    register_arrow_coders()


@pytest.mark.parametrize(
    "table",
    [
        BIG.slice(0, 3),
        pa.table({"x": pa.chunked_array([[1], [2, 3]]), "deep": [[{"a": None}], [], None]}),
        pa.table({"x": pa.array([], pa.float16())}),
        pa.table({}),
        pa.table({"x": [1]}).replace_schema_metadata({"k": "v"}),
        pa.table({"d": pa.array(["a", "b", "a"]).dictionary_encode()}),
    ],
)
def test_a_table_comes_back_as_it_was(table: pa.Table) -> None:
    back = TableCoder().decode(TableCoder().encode(table))
    assert back.equals(table, check_metadata=True)


@pytest.mark.parametrize(
    "batch", [BIG.to_batches()[0].slice(5, 2), pa.record_batch({"x": pa.array([], pa.int8())})]
)
def test_a_record_batch_comes_back_as_it_was(batch: pa.RecordBatch) -> None:
    assert RecordBatchCoder().decode(RecordBatchCoder().encode(batch)).equals(batch, check_metadata=True)


@pytest.mark.parametrize("name", ["id", "text"])
def test_a_slice_encodes_its_own_rows_only(name: str) -> None:
    part = BIG.select([name]).slice(5000, 10)
    assert len(TableCoder().encode(part)) < 1500
    assert len(RecordBatchCoder().encode(part.to_batches()[0])) < 1500
    assert len(pickle.dumps(part)) > 50_000  # why these coders exist


def test_what_travels_is_compressed() -> None:
    assert len(TableCoder().encode(BIG)) < BIG.nbytes / 4


def test_coders_are_found_by_type_and_are_no_keys() -> None:
    for kind, coder in ((pa.Table, TableCoder), (pa.RecordBatch, RecordBatchCoder)):
        found = registry.get_coder(kind)
        assert isinstance(found, coder)
        assert found.to_type_hint() is kind
        assert not found.is_deterministic()


def _table(number: int) -> pa.Table:
    return BIG.slice(number, 2)


def _ids(table: pa.Table) -> list[int]:
    return table.column("id").to_pylist()


def test_tables_cross_a_real_shuffle_as_arrow() -> None:
    def check(found: list[list[int]]) -> None:
        assert sorted(found) == [[0, 1], [7, 8]]

    with beam.Pipeline(options=pipeline_options([])) as pipeline:
        tables = pipeline | beam.Create([0, 7]) | beam.Map(_table).with_output_types(pa.Table)
        assert isinstance(registry.get_coder(tables.element_type), TableCoder)
        shuffled = tables | beam.Reshuffle()
        assert shuffled.element_type is pa.Table
        assert_that(shuffled | beam.Map(_ids), check)


def test_a_batch_at_work_is_never_pickled_only_to_know_how_large_it_is() -> None:
    class Unpicklable(WorkBatch):
        def __reduce__(self) -> Any:
            raise AssertionError("pickled")

    table = pa.table({"id": ["a"], "text": ["x" * 1000]})
    ref = BatchRef("b", "in.parquet", "1", 0, 0, 1, 1)
    batch = Unpicklable(ref, table, [None], 0, [], [])
    register_arrow_coders()
    for hint, value in (
        (WorkBatch, batch),
        (typehints.Tuple[WorkBatch, str, Any], (batch, "w", ())),
    ):
        size, _ = registry.get_coder(hint).get_impl().get_estimated_size_and_observables(value)
        assert 1000 <= size < 4000
