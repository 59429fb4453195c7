"""Finding the input files and reading their footers, many at a time and before anything is paid.

Two stages, each in the files' order and with a bounded number of files in it: what is needed of a file is
fetched in threads (here: its digest is taken; from Cloud Storage: its end), and reader processes read the
footers. So planning takes about as many round trips as there are files, divided by `OBJECTS_AT_ONCE`, and
memory does not grow with what is on its way.
"""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from schemas.errors import InputError, StoreError, first_line
from schemas.workload import Input
from transforms.input_files import Files, InputFile, InputFiles, RowGroup
from transforms.input_schema import common_schema, listing
from transforms.probe import ReaderError
from transforms.probe_footer import Footer
from transforms.probe_footers import Located, read_footers
from transforms.side_by_side import in_order
from transforms.store import is_remote

FILES_AT_ONCE = 16
"""Local files whose digests are taken at a time."""

OBJECTS_AT_ONCE = 64
"""Objects whose ends are fetched at a time: as many as a process has connections to Cloud Storage."""

_AHEAD = 4  # times as many are begun and not yet read
_READ_BYTES = 1 << 20
T = TypeVar("T")


def find_input(uri: str, settings: Input) -> InputFiles:
    """List the input, read every footer, and check that the needed columns are there and agree.

    Raises:
        InputError: nothing matches, files can't be read (all of them are named, unless
            `unreadable_files` is `skip`), a needed column is missing or of an unusable type.
    """
    columns = settings.needed_columns
    described = describe_objects(uri, columns) if is_remote(uri) else describe_files(list_files(uri), columns)
    return collect_files(described, settings)


def collect_files(described: Iterable[InputFile | str], settings: Input) -> InputFiles:
    """The input made of what was found of each file, in order; see `find_input`."""
    files, broken = Files(), []
    for found in described:
        if isinstance(found, str):
            broken.append(found)
        else:
            files.append(found)
    if broken and (settings.unreadable_files == "fail" or not files):
        raise InputError(
            listing(f"{len(broken)} of {len(broken) + len(files)} input files can't be used:", broken)
            + '\nRestore or remove them, or set input.unreadable_files = "skip"'
        )
    return InputFiles(files, common_schema(files, settings), tuple(broken))


def list_files(uri: str) -> list[str]:
    """The absolute paths behind a local input address, sorted: a file, a folder's *.parquet, or a glob.

    Names that begin with `_` or `.` are left out of folders, as Spark and Hive do; a folder that is
    called like a file is none.
    """
    if os.path.isfile(uri):
        return [os.path.abspath(uri)]
    if os.path.isdir(uri):
        found = sorted(str(p) for p in Path(uri).rglob("*.parquet") if _is_document_file(p, uri))
        allowed = "it holds no *.parquet files"
    else:
        found = sorted(p for p in glob.glob(uri, recursive=True) if os.path.isfile(p))
        allowed = "no file or folder has that name, and as a glob it matches nothing"
    if not found:
        raise InputError(f"input {uri}: {allowed}. Give a Parquet file, a folder of them, or a glob")
    return [os.path.abspath(p) for p in found]


def _is_document_file(path: Path, folder: str) -> bool:
    hidden = any(part.startswith(("_", ".")) for part in path.relative_to(folder).parts)
    return not hidden and not path.is_dir()


def describe_files(paths: Iterable[str], columns: Sequence[str]) -> Iterator[InputFile | str]:
    """Each local file's description, or the sentence that says why it can't be used, in order.

    Footers are read in reader processes while the contents' digests are taken here.
    """
    return describe(paths, _locate, columns, FILES_AT_ONCE)


def describe_objects(uri: str, columns: Sequence[str]) -> Iterator[InputFile | str]:
    """The same for an address in Cloud Storage: one listing says sizes and generations, ends are fetched."""
    if not uri.startswith("gs://"):
        raise InputError(f"input {uri}: no such kind of input; give a path, or gs://BUCKET/FOLDER")
    from transforms.gcs.inputs import find_objects, locate_in, store_of
    from transforms.gcs.objects import ObjectInfo, split_address

    def listed() -> Iterator[ObjectInfo]:
        found = None
        try:
            for found in find_objects(uri):
                yield found
        except StoreError as error:
            raise InputError(f"input {uri}: {error}") from None
        if found is None:
            raise InputError(
                f"input {uri}: no object has that name, and as a folder or a glob it holds no Parquet files. "
                "Give an object, a folder of *.parquet, or a glob"
            )

    try:
        fetch = store_of(f"gs://{split_address(uri)[0]}").read_range
    except StoreError as error:
        raise InputError(f"input {uri}: {error}") from None
    return describe(listed(), locate_in(fetch), columns, OBJECTS_AT_ONCE)


def describe(
    found: Iterable[T], locate: Callable[[T], Located | str], columns: Sequence[str], at_once: int
) -> Iterator[InputFile | str]:
    """What the footers of some files say, in order; or why a file can't be used.

    `locate` does what takes time before a footer can be read; `at_once` of them are under way at a time.
    """
    with ThreadPoolExecutor(at_once, thread_name_prefix="input") as pool:
        located = in_order(pool, locate, found, _AHEAD * at_once)
        for looked in read_footers(located, columns):
            yield looked if isinstance(looked, str) else _described(*looked)


def _locate(path: str) -> Located | str:
    shown = path.encode(errors="backslashreplace").decode()
    if shown != path:  # lineage names the file, in columns of UTF-8
        return f"{shown}: the file's name is not valid UTF-8: rename it"
    try:
        stat = os.stat(path)
        if not stat.st_size:
            return f"{path}: the file is empty (0 bytes)"
        return Located(path, stat.st_size, _content_digest(path), stat.st_mtime_ns)
    except (OSError, ValueError) as error:
        return _unreadable(path, first_line(error))


def _described(file: Located, footer: Footer | ReaderError) -> InputFile | str:
    if isinstance(footer, ReaderError):
        return _unreadable(file.path, first_line(footer))
    groups = tuple(RowGroup(index, rows, size) for index, (rows, size) in enumerate(footer.groups))
    return InputFile(file.path, file.generation, file.size, file.mtime_ns, footer.schema, groups)


def _unreadable(path: str, reason: str) -> str:
    return f"{path}: no readable Parquet file ({reason})"


def _content_digest(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(_READ_BYTES):
            digest.update(block)
    return f"sha256:{digest.hexdigest()[:32]}"


def refuse_own_results(found: InputFiles, output: str) -> None:
    """What a run writes must not be read as documents by the next one.

    Raises:
        InputError: an input file lies in the output folder.
    """
    for uri in found.files.uris:
        if _is_inside(uri, output):
            raise InputError(
                f"input file {uri} lies in the output folder {output}: results would be read as "
                "documents. Give an output folder outside the input, or an input glob that leaves it out"
            )


def _is_inside(uri: str, output: str) -> bool:
    if is_remote(uri) or is_remote(output):
        return uri.startswith(f"{output.rstrip('/')}/")
    return Path(uri).is_relative_to(output)
