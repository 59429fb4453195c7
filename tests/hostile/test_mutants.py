import os
from collections import Counter
from pathlib import Path

import pytest

from schemas.errors import InputError, UnreadableBatchError
from schemas.limits import Limits
from schemas.workload import Input
from tests.hostile.mutants import ROWS, SOUND, mutant
from tests.support.documents import rows, write
from transforms.cut import cut_batches
from transforms.duplicates import IdRun, find_duplicates
from transforms.files import describe_files, find_input
from transforms.input_files import Files, InputFile
from transforms.input_schema import common_schema
from transforms.probe import Reader, ReaderDiedError, ReaderLimits
from transforms.read import BatchReader

MUTANTS = int(os.environ.get("SWITCHGEAR_MUTANTS", "500"))
FIRST = 1_000_000
A_TIME = 500
# With these, pyarrow 25 aborts the process that looks at the footer.
KILLERS = (7239, 9250, 10332, 12314, 13573)
SETTINGS = Input(uri="in", id="id", text="text", columns=("list", "struct"), unreadable_files="skip")


def plant(folder: Path, seeds: range | tuple[int, ...]) -> list[str]:
    folder.mkdir(exist_ok=True)
    for seed in seeds:
        (folder / f"{seed:09}.parquet").write_bytes(mutant(seed))
    return [str(folder / f"{seed:09}.parquet") for seed in seeds]


def outcome(described: InputFile | str) -> str:
    """How a file ends: refused, or how many of its batches could not be read; anything else is raised."""
    if isinstance(described, str):
        return "refused"
    try:
        schema = common_schema(Files.of([described]), SETTINGS)
    except InputError:
        return "refused"
    reader, refs, unreadable = BatchReader(schema), list(cut_batches([described], Limits(batch_rows=30))), 0
    for ref in refs:
        try:
            assert reader.read(ref).num_rows == ref.row_count
        except UnreadableBatchError:
            unreadable += 1
    find_duplicates([IdRun(described.uri, g.index) for g in described.row_groups], schema, "id", None)
    reader.close()
    return "read" if not unreadable else "partly" if unreadable < len(refs) else "unreadable"


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("start", range(FIRST, FIRST + MUTANTS, A_TIME))
def test_every_mutant_ends_as_a_refusal_a_failed_batch_or_rows(tmp_path: Path, start: int) -> None:
    paths = plant(tmp_path / "in", range(start, start + A_TIME))
    ends = Counter(outcome(described) for described in describe_files(paths, SETTINGS.needed_columns))
    assert sum(ends.values()) == A_TIME
    assert min(ends[end] for end in ("refused", "read", "partly", "unreadable")) > 0, ends


@pytest.mark.parametrize("data", SOUND, ids=range(len(SOUND)))
def test_the_files_that_mutants_are_made_of_are_sound(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.parquet").write_bytes(data)
    (described,) = describe_files([str(tmp_path / "a.parquet")], SETTINGS.needed_columns)
    assert isinstance(described, InputFile)
    assert described.rows == ROWS
    assert outcome(described) == "read"


def test_a_file_that_kills_its_reader_is_named_and_its_neighbours_are_fine(tmp_path: Path) -> None:
    paths = plant(tmp_path, KILLERS)
    for number in range(7):
        write(tmp_path / f"{number * 2_000:09}.parquet", rows([number], list=[[1]], struct=[{"a": 1}]))
    found = find_input(str(tmp_path), SETTINGS)
    assert [file.rows for file in found.files] == [1] * 7
    assert list(found.skipped) == [
        f"{path}: no readable Parquet file (the reader died: SIGABRT)" for path in paths
    ]


def test_the_killers_do_kill(tmp_path: Path) -> None:
    for path in plant(tmp_path, KILLERS):
        reader = Reader(ReaderLimits())
        with pytest.raises(ReaderDiedError, match="SIGABRT"):
            reader.footer(path, Path(path).stat().st_size, tuple(SETTINGS.needed_columns))
        assert not reader.alive
