"""Keys: found by name, and kept to themselves."""

from __future__ import annotations

import copy
import pickle

import pytest

from schemas.errors import MissingSecretError
from tests.transforms.call.fakes import CANARY, HAIKU, MINI
from transforms.call.secret import Secret, key_variable, read_key


def test_a_key_shows_itself_to_nobody_who_does_not_ask_for_it_by_name() -> None:
    secret = Secret(CANARY)
    for shown in (repr(secret), str(secret), f"{secret}", f"{secret!r}", f"{[secret]}", f"{secret!s:>20}"):
        assert CANARY not in shown
    assert secret.reveal() == CANARY
    assert not hasattr(secret, "__dict__")


@pytest.mark.parametrize("leak", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_key_is_never_pickled_or_copied(leak: object) -> None:
    with pytest.raises(TypeError, match="never pickled") as caught:
        leak(Secret(CANARY))  # type: ignore[operator]
    assert CANARY not in str(caught.value)


def test_an_echoed_key_is_masked() -> None:
    secret = Secret(CANARY)
    assert secret.mask(f"<{CANARY}><{CANARY}>".encode()) == b"<[key]><[key]>"
    assert secret.mask_text(f"no {CANARY} here") == "no [key] here"
    assert secret.mask(b"nothing") == b"nothing"


def test_a_key_too_short_to_be_one_does_not_garble_ordinary_text() -> None:
    assert Secret("a").mask(b"a banana") == b"a banana"
    assert Secret("a").mask_text("a banana") == "a banana"


def test_a_key_is_read_from_the_variable_of_its_backend() -> None:
    assert key_variable(HAIKU) == "ANTHROPIC_API_KEY"
    assert key_variable(MINI) == "OPENAI_API_KEY"
    named = MINI.model_copy(update={"api_key_env": "MY_KEY"})
    secret = read_key("mini", named, {"MY_KEY": f" {CANARY}\n"})
    assert secret is not None
    assert secret.reveal() == CANARY


@pytest.mark.parametrize("environ", [{}, {"OPENAI_API_KEY": ""}, {"OPENAI_API_KEY": "  \n"}])
def test_a_missing_key_names_variable_backend_and_the_way_without_one(environ: dict[str, str]) -> None:
    with pytest.raises(MissingSecretError, match=r"'mini'.*OPENAI_API_KEY.*--rehearsal"):
        read_key("mini", MINI, environ)


@pytest.mark.parametrize("key", [f"{CANARY}\r\nx-evil: 1", f"“{CANARY}”"])
def test_a_key_that_no_header_can_carry_is_refused_without_being_shown(key: str) -> None:
    with pytest.raises(MissingSecretError) as caught:
        read_key("mini", MINI, {"OPENAI_API_KEY": key})
    assert CANARY not in str(caught.value)


def test_a_server_without_keys_gets_none() -> None:
    assert read_key("own", MINI.model_copy(update={"requires_key": False}), {}) is None
