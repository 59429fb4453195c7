import os
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.documents import rows, with_bad_utf8, write
from transforms.probe import (
    Reader,
    ReaderDiedError,
    ReaderError,
    ReaderLimits,
    leave_reader,
    take_reader,
)
from transforms.probe_footer import Footer
from transforms.probe_footers import Located, read_footers

SCHEMA = pa.schema([("id", pa.large_string()), ("text", pa.large_string()), ("size", pa.int64())])
OWN = ReaderLimits(seconds=59.0)  # no other test asks for it, so its readers are this file's


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(write(tmp_path / "a.parquet", rows(range(100)), row_group=60))


@pytest.fixture
def reader() -> Iterator[Reader]:
    """A reader that was used before, and will be again."""
    taken = take_reader(OWN)
    yield taken
    leave_reader(taken)


def size_of(path: str) -> int:
    return os.stat(path).st_size


def footers_of(*paths: str, columns: Sequence[str] = ("id",)) -> list[Footer | ReaderError]:
    files = [Located(path, size_of(path)) for path in paths]
    found = list(read_footers(files, columns, OWN))
    assert [looked[0] for looked in found] == files
    return [looked[1] for looked in found]  # type: ignore[misc]


# ---- what a reader gives


def test_a_footer_is_the_schema_and_the_rows_of_each_group(reader: Reader, path: str) -> None:
    schema, groups = reader.footer(path, size_of(path), ("id", "text"))
    assert schema.names == ["id", "text", "kind", "size"]
    assert [rows for rows, _ in groups] == [60, 40]
    assert all(size > 0 for _, size in groups)


def test_files_of_one_schema_and_of_others_keep_their_own(tmp_path: Path) -> None:
    tables = [rows([1]), rows([1]), rows([1], more=[1.5]), rows([1]), rows([1], more=["x"])]
    paths = [str(write(tmp_path / f"{i}.parquet", table)) for i, table in enumerate(tables)]
    footers = footers_of(*paths)
    assert [footer.schema.names[4:] for footer in footers] == [[], [], ["more"], [], ["more"]]
    assert [str(f.schema.field("more").type) for f in (footers[2], footers[4])] == ["double", "string"]


def test_what_an_author_wrote_beside_the_schema_stays_in_the_reader(reader: Reader, tmp_path: Path) -> None:
    field = pa.field("id", pa.string(), metadata={"note": "x" * 1000})
    table = pa.table([["a"]], schema=pa.schema([field], metadata={"author": "y" * 1000}))
    path = str(write(tmp_path / "a.parquet", table))
    schema, _ = reader.footer(path, size_of(path), ("id",))
    assert (schema.metadata, schema.field("id").metadata) == (None, None)


def test_rows_come_as_the_schema_asks_for_in_one_chunk(reader: Reader, path: str) -> None:
    table = reader.rows(SCHEMA, path, 1, 5, 7)
    assert table.schema == SCHEMA
    assert {column.num_chunks for column in table.columns} == {1}
    assert table.column("size").to_pylist() == list(range(65, 72))
    assert reader.rows(SCHEMA, path, 1, 38, 7).column("id").to_pylist() == ["98", "99"]
    assert reader.rows(SCHEMA, path, 1, 40, 7).num_rows == 0


def test_a_reader_may_be_asked_for_other_columns_in_between(reader: Reader, path: str) -> None:
    ids = pa.schema([SCHEMA.field("id")])
    assert reader.rows(ids, path, 0, 0, 2).column_names == ["id"]
    assert reader.rows(SCHEMA, path, 0, 2, 2).column("size").to_pylist() == [2, 3]
    assert reader.rows(ids, path, 0, 4, 1).to_pylist() == [{"id": "4"}]


