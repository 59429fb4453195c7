import json
from dataclasses import fields
from pathlib import Path

import pytest

from schemas.batches import BackendTotals
from schemas.run import FailedBatch, FailureGroup, Manifest, Progress
from tests.support.records import AMBIGUOUS, manifest, run_context

MANIFEST = manifest(
    state="incomplete",
    reason="why",
    reason_class="failures",
    skipped_files=("x: broken",),
    failures_by_route={"ask": 1},
    failure_groups=(FailureGroup("timeout", 1, True, "m", "r", ("doc-1",), "why"),),
    failed_batches=(FailedBatch("b", "/in/a", 0, 0, 4, "gone"),),
    totals={"ask": {"mini": BackendTotals(documents=4)}},
    ambiguous=(AMBIGUOUS,),
)


def test_a_manifest_comes_back_from_its_json() -> None:
    assert Manifest.from_dict(json.loads(MANIFEST.to_json())) == MANIFEST
    assert Manifest.from_dict(json.loads(json.dumps(MANIFEST.to_dict()))) == MANIFEST


def test_a_manifest_that_was_written_without_a_count_of_failed_batches_names_them_all() -> None:
    data = json.loads(MANIFEST.to_json())
    del data["failed_batches_count"], data["failed_batches_file"]
    found = Manifest.from_dict(data)
    assert (found.failed_batches_count, found.failed_batches_file) == (1, "")


def test_a_manifest_of_another_version_is_refused() -> None:
    with pytest.raises(ValueError, match="manifest/1"):
        Manifest.from_dict({**json.loads(MANIFEST.to_json()), "version": "manifest/9"})


def test_a_context_holds_no_place_for_a_secret(tmp_path: Path) -> None:
    names = [f.name for f in fields(run_context(tmp_path))]
    assert "run_id" in names
    names.remove("secret_project")  # the name of a place where secrets are, and no secret
    assert [
        n for n in names if any(word in n for word in ("key", "secret", "token", "password", "env"))
    ] == []


def test_progress_is_plain_values() -> None:
    said = json.loads(json.dumps(Progress(1, 2, 3, 4, "0.5").to_dict()))
    assert said.items() >= {"group": 1, "documents": 2, "batches": 3, "calls": 4, "amount": "0.5"}.items()
