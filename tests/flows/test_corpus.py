import json
import sys
from importlib import metadata

import pyarrow.parquet as pq
import pytest

from flows.corpus import CORPUS_SCHEMA, STATE_FILE, write_corpus
from schemas.errors import OutputError

LONG = "A sentence that is long enough to be kept."


def install(site, name, sources, *, version="1.0", head="", body=LONG):
    """A distribution as an installer leaves it: metadata, a record with sizes, source files."""
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    text = f"Metadata-Version: 2.4\nName: {name}\nVersion: {version}\nSummary: About {name}\n{head}\n{body}\n"
    (info / "METADATA").write_text(text)
    record = []
    for path, source in sources.items():
        file = site / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(source)
        record.append(f"{path},,{len(source)}")
    (info / "RECORD").write_text("\n".join(record))


def corpus(folder, site, **more):
    return write_corpus(folder, distributions=metadata.distributions(path=[str(site)]), **more)


def rows(folder):
    tables = [pq.read_table(file) for file in sorted(folder.glob("*.parquet"))]
    return {row["doc_id"]: row for table in tables for row in table.to_pylist()}


SHAPES = f'''"""Shapes: {LONG}"""
import does_not_exist

class Circle:
    """Circle: {LONG}"""

    def area(self):
        """Area: {LONG}"""

    def _hidden(self):
        """Hidden: {LONG}"""

async def fetch():
    """Fetch: {LONG}"""

def undocumented():
    pass
'''


@pytest.fixture
def site(tmp_path):
    site = tmp_path / "site"
    head = "License-Expression: MIT\n"
    install(site, "Shapes-Kit", {"shapes/round.py": SHAPES}, version="2.1", head=head)
    return site


def test_descriptions_modules_classes_and_functions_become_documents_without_being_imported(site, tmp_path):
    stats = corpus(tmp_path / "input", site)
    found = rows(tmp_path / "input")
    assert {doc_id: row["kind"] for doc_id, row in found.items()} == {
        "shapes-kit#description": "description",
        "shapes/round.py": "module",
        "shapes/round.py#Circle": "class",
        "shapes/round.py#Circle.area": "function",
        "shapes/round.py#fetch": "function",
    }
    assert found["shapes/round.py#Circle.area"] == {
        "doc_id": "shapes/round.py#Circle.area",
        "package": "shapes-kit",
        "version": "2.1",
        "kind": "function",
        "title": "shapes.round.Circle.area",
        "licence": "MIT",
        "text": f"Area: {LONG}",
        "characters": len(f"Area: {LONG}"),
    }
    assert found["shapes-kit#description"]["title"] == "shapes-kit: About Shapes-Kit"
    assert (stats.documents, stats.packages, stats.by_kind["function"]) == (5, 1, 2)
    assert stats.characters == sum(row["characters"] for row in found.values())
    assert "shapes.round" not in sys.modules


@pytest.mark.parametrize(
    ("head", "licence"),
    [
        ("License-Expression: MPL-2.0\nLicense: other\n", "MPL-2.0"),
        ("Classifier: License :: OSI Approved :: ISC License (ISCL)\nLicense: other\n", "ISC License (ISCL)"),
        ("License: BSD\n", "BSD"),
        (f"License: {'the whole text ' * 10}\n", None),
        ("", None),
    ],
)
def test_the_licence_is_the_expression_else_the_classifier_else_a_short_field(tmp_path, head, licence):
    install(tmp_path / "site", "one", {}, head=head)
    corpus(tmp_path / "input", tmp_path / "site")
    assert rows(tmp_path / "input")["one#description"]["licence"] == licence


def test_a_package_without_a_description_gives_its_summary(tmp_path):
    install(tmp_path / "site", "a-name-of-some-length", {}, body="")
    corpus(tmp_path / "input", tmp_path / "site")
    assert (
        rows(tmp_path / "input")["a-name-of-some-length#description"]["text"] == "About a-name-of-some-length"
    )


def test_the_same_packages_give_the_same_bytes(site, tmp_path):
    install(site, "other", {f"other/m{n}.py": SHAPES.replace(LONG, f"{LONG} {n}") for n in range(20)})
    for name in ("first", "second"):
        corpus(tmp_path / name, site, rows_per_group=7)
    files = sorted(file.name for file in (tmp_path / "first").iterdir())
    assert files == sorted(file.name for file in (tmp_path / "second").iterdir())
    assert all((tmp_path / "first" / f).read_bytes() == (tmp_path / "second" / f).read_bytes() for f in files)


def test_a_corpus_of_the_same_environment_is_found_and_not_written_again(site, tmp_path):
    first = corpus(tmp_path / "input", site)
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "input").iterdir()}
    again = corpus(tmp_path / "input", site)
    assert (first.reused, again.reused) == (False, True)
    assert again.documents == first.documents
    assert before == {file: file.stat().st_mtime_ns for file in (tmp_path / "input").iterdir()}