def test_bytes_that_are_no_utf8_pass_through(reader: Reader, tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", with_bad_utf8(rows([1, 2]), "text", [0]))
    table = reader.rows(SCHEMA, str(path), 0, 0, 2)
    assert table.column("text").cast(pa.large_binary())[0].as_py() == b"\xff\xfe bad"


def test_a_name_that_has_any_characters_is_opened(reader: Reader, tmp_path: Path) -> None:
    for name in ("a\nb", 'quo"te', "\u202eback", "ü€😀", "{root!r}"):
        path = write(tmp_path / f"{name}.parquet", rows([name]))
        assert reader.rows(SCHEMA, str(path), 0, 0, 9).column("id").to_pylist() == [name]


# ---- what goes wrong


def test_a_reader_lives_on_after_what_it_can_not_read(path: str, tmp_path: Path) -> None:
    (tmp_path / "no.parquet").write_bytes(b"no parquet at all")
    reader = take_reader(OWN)
    for bad in ("no.parquet", "missing.parquet"):
        with pytest.raises(ReaderError) as caught:
            reader.footer(str(tmp_path / bad), 17, ("id",))
        assert not isinstance(caught.value, ReaderDiedError)
        with pytest.raises(ReaderError):
            reader.rows(SCHEMA, str(tmp_path / bad), 0, 0, 1)
    assert reader.rows(SCHEMA, path, 0, 0, 3).num_rows == 3
    leave_reader(reader)


def test_a_reader_that_is_killed_says_how(path: str) -> None:
    reader = Reader(OWN)
    reader.footer(path, size_of(path), ("id",))
    os.kill(reader.pid, signal.SIGSEGV)
    with pytest.raises(ReaderDiedError, match=r"^the reader died: SIGSEGV$"):
        reader.footer(path, size_of(path), ("id",))
    assert not reader.alive


def test_a_reader_that_used_up_its_cpu_time_says_so(path: str) -> None:
    reader = Reader(OWN)
    reader.footer(path, size_of(path), ("id",))
    os.kill(reader.pid, signal.SIGXCPU)
    with pytest.raises(ReaderDiedError, match="more than 59 s of CPU time"):
        reader.rows(SCHEMA, path, 0, 0, 1)


def test_a_reader_that_does_not_answer_is_ended_at_its_deadline(path: str) -> None:
    reader = Reader(OWN)
    reader.footer(path, size_of(path), ("id",))
    reader.limits = ReaderLimits(seconds=0.5)
    os.kill(reader.pid, signal.SIGSTOP)
    started = time.monotonic()
    with pytest.raises(ReaderDiedError, match=r"no answer after 0\.5 s"):
        reader.rows(SCHEMA, path, 0, 0, 1)
    assert 0.5 <= time.monotonic() - started < OWN.seconds
    assert not Path(f"/proc/{reader.pid}/stat").exists()  # and it is gone, not only forgotten


def test_an_answer_that_breaks_off_is_a_death_and_no_table(tmp_path: Path) -> None:
    """A stand-in says that rows follow, sends the beginning of them, and ends."""
    reader = Reader(OWN)
    path = write(tmp_path / "a.parquet", rows(range(50_000), text="x" * 400), row_group=50_000)
    reader.rows(SCHEMA, str(path), 0, 0, 1)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(reader.rows, SCHEMA, str(path), 0, 0, 50_000)
        os.kill(reader.pid, signal.SIGKILL)
        with pytest.raises(ReaderDiedError, match="SIGKILL"):
            asked.result(30)


def test_memory_is_limited_from_the_start_and_the_reader_lives(tmp_path: Path) -> None:
    big = pa.table({"id": ["a"], "text": pa.array(["A" * 150_000_000], pa.large_string()), "size": [1]})
    path = write(tmp_path / "a.parquet", big, compression="zstd", use_dictionary=False)
    small = write(tmp_path / "b.parquet", rows([1]))
    reader = Reader(ReaderLimits(memory=256 << 20))
    for _ in range(2):
        with pytest.raises(ReaderError, match=r"more memory than limits\.reader_bytes"):
            reader.rows(SCHEMA, str(path), 0, 0, 1)
        assert reader.rows(SCHEMA, str(small), 0, 0, 1).num_rows == 1
    status = Path(f"/proc/{reader.pid}/status").read_text()
    assert int(status.split("VmHWM:")[1].split()[0]) << 10 <= 256 << 20
    reader.close()


def test_a_reader_hands_over_at_most_a_fourth_of_its_memory(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", rows(range(1000), text="x" * 70_000), compression="zstd")
    reader = Reader(ReaderLimits(memory=256 << 20))
    assert reader.rows(SCHEMA, str(path), 0, 0, 900).nbytes < 64 << 20
    with pytest.raises(ReaderError, match=r"lower limits\.batch_rows"):
        reader.rows(SCHEMA, str(path), 0, 0, 1000)
    reader.close()


# ---- what a reader is


def test_a_reader_knows_no_secret_and_writes_no_core(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "planted")
    reader = Reader(OWN)
    reader.footer(path, size_of(path), ("id",))
    assert b"planted" not in Path(f"/proc/{reader.pid}/environ").read_bytes()
    assert resource.prlimit(reader.pid, resource.RLIMIT_CORE) == (0, 0)
    assert 0 < resource.prlimit(reader.pid, resource.RLIMIT_CPU)[0] < 70
    reader.close()


def test_a_reader_ends_when_the_one_who_asks_is_gone(path: str) -> None:
    asker = (
        "import os, sys; from transforms.probe import Reader, ReaderLimits; reader = Reader(ReaderLimits());"
        "reader.footer(sys.argv[1], int(sys.argv[2]), ('id',)); print(reader.pid, flush=True); os._exit(0)"
    )
    root = Path(__file__).parents[2]
    arguments = [sys.executable, "-c", asker, path, str(size_of(path))]
    with subprocess.Popen(arguments, cwd=root, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        reader = int(process.stdout.readline())
        try:
            ended = select.poll()
            ended.register(os.pidfd_open(reader), select.POLLIN)
        except ProcessLookupError:
            return  # it was faster
    assert ended.poll(10_000)


def test_an_idle_reader_is_used_again_by_those_with_its_limits() -> None:
    reader = take_reader(OWN)
    leave_reader(reader)
    other = take_reader(ReaderLimits(memory=300 << 20, seconds=58.0))
    assert other.pid != reader.pid
    assert take_reader(OWN).pid == reader.pid
    other.close()
    leave_reader(reader)


class Interrupted(Reader):
    """Ctrl-C comes while the rows are on their way."""

    def receive(self, count: int) -> bytearray:
        if count > 1000:
            raise KeyboardInterrupt
        return super().receive(count)


def test_a_reader_is_not_handed_on_in_the_middle_of_an_answer(tmp_path: Path) -> None:
    path = str(write(tmp_path / "a.parquet", rows(range(10_000))))
    limits = ReaderLimits(seconds=57.0)
    interrupted = Interrupted(limits)
    with pytest.raises(KeyboardInterrupt):
        interrupted.rows(SCHEMA, path, 0, 0, 10_000)
    leave_reader(interrupted)
    assert not interrupted.alive
    other = take_reader(limits)
    assert other.pid != interrupted.pid
    other.close()


def test_many_files_are_read_by_several_readers_in_their_order(tmp_path: Path) -> None:
    data = Path(write(tmp_path / "a.parquet", rows([1]))).read_bytes()
    paths = [str(tmp_path / f"{i}.parquet") for i in range(1200)]
    for number, path in enumerate(paths):
        Path(path).write_bytes(data if number % 100 else b"broken")
    footers = footers_of(*paths)
    assert [i for i, footer in enumerate(footers) if isinstance(footer, ReaderError)] == list(
        range(0, 1200, 100)
    )


# ---- claims of a footer


@pytest.mark.parametrize("compression", ["none", "snappy", "zstd", "gzip", "brotli", "lz4"])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_honest_footers_are_believed(tmp_path: Path, compression: str, version: str) -> None:
    repeated = rows(range(200_000), text="the same text again " * 20)
    path = str(
        write(tmp_path / "a.parquet", repeated, 50_000, compression=compression, data_page_version=version)
    )
    (footer,) = footers_of(path, columns=SCHEMA.names)
    assert not isinstance(footer, ReaderError)
    assert sum(rows for rows, _ in footer.groups) == 200_000
    metadata = pq.read_metadata(path)
    chunks = [metadata.row_group(0).column(leaf) for leaf in (0, 1, 3)]
    assert footer.groups[0][1] == sum(chunk.total_uncompressed_size for chunk in chunks)


def test_a_million_rows_of_nothing_are_believed_and_no_more_of_a_small_file(tmp_path: Path) -> None:
    for name, count in (("few", 1_000_000), ("many", 3_000_000)):
        nulls = pa.table({"id": pa.nulls(count, pa.int64())})
        write(tmp_path / f"{name}.parquet", nulls, compression="zstd")
    few, many = footers_of(*(str(p) for p in sorted(tmp_path.iterdir())))
    assert not isinstance(few, ReaderError)
    assert isinstance(many, ReaderError)
    assert "its footer claims 3,000,000 rows" in str(many)
