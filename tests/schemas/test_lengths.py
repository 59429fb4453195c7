import json

import pytest

from schemas.lengths import TextLengths

SHORT = TextLengths.of({10: 300, 20: 100, 0: 7}, 400, 4000)


def test_a_histogram_travels_as_json_and_leaves_out_texts_without_tokens():
    assert SHORT.counts == ((10, 300), (20, 100))
    assert TextLengths.from_dict(json.loads(json.dumps(SHORT.to_dict()))) == SHORT


def test_a_sample_stands_for_all_documents_and_for_itself_at_least():
    assert SHORT.scaled() == {10: 3000, 20: 1000}
    assert TextLengths.of({5: 4}, 4, 1).scaled() == {5: 4}
    assert TextLengths.of({}, 0, 10).scaled() == {}


def test_a_document_has_the_tokens_of_all_its_chunks():
    assert SHORT.mean == 12.5
    assert TextLengths.of({512: 2, 100: 1}, 1, 1).mean == 1124
    assert TextLengths.of({}, 0, 0).mean == 0


@pytest.mark.parametrize(
    ("other", "distance"),
    [
        (SHORT, 0),
        (TextLengths.of({9: 3, 17: 1}, 4, 4), 0),  # others, of the same kind
        (TextLengths.of({15: 1, 16: 1}, 2, 2), 0.25),
        (TextLengths.of({9000: 1}, 1, 1), 1),
        (TextLengths.of({}, 0, 0), 0.5),
    ],
)
def test_samples_differ_by_the_texts_that_would_have_to_change_length(other: TextLengths, distance: float):
    assert SHORT.distance(other) == pytest.approx(distance)
    assert other.distance(SHORT) == pytest.approx(distance)


def test_what_goes_to_a_backend_on_several_routes_is_one_histogram():
    other = TextLengths.of({20: 1, 30: 1}, 2, 5)
    assert TextLengths.merged([SHORT, other]) == TextLengths(((10, 300), (20, 101), (30, 1)), 402, 4005)