@pytest.mark.parametrize("damage", ["new package", "file lost", "file cut", "state cut"])
def test_a_corpus_that_is_not_the_environments_is_replaced_whole(site, tmp_path, damage):
    folder = tmp_path / "input"
    first = corpus(folder, site)
    if damage == "new package":
        install(site, "second", {}, body=f"{LONG} Second.")
    elif damage == "file lost":
        (folder / "docs-01.parquet").unlink()
    elif damage == "file cut":
        (folder / "docs-01.parquet").write_bytes(b"PAR1")
    else:
        (folder / STATE_FILE).write_text("{")
    again = corpus(folder, site)
    assert not again.reused
    assert len(rows(folder)) == again.documents == first.documents + int(damage == "new package")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_folder_that_can_not_be_written_is_named(site, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"can't be written .* Give a folder that can be"):
        corpus(tmp_path / "file" / "input", site)


def test_a_folder_with_other_files_is_left_alone(site, tmp_path):
    mine = tmp_path / "input" / "mine.parquet"
    mine.parent.mkdir()
    mine.write_text("precious")
    with pytest.raises(OutputError, match="not a corpus"):
        corpus(tmp_path / "input", site)
    assert mine.read_text() == "precious"


def test_no_package_has_more_than_its_share_and_descriptions_and_classes_come_first(tmp_path):
    source = "\n".join(f'def f{n}():\n    """{LONG} {n}"""' for n in range(50))
    classes = "\n".join(f'class C{n}:\n    """{LONG} c{n}"""' for n in range(5))
    install(tmp_path / "site", "big", {"big/functions.py": source, "big/classes.py": classes})
    stats = corpus(tmp_path / "input", tmp_path / "site", most_per_package=10)
    assert stats.by_kind == {"class": 5, "description": 1, "function": 4}


def test_no_id_and_no_text_stands_twice(tmp_path):
    twice = (
        f'class A:\n    """{LONG} one"""\nclass A:\n    """{LONG} two"""\nclass B:\n    """{LONG} one"""\n'
    )
    install(tmp_path / "site", "twins", {"twins.py": twice})
    corpus(tmp_path / "input", tmp_path / "site")
    assert rows(tmp_path / "input").keys() == {"twins#description", "twins.py#A"}


def test_texts_that_are_short_or_unencodable_or_name_this_environment_are_left_out(tmp_path):
    sources = {
        "m/short.py": '"""Too short."""',
        "m/half.py": f'"""{LONG} \\ud800"""',
        "m/path.py": f'"""{LONG} {sys.prefix}/lib"""',
        "m/good.py": f'"""{LONG} ä"""',
    }
    install(tmp_path / "site", "m", sources)
    corpus(tmp_path / "input", tmp_path / "site")
    assert rows(tmp_path / "input").keys() == {"m#description", "m/good.py"}


def test_tests_vendored_code_and_files_that_do_not_parse_are_passed_over(tmp_path):
    sources = {
        "n/tests/helpers.py": SHAPES,
        "n/_vendor/lib.py": SHAPES.replace("Shapes", "Vendored"),
        "n/template.py": "class {{ name }}:",
        "n/python2.py": "print 'hello'",
        "../bin/tool.py": SHAPES,
    }
    install(tmp_path / "site", "n", sources)
    (tmp_path / "site" / "n" / "python2.py").unlink()
    corpus(tmp_path / "input", tmp_path / "site")
    assert rows(tmp_path / "input").keys() == {"n#description"}


def test_our_own_package_is_no_part_of_it(tmp_path):
    install(tmp_path / "site", "switchgear", {})
    install(tmp_path / "site", "other", {}, body=f"{LONG} Other.")
    corpus(tmp_path / "input", tmp_path / "site")
    assert rows(tmp_path / "input").keys() == {"other#description"}


def test_files_and_row_groups_are_as_many_as_asked_for(tmp_path):
    source = "\n".join(f'def f{n}():\n    """{LONG} {n}"""' for n in range(59))
    install(tmp_path / "site", "big", {"big.py": source})
    stats = corpus(tmp_path / "input", tmp_path / "site", files=3, rows_per_group=8)
    files = [pq.ParquetFile(tmp_path / "input" / name) for name in stats.files]
    assert [file.metadata.num_rows for file in files] == [20, 20, 20]
    assert [file.metadata.num_row_groups for file in files] == [3, 3, 3]
    assert stats.row_groups == 9
    assert all(file.schema_arrow.equals(CORPUS_SCHEMA) for file in files)
    assert files[0].metadata.row_group(0).column(6).compression == "ZSTD"


def test_an_environment_without_packages_gives_one_empty_file(tmp_path):
    (tmp_path / "site").mkdir()
    stats = corpus(tmp_path / "input", tmp_path / "site")
    assert (stats.documents, list(stats.files)) == (0, ["docs-01.parquet"])


def test_this_environment_gives_thousands_of_texts_of_very_different_lengths(tmp_path):
    stats = write_corpus(tmp_path / "input")
    found = rows(tmp_path / "input")
    lengths = sorted(row["characters"] for row in found.values())
    assert 5000 < stats.documents == len(found) < 12000
    assert lengths[0] < 60 < 20_000 < lengths[-1]
    assert stats.packages > 100
    assert not any(sys.prefix in json.dumps(row) for row in found.values())
    assert all(not doc_id.startswith(("/", ".")) for doc_id in found)
