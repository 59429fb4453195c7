"""The demo's documents: the documentation of the packages that are installed where it runs.

Real texts of very different lengths that are on every machine already: what packages say about
themselves (their metadata), and the docstrings of modules, classes and functions, read with `ast`
and never imported.
"""

from __future__ import annotations

import ast
import contextlib
import gc
import json
import os
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.errors import OutputError
from schemas.ids import canonical_json, sha256_hex

CORPUS_VERSION = "corpus/1"
CORPUS_SCHEMA = pa.schema(
    [
        pa.field("doc_id", pa.string(), nullable=False),
        pa.field("package", pa.string(), nullable=False),
        pa.field("version", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("title", pa.string(), nullable=False),
        pa.field("licence", pa.string()),
        pa.field("text", pa.string(), nullable=False),
        pa.field("characters", pa.int64(), nullable=False),
    ]
)
STATE_FILE = "corpus.json"
_KINDS = ("description", "module", "class", "function")  # in this order until a package has its share
_OURSELVES = "switchgear"  # its texts change with every commit
_LEAST_CHARACTERS = 24
_MOST_SOURCE_BYTES = 60_000  # of a package; parsing source is what takes the time
_MOST_FILE_BYTES = 600_000
_MOST_LICENCE_CHARACTERS = 80
_NOT_DOCUMENTATION = frozenset(
    {"tests", "test", "testing", "_vendor", "vendored", "_vendored", "conftest.py"}
)
_LICENCE_CLASSIFIER = "License :: OSI Approved :: "


@dataclass(frozen=True, slots=True)
class Doc:
    """One document of the corpus; the columns of `CORPUS_SCHEMA`."""

    doc_id: str
    package: str
    version: str
    kind: str
    title: str
    licence: str | None
    text: str
    characters: int


@dataclass(frozen=True, slots=True)
class CorpusStats:
    """What stands in a corpus folder. `reused`: it was there already, for the same environment."""

    digest: str
    documents: int
    packages: int
    characters: int
    row_groups: int
    by_kind: dict[str, int]
    files: dict[str, int]  # name → bytes
    reused: bool = False


def write_corpus(
    folder: Path,
    *,
    distributions: Iterable[metadata.Distribution] | None = None,
    most_per_package: int = 90,
    files: int = 6,
    rows_per_group: int = 512,
) -> CorpusStats:
    """Write the corpus of an environment as Parquet files into `folder`, or find it there already.

    The same installed packages give the same bytes. The folder appears at once and whole; an older
    corpus in it is replaced. OutputError where it holds anything else (nothing is overwritten), or can't be
    written.

    Args:
        folder: where to; its parents are made.
        distributions: the installed packages; default: those of the running environment.
        most_per_package: documents of one package at most.
        files: number of Parquet files.
        rows_per_group: rows of a row group.
    """
    installed = _installed(metadata.distributions() if distributions is None else distributions)
    versions = [f"{name}=={distribution.version}" for name, distribution in installed.items()]
    settings = [CORPUS_VERSION, pa.__version__, most_per_package, files, rows_per_group]
    digest = sha256_hex(canonical_json([settings, versions]))
    present = _present(folder)
    if present is not None and present.digest == digest:
        return replace(present, reused=True)
    with _collector_off():
        docs = _chosen(installed, most_per_package)
    try:
        return _replace_folder(folder, docs, digest, files, rows_per_group)
    except OSError as error:
        raise OutputError(
            f"{folder} can't be written ({error.strerror or error}). Give a folder that can be"
        ) from None


@contextlib.contextmanager
def _collector_off() -> Iterator[None]:
    """Without the cyclic collector parsing takes a quarter less time; syntax trees have no cycles."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _installed(distributions: Iterable[metadata.Distribution]) -> dict[str, metadata.Distribution]:
    """The distributions by normalised name, in its order; the first of a name wins, as on the path."""
    found: dict[str, metadata.Distribution] = {}
    for distribution in distributions:
        name = re.sub(r"[-_.]+", "-", distribution.metadata["Name"] or "").lower()
        if name and name != _OURSELVES:
            found.setdefault(name, distribution)
    return dict(sorted(found.items()))


def _chosen(installed: dict[str, metadata.Distribution], most: int) -> list[Doc]:
    """At most `most` documents of each package, no id and no text twice, shuffled by their ids.

    Shuffled, so that every batch has something of everything.
    """
    ids: set[str] = set()
    texts: set[str] = set()
    chosen: list[Doc] = []
    for name, distribution in installed.items():
        fresh: list[Doc] = []
        for doc in _docs_of(name, distribution):
            if doc.doc_id not in ids and doc.text not in texts and _is_usable(doc.text):
                ids.add(doc.doc_id)
                texts.add(doc.text)
                fresh.append(doc)
        fresh.sort(key=lambda doc: (_KINDS.index(doc.kind), _shuffled(doc)))
        chosen += fresh[:most]
    return sorted(chosen, key=_shuffled)


def _shuffled(doc: Doc) -> str:
    return sha256_hex(doc.doc_id.encode())


def _is_usable(text: str) -> bool:
    """Long enough, encodable, and without the path of this environment."""
    if len(text) < _LEAST_CHARACTERS or sys.prefix in text:
        return False
    try:
        text.encode()
    except UnicodeEncodeError:  # half a character, as some docstrings show it
        return False
    return True


def _docs_of(name: str, distribution: metadata.Distribution) -> Iterator[Doc]:
    """Everything that a package says about itself: its description first, then its docstrings."""
    about = distribution.metadata
    version, licence = about["Version"], _licence(about)

    def doc(doc_id: str, kind: str, title: str, text: str) -> Doc:
        return Doc(doc_id, name, version, kind, title, licence, text, len(text))

    summary = (about["Summary"] or "").strip()
    description = str(about.get_payload() or about["Description"] or "").strip()  # type: ignore[attr-defined]
    yield doc(f"{name}#description", "description", f"{name}: {summary}", description or summary)
    for path in _sources(distribution):
        module = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
        for kind, qualified, text in _docstrings(Path(str(distribution.locate_file(path)))):
            title = f"{module}.{qualified}" if qualified else module
            yield doc(f"{path.as_posix()}#{qualified}" if qualified else path.as_posix(), kind, title, text)


def _licence(about: metadata.PackageMetadata) -> str | None:
    """The licence as the package states it: an SPDX expression, else a classifier, else a short field."""
    if about["License-Expression"]:
        return str(about["License-Expression"])
    for classifier in about.get_all("Classifier") or ():
        if classifier.startswith(_LICENCE_CLASSIFIER):
            return str(classifier.removeprefix(_LICENCE_CLASSIFIER))
    stated = (about["License"] or "").strip()
    return stated if 0 < len(stated) <= _MOST_LICENCE_CHARACTERS and "\n" not in stated else None


def _sources(distribution: metadata.Distribution) -> Iterator[PurePosixPath]:
    """The source files to read: the largest first, because they document most, up to a number of bytes."""
    candidates = [
        (-(file.size or 0), PurePosixPath(file.as_posix()))
        for file in distribution.files or ()
        if file.suffix == ".py" and not _NOT_DOCUMENTATION.intersection(file.parts) and ".." not in file.parts
    ]
    left = _MOST_SOURCE_BYTES
    for negative_size, path in sorted(candidates):
        if -negative_size > _MOST_FILE_BYTES or path.is_absolute():
            continue
        if left <= 0:
            return
        left += negative_size
        yield path


def _docstrings(file: Path) -> Iterator[tuple[str, str, str]]:
    """Kind, qualified name (empty for the module) and docstring of what a source file defines."""
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError):
        return  # not there, a template, or for another Python
    text = ast.get_docstring(tree)
    if text:
        yield "module", "", text.strip()
    for node in tree.body:
        yield from _definition(node, "")


def _definition(node: ast.stmt, prefix: str) -> Iterator[tuple[str, str, str]]:
    if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return
    qualified = f"{prefix}{node.name}"
    text = ast.get_docstring(node)
    if text and not node.name.startswith("_"):
        yield "class" if isinstance(node, ast.ClassDef) else "function", qualified, text.strip()
    if isinstance(node, ast.ClassDef):
        for inner in node.body:
            yield from _definition(inner, f"{qualified}.")


def _present(folder: Path) -> CorpusStats | None:
    """The corpus that stands in `folder`, if it is whole."""
    try:
        stats = CorpusStats(**json.loads((folder / STATE_FILE).read_bytes()))
        whole = all((folder / name).stat().st_size == size for name, size in stats.files.items())
    except (OSError, ValueError, TypeError):
        return None
    return stats if whole else None


def _replace_folder(
    folder: Path, docs: list[Doc], digest: str, files: int, rows_per_group: int
) -> CorpusStats:
    if folder.exists() and any(folder.iterdir()) and not (folder / STATE_FILE).exists():
        raise OutputError(
            f"{folder}: the folder holds files that are not a corpus; allowed is an empty or missing folder. "
            "Choose another one, or move them away"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as scratch:
        fresh = Path(scratch) / "fresh"
        fresh.mkdir()
        stats = _write(fresh, docs, digest, files, rows_per_group)
        if folder.exists():
            os.rename(folder, Path(scratch) / "old")
        os.rename(fresh, folder)
    return stats


def _write(folder: Path, docs: list[Doc], digest: str, files: int, rows_per_group: int) -> CorpusStats:
    table = pa.Table.from_pylist([asdict(doc) for doc in docs], schema=CORPUS_SCHEMA)
    share = max(1, -(-len(docs) // files))
    sizes, row_groups = {}, 0
    for number, start in enumerate(range(0, max(1, len(docs)), share), start=1):
        name = f"docs-{number:02d}.parquet"
        part = table.slice(start, share)
        pq.write_table(part, folder / name, row_group_size=rows_per_group, compression="zstd")
        sizes[name] = (folder / name).stat().st_size
        row_groups += -(-part.num_rows // rows_per_group)
    stats = CorpusStats(
        digest=digest,
        documents=len(docs),
        packages=len({doc.package for doc in docs}),
        characters=sum(doc.characters for doc in docs),
        row_groups=row_groups,
        by_kind=dict(sorted(Counter(doc.kind for doc in docs).items())),
        files=sizes,
    )
    (folder / STATE_FILE).write_bytes(canonical_json(asdict(stats)))
    return stats
