"""Two thousand names that would like to be paths: ids of documents, names of files, partition values."""

import os
import re
from pathlib import Path
from random import Random

import pytest

from schemas.errors import InputError
from schemas.workload import Input
from tests.support.documents import rows, write
from tests.support.runs import Place
from transforms.files import find_input

SEEDS = (
    "../../escaped", "/etc/escaped", "..", ".", "", " ", "a/b", "a\\b", "..\\..\\escaped", "~/escaped",
    "route=summary", "route=../escaped", "$HOME", "`touch escaped`", "$(touch escaped)", "; rm -rf escaped",
    "a\nb", "a\rb", "a\tb", "a\x00b", "\u202egpj.exe", "CON", "NUL.txt", "%2e%2e%2fescaped",
    "file:///escaped", "\\\\host\\escaped", "*", "?", "[a-z]", "{a,b}", "-rf", "--output=escaped",
    "a" * 3000, "é" * 400, "😀/../😀", "commits/x.0001.json", "_staging", "manifest.json", "../runs",
    "x' OR '1'='1", "<b>", "{{ text }}",
)  # fmt: skip
OURS = re.compile(
    r"(results/route=\w+|failures|commits|compacted|ledger|runs|_staging|locks?)(/[\w.=-]+)*|[\w.-]+",
    re.ASCII,
)


def hostile(count: int, random: Random) -> list[str]:
    """Different names, each of one or two of the seeds and a number."""
    names = [f"{random.choice(SEEDS)}{random.choice(SEEDS)}{number}" for number in range(count)]
    return [*SEEDS, *names][:count]


def as_file_names(names: list[str]) -> list[str]:
    """What of them a file system takes as one name."""
    cleaned = (re.sub(r"[/\x00]", "\u2215", name)[:60].lstrip("._") for name in names)
    return sorted({name for name in cleaned if name.strip()})


def everything(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_nothing_is_written_outside_the_output_and_nothing_is_called_after_data(tmp_path: Path) -> None:
    random = Random(15)
    ids, files, values = hostile(1800, random), hostile(120, random), hostile(120, random)
    names, partitions = as_file_names(files), as_file_names(values)
    assert len(ids) + len(names) + len(partitions) >= 2000
    place = Place(tmp_path / "deep" / "er" / "place", {"limits__batch_rows": 500})
    folder = place.folder / "in"
    write(folder / "ids.parquet", rows(ids))
    for number, name in enumerate(names):
        write(folder / f"{name}.parquet", rows([f"file {number}"]))
    for number, value in enumerate(partitions):
        write(folder / f"kind={value}" / "part.parquet", rows([f"partition {number}"]))
    _ = place.loaded
    before = everything(tmp_path)
    run = place.run()
    made = everything(tmp_path) - before
    output = str(place.output.relative_to(tmp_path))
    outside = {path for path in made if path != output and not path.startswith(f"{output}/")}
    assert outside <= {str((place.folder / "workload.toml").relative_to(tmp_path))}
    inside = {path.removeprefix(f"{output}/") for path in made - outside - {output}}
    assert [path for path in inside if not OURS.fullmatch(path)] == []
    assert not [path for path in inside if "escaped" in path]
    assert run.manifest.state == "complete"
    assert {row["document_id"] for row in place.rows("results/route=ask")} == {
        *ids,
        *(f"file {n}" for n in range(len(names))),
        *(f"partition {n}" for n in range(len(partitions))),
    }


def test_a_file_whose_name_is_no_utf8_is_named_and_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", rows([1]))
    odd = os.fsdecode(b"odd \xff.parquet")
    (tmp_path / odd).write_bytes((tmp_path / "a.parquet").read_bytes())
    with pytest.raises(InputError, match=r"odd \\udcff\.parquet: the file's name is not valid UTF-8"):
        find_input(str(tmp_path), Input(uri="in", id="id", text="text"))
    skipping = Input(uri="in", id="id", text="text", unreadable_files="skip")
    assert len(find_input(str(tmp_path), skipping).files) == 1
