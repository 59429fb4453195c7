import pyarrow as pa
import pytest

from transforms.batch_ids import binary_ids, ids_in, name_of, packed_ids, written_ids

IDS = ["0" * 32, "ab" + "0" * 30, "f" * 32, "0123456789abcdef" * 2]
BINARY = pa.array([bytes.fromhex(name) for name in IDS], pa.binary(16))


def test_an_id_is_written_as_it_was_even_if_it_ends_in_zeros() -> None:
    assert [name_of(batch) for batch in packed_ids(IDS)] == IDS
    assert len(packed_ids([])) == 0


@pytest.mark.parametrize(
    "array", [BINARY, pa.array(IDS), pa.array(IDS).dictionary_encode()], ids=["binary", "text", "dictionary"]
)
def test_the_ids_of_a_column_are_the_same_however_they_are_kept_and_cut(array: pa.Array) -> None:
    for pieces in ([], [array[1:3]], [array[:0]], [array[2:], array[:0], array[:1]]):
        found = ids_in(pa.chunked_array(pieces, array.type))
        names = [i if isinstance(i, str) else i.hex() for piece in pieces for i in piece.to_pylist()]
        assert [name_of(batch) for batch in found] == names


def test_ids_become_the_column_that_they_came_from() -> None:
    assert binary_ids(ids_in(pa.chunked_array([BINARY]))[::-1]).to_pylist() == BINARY.to_pylist()[::-1]


def test_ids_become_the_text_that_they_came_from() -> None:
    assert written_ids(packed_ids(IDS)).to_pylist() == IDS
    assert written_ids(packed_ids([])).to_pylist() == []
