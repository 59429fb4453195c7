"""Answers that processes of a machine share while their ledgers are in Cloud Storage."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.peers.cloud_storage import CloudStorage
from transforms.call.ledger import encode_frame, header
from transforms.call.segments import segment_path
from transforms.call.share import Place
from transforms.call.share_index import SharedAnswers, open_answers
from transforms.store import Store, open_store

BATCH, KEY, OTHER = "a" * 32, b"k" * 16, b"o" * 16


@pytest.fixture
def store(cloud_storage: CloudStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("SWITCHGEAR_CACHE_DIR", str(tmp_path / "cache"))
    return open_store(f"{cloud_storage.bucket()}/out")


@pytest.fixture
def places(store: Store) -> list[Place]:
    """A ledger of two segments with two answers each; where they stand, counted from its beginning."""
    start, found = 0, []
    for number in range(2):
        segment = encode_frame(header(BATCH, "live")) if number == 0 else b""
        for row in (2 * number, 2 * number + 1):
            answer = {
                "kind": "answered",
                "id": row,
                "body": f"answer {row}",
                "of": [row, "ask", f"doc-{row}"],
            }
            frame = encode_frame(answer)
            found.append(Place(BATCH, start + len(segment), int.from_bytes(frame[4:8], "little")))
            segment += frame
        store.create(segment_path(BATCH, start), segment)
        start += len(segment)
    return found


@pytest.fixture
def index(store: Store) -> Iterator[SharedAnswers]:
    made = open_answers(store)
    yield made
    made.close()


def test_an_answer_in_any_segment_is_found_by_another_process(
    store: Store, index: SharedAnswers, places: list[Place]
) -> None:
    for row, place in enumerate(places):
        index.add(KEY, place)
        other = open_answers(store)
        found = other.find(KEY)
        other.close()
        assert found is not None
        assert (found.origin.document_id, found.frame["body"]) == (f"doc-{row}", f"answer {row}")


def test_a_hint_to_what_is_not_there_finds_nothing(index: SharedAnswers, places: list[Place]) -> None:
    for wrong in (
        Place(BATCH, places[3].offset, places[2].checksum),
        Place(BATCH, places[3].offset + 1, places[3].checksum),
        Place(BATCH, 10**9, places[3].checksum),
        Place("f" * 32, 0, places[0].checksum),
    ):
        index.add(KEY, wrong)
        assert index.find(KEY) is None


def test_one_process_asks_at_a_time_and_outputs_know_nothing_of_each_other(
    store: Store, index: SharedAnswers, places: list[Place]
) -> None:
    second, elsewhere = open_answers(store), open_answers(open_store(f"{store.root}2"))
    assert index.claim(KEY)
    assert not second.claim(KEY)
    assert second.claim(OTHER)
    assert elsewhere.claim(KEY)
    index.add(KEY, places[0])
    assert elsewhere.find(KEY) is None
    second.close()
    elsewhere.close()
    assert not list(store.list("shared")), "the index is on this machine"
