"""The README says what the code says."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from schemas.describe import with_tables
from schemas.errors import WorkloadError
from schemas.load import load_workload

README = Path(__file__).resolve().parents[1] / "README.md"


def test_the_readmes_tables_are_those_of_the_schemas() -> None:
    text = README.read_text("utf-8")
    assert with_tables(text) == text, "run: python -m schemas.describe README.md"


def test_a_readme_without_its_markers_is_refused() -> None:
    with pytest.raises(ValueError, match="no markers"):
        with_tables("# Switchgear\n")


def test_the_readmes_workload_is_valid(tmp_path: Path) -> None:
    blocks = re.findall(r"```toml\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    assert len(blocks) == 1
    path = tmp_path / "tickets.toml"
    path.write_text(blocks[0], "utf-8")
    loaded = load_workload(path)
    assert [route.name for route in loaded.workload.routes] == ["classify", "embed"]
    assert tomllib.loads(blocks[0])["budget"]["amount"] == "25.00"


def test_a_typing_error_in_the_readmes_workload_would_be_found(tmp_path: Path) -> None:
    (block,) = re.findall(r"```toml\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    path = tmp_path / "tickets.toml"
    path.write_text(block.replace("backends = [", "backend = ["), "utf-8")
    with pytest.raises(WorkloadError, match="Did you mean `backends`"):
        load_workload(path)


def test_every_file_that_the_readme_links_to_exists() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README.read_text("utf-8"))
    assert links
    assert [link for link in links if not (README.parent / link).exists()] == []
