import time
from collections.abc import Callable
from pathlib import Path

import pytest

from schemas.errors import InputError, UnreadableBatchError
from schemas.limits import Limits
from schemas.workload import Input
from tests.hostile import bombs
from tests.hostile.peak import peak_of
from tests.support.documents import rows, write
from tests.support.runs import Place
from transforms.cut import cut_batches
from transforms.files import find_input
from transforms.input_files import InputFile
from transforms.probe import READER_BYTES, READER_SECONDS, leave_reader, take_reader
from transforms.probe import ReaderLimits as Limited
from transforms.read import BatchReader

NO_MEMORY = "it needs more memory than limits.reader_bytes allows"
REFUSED = {
    bombs.ten_million_short_texts: "claims 10,000,000 rows",
    bombs.a_hundred_million_nulls: "claims 100,000,000 rows",
    bombs.deep_nesting: "claims 65 levels of nesting",
    bombs.twenty_thousand_columns: "claims 20,002 columns",
    bombs.a_lie_about_rows: "claims 1,099,511,627,776 rows",
    bombs.a_lie_about_bytes: "uncompressed bytes of row group 0",
    bombs.a_page_that_stands_twice: "compressed bytes of row group 0",
}
UNREADABLE = {
    bombs.one_enormous_text: NO_MEMORY,
    bombs.enormous_text_behind_good_rows: NO_MEMORY,
    bombs.one_long_text_in_a_million_rows: NO_MEMORY,
    bombs.a_list_of_a_hundred_million: NO_MEMORY,
}
Bomb = Callable[[], bytes]


def settings(path: Path) -> Input:
    extra = ("extra",) if b"extra" in path.read_bytes()[-20_000_000:] else ()
    return Input(uri="in", id="id", text="text", columns=extra)


def plant(folder: Path, bomb: Bomb) -> Path:
    path = folder / f"{bomb.__name__}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bomb())
    return path


def read_all(file: InputFile, reader: BatchReader) -> tuple[int, list[str]]:
    """Rows that can be read, and what is said of the others."""
    good, said = 0, []
    for ref in cut_batches([file], Limits()):
        try:
            good += reader.read(ref).num_rows
        except UnreadableBatchError as error:
            said.append(str(error))
    return good, said


def test_there_are_twelve_kinds() -> None:
    assert len(bombs.BOMBS) == 12
    assert set(bombs.BOMBS) == {*REFUSED, *UNREADABLE, bombs.wide_struct}


@pytest.mark.parametrize("bomb", REFUSED, ids=lambda bomb: bomb.__name__)
def test_a_footer_that_claims_what_can_not_be_is_refused_by_name(tmp_path: Path, bomb: Bomb) -> None:
    path = plant(tmp_path, bomb)
    started = time.monotonic()
    with pytest.raises(InputError, match=f"{bomb.__name__}.parquet: no readable Parquet file") as caught:
        find_input(str(path), settings(path))
    assert REFUSED[bomb] in str(caught.value)
    assert time.monotonic() - started < READER_SECONDS


@pytest.mark.parametrize("bomb", UNREADABLE, ids=lambda bomb: bomb.__name__)
def test_rows_that_need_too_much_memory_fail_their_batches(tmp_path: Path, bomb: Bomb) -> None:
    path = plant(tmp_path, bomb)
    found = find_input(str(path), settings(path))
    started = time.monotonic()
    good, said = read_all(found.files[0], BatchReader(found.schema))
    assert time.monotonic() - started < READER_SECONDS
    assert UNREADABLE[bomb] in said[0]
    assert path.name in said[0]
    assert good == (20 if bomb is bombs.enormous_text_behind_good_rows else 0)


@pytest.mark.parametrize("bomb", bombs.BOMBS, ids=lambda bomb: bomb.__name__)
def test_no_bomb_takes_more_than_a_reader_may(tmp_path: Path, bomb: Bomb) -> None:
    path = plant(tmp_path, bomb)
    reader = take_reader(Limited(memory=READER_BYTES, seconds=READER_SECONDS - 0.5))
    peaks = [peak_of(reader, path, settings(path)), peak_of(reader, path, settings(path))]
    leave_reader(reader)
    assert 0 < max(peaks) <= READER_BYTES


def test_what_is_merely_odd_is_read(tmp_path: Path) -> None:
    path = plant(tmp_path, bombs.wide_struct)
    found = find_input(str(path), settings(path))
    assert read_all(found.files[0], BatchReader(found.schema)) == (3, [])


def test_with_more_memory_an_enormous_text_is_read_so_that_its_row_alone_fails(tmp_path: Path) -> None:
    path = plant(tmp_path, bombs.enormous_text_behind_good_rows)
    found = find_input(str(path), settings(path))
    reader = BatchReader(found.schema, Limited(memory=2 * READER_BYTES))
    assert read_all(found.files[0], reader) == (21, [])


def test_a_bomb_costs_its_own_batches_and_the_run_names_it(tmp_path: Path) -> None:
    place = Place(tmp_path / "place", {"limits__batch_rows": 4, "input__unique_ids": "run"})
    write(place.folder / "in" / "a.parquet", rows(["a1", "a2", "a3"]))
    write(place.folder / "in" / "c.parquet", rows(["c1", "c2", "c3"]))
    texts = ["fine"] * 4 + ["A" * 300_000_000]
    table = rows([f"b{i}" for i in range(5)], text=texts)
    write(place.folder / "in" / "b.parquet", table, compression="zstd", use_dictionary=False)
    run = place.run()
    (failed,) = [report for report in run.reports if report.state == "failed"]
    assert "in/b.parquet, row group 0, rows 4–4: can't be read" in failed.error
    assert run.manifest.state == "incomplete"
    answered = {row["document_id"] for row in place.rows("results/route=ask")}
    assert answered == {"a1", "a2", "a3", "b0", "b1", "b2", "b3", "c1", "c2", "c3"}
