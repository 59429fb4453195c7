"""Finding the input files and reading their footers, in parallel and before anything is paid."""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from schemas.errors import InputError, StoreError, first_line
from schemas.workload import Input
from transforms.probe import ReaderError
from transforms.probe_footer import Footer
from transforms.probe_footers import read_footers
from transforms.store import is_remote

_THREADS = 16
_READ_BYTES = 1 << 20
_LISTED = 10


@dataclass(frozen=True, slots=True)
class RowGroup:
    """One row group: its rows, and the uncompressed bytes of the columns that are read."""

    index: int
    rows: int
    bytes: int


@dataclass(frozen=True, slots=True)
class InputFile:
    """One readable Parquet file, as its footer describes it.

    `generation` is `sha256:` and 32 digits of the content's digest: a copied or touched file is
    the same, a changed one never is. In Cloud Storage it is `gcs:` and the generation that it gives.
    """

    uri: str
    generation: str
    size: int
    mtime_ns: int
    schema: pa.Schema
    row_groups: tuple[RowGroup, ...]

    @property
    def rows(self) -> int:
        """Rows of the whole file."""
        return sum(group.rows for group in self.row_groups)


@dataclass(frozen=True, slots=True)
class InputFiles:
    """All input files by name, their common schema, and the files that were skipped with the reason."""

    files: tuple[InputFile, ...]
    schema: pa.Schema
    skipped: tuple[str, ...]


def find_input(uri: str, settings: Input) -> InputFiles:
    """List the input, read every footer, and check that the needed columns are there and agree.

    Raises:
        InputError: nothing matches, files can't be read (all of them are named, unless
            `unreadable_files` is `skip`), a needed column is missing or of an unusable type.
    """
    if is_remote(uri):
        described = _describe_objects(uri, settings.needed_columns)
    else:
        described = describe_all(list_files(uri), settings.needed_columns)
    broken = [d for d in described if isinstance(d, str)]
    files = tuple(d for d in described if isinstance(d, InputFile))
    if broken and (settings.unreadable_files == "fail" or not files):
        raise InputError(
            _listing(f"{len(broken)} of {len(described)} input files can't be used:", broken)
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


def describe_all(paths: Sequence[str], columns: Sequence[str]) -> list[InputFile | str]:
    """Each file's description, or the sentence that says why it can't be used.

    Footers are read in reader processes while the contents' digests are taken here.
    """
    stats = [_stat(path) for path in paths]
    usable = [
        (path, stat.st_size) for path, stat in zip(paths, stats, strict=True) if not isinstance(stat, str)
    ]
    with ThreadPoolExecutor(_THREADS) as pool:
        digests = pool.map(_content_digest, [path for path, _ in usable])
        footers = read_footers(usable, columns)
        found = {path: (d, f) for (path, _), d, f in zip(usable, digests, footers, strict=True)}
    return [
        stat if isinstance(stat, str) else _described(path, stat, *found[path])
        for path, stat in zip(paths, stats, strict=True)
    ]


def _describe_objects(uri: str, columns: Sequence[str]) -> list[InputFile | str]:
    """The same for an address in Cloud Storage: a listing says sizes and generations, ends are fetched."""
    if not uri.startswith("gs://"):
        raise InputError(f"input {uri}: no such kind of input; give a path, or gs://BUCKET/FOLDER")
    from transforms.gcs.inputs import GENERATION_PREFIX, Tails, find_objects

    try:
        objects = find_objects(uri)
    except StoreError as error:
        raise InputError(f"input {uri}: {error}") from None
    if not objects:
        raise InputError(
            f"input {uri}: no object has that name, and as a folder or a glob it holds no Parquet files. "
            "Give an object, a folder of *.parquet, or a glob"
        )
    usable = [(found.path, found.size) for found in objects if found.size]
    footers = dict(
        zip(
            (path for path, _ in usable),
            read_footers(usable, columns, elsewhere=Tails(objects)),
            strict=True,
        )
    )
    return [
        _from_footer(found.path, f"{GENERATION_PREFIX}{found.generation}", found.size, 0, footers[found.path])
        if found.size
        else f"{found.path}: the object is empty (0 bytes)"
        for found in objects
    ]


def _stat(path: str) -> os.stat_result | str:
    shown = path.encode(errors="backslashreplace").decode()
    if shown != path:  # lineage names the file, in columns of UTF-8
        return f"{shown}: the file's name is not valid UTF-8: rename it"
    try:
        stat = os.stat(path)
    except (OSError, ValueError) as error:
        return _unreadable(path, first_line(error))
    return stat if stat.st_size else f"{path}: the file is empty (0 bytes)"


def _described(
    path: str, stat: os.stat_result, digest: str | OSError, footer: Footer | ReaderError
) -> InputFile | str:
    if isinstance(digest, OSError):
        return _unreadable(path, first_line(digest))
    return _from_footer(path, digest, stat.st_size, stat.st_mtime_ns, footer)


def _from_footer(
    uri: str, generation: str, size: int, mtime_ns: int, footer: Footer | ReaderError
) -> InputFile | str:
    if isinstance(footer, ReaderError):
        return _unreadable(uri, first_line(footer))
    groups = tuple(RowGroup(index, rows, size) for index, (rows, size) in enumerate(footer.groups))
    return InputFile(uri, generation, size, mtime_ns, footer.schema, groups)


def _unreadable(path: str, reason: str) -> str:
    return f"{path}: no readable Parquet file ({reason})"


def _content_digest(path: str) -> str | OSError:
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as stream:
            while block := stream.read(_READ_BYTES):
                digest.update(block)
    except OSError as error:
        return error
    return f"sha256:{digest.hexdigest()[:32]}"


def refuse_own_results(found: InputFiles, output: str) -> None:
    """What a run writes must not be read as documents by the next one.

    Raises:
        InputError: an input file lies in the output folder.
    """
    for file in found.files:
        if _is_inside(file.uri, output):
            raise InputError(
                f"input file {file.uri} lies in the output folder {output}: results would be read as "
                "documents. Give an output folder outside the input, or an input glob that leaves it out"
            )


def _is_inside(uri: str, output: str) -> bool:
    if is_remote(uri) or is_remote(output):
        return uri.startswith(f"{output.rstrip('/')}/")
    return Path(uri).is_relative_to(output)


def common_schema(files: Sequence[InputFile], settings: Input) -> pa.Schema:
    """The schema of the needed columns that all files can be read as.

    Raises:
        InputError: a column is missing somewhere, or its types can't be brought together.
    """
    wrong = [
        f"{f.uri}: {'no' if count == 0 else count} column{'s' if count else ''} {name!r} "
        f"(has: {', '.join(f.schema.names[:20])})"
        for f in files
        for name in settings.needed_columns
        if (count := f.schema.names.count(name)) != 1
    ]
    if wrong:
        raise InputError(
            _listing("columns that the workload names are missing, or stand twice:", wrong)
            + "\nMend input.id, input.text or input.columns, or the files"
        )
    _require_type(files, "input.text", settings.text, "string", _is_string)
    _require_type(
        files,
        "input.id",
        settings.id,
        "string or integer",
        lambda kind: _is_string(kind) or pa.types.is_integer(kind),
    )
    return pa.schema([_common_field(files, name) for name in settings.needed_columns])


def _require_type(
    files: Sequence[InputFile], key: str, name: str, wanted: str, is_wanted: Callable[[pa.DataType], bool]
) -> None:
    """A file in which all values are null may have the column as null, if another one has its type."""
    kinds = [(file.uri, _plain(file.schema.field(name).type)) for file in files]
    wrong = [(uri, kind) for uri, kind in kinds if not (is_wanted(kind) or pa.types.is_null(kind))]
    if not wrong and all(pa.types.is_null(kind) for _, kind in kinds):
        wrong = kinds
    if wrong:
        uri, kind = wrong[0]
        raise InputError(
            f"{key} column {name!r} is {kind} in {uri}; it must be {wanted}. Name another column, or cast it"
        )


def _common_field(files: Sequence[InputFile], name: str) -> pa.Field:
    first, field = files[0], None
    for file in files:
        found = pa.field(name, _plain(file.schema.field(name).type))
        try:
            schemas = [pa.schema([found])] if field is None else [pa.schema([field]), pa.schema([found])]
            field = pa.unify_schemas(schemas, promote_options="permissive").field(0)
        except pa.ArrowException:
            raise InputError(
                f"column {name!r} changes its type between files: {field.type if field else '?'} up to "
                f"{first.uri}, {found.type} in {file.uri}. Write the files with one schema"
            ) from None
        first = file
    assert field is not None
    return pa.field(name, field.type)


def _plain(kind: pa.DataType) -> pa.DataType:
    """Dictionary and view encodings are how values are stored, not what they are."""
    if pa.types.is_dictionary(kind):
        return _plain(kind.value_type)
    if kind in (pa.large_string(), pa.string_view(), pa.string()):
        return pa.large_string()
    return kind


def _is_string(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _listing(head: str, lines: Sequence[str]) -> str:
    shown = "".join(f"\n  {line}" for line in lines[:_LISTED])
    more = f"\n  … and {len(lines) - _LISTED} more" if len(lines) > _LISTED else ""
    return f"{head}{shown}{more}"
