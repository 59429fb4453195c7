"""Keys from Secret blocks, by name."""

from __future__ import annotations

import os

import pytest

from flows.secret_blocks import block_name, keys_from_blocks
from tests.support import workloads

CANARY = "sk-canary-5b0e17"


def test_only_missing_keys_are_looked_for_and_each_in_the_block_of_its_name() -> None:
    asked: list[str] = []
    blocks = {"gemini-api-key": CANARY, "anthropic-api-key": "not wanted"}

    def read(name: str) -> str | None:
        asked.append(name)
        return blocks.get(name)

    backends = {
        "mini": workloads.HOSTED,
        "own": {**workloads.HOSTED, "api_key_env": "MY_OWN_KEY"},
        "flash": {**workloads.HOSTED, "provider": "gemini"},
        "haiku": {**workloads.HOSTED, "provider": "anthropic"},
    }
    route = {"name": "ask", "backends": list(backends), "prompt": "topic"}
    environ = {"ANTHROPIC_API_KEY": "from the environment", "OPENAI_API_KEY": ""}
    filled = keys_from_blocks(workloads.workload(backends=backends, routes=[route]), environ, read)

    assert asked == ["gemini-api-key", "my-own-key", "openai-api-key"]
    assert filled == ["GEMINI_API_KEY"]
    assert environ == {
        "ANTHROPIC_API_KEY": "from the environment",
        "OPENAI_API_KEY": "",
        "GEMINI_API_KEY": CANARY,
    }


def test_a_name_of_a_block_is_the_variables_in_a_blocks_letters() -> None:
    assert block_name("OPENAI_API_KEY") == "openai-api-key"


def test_outside_a_flow_run_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert keys_from_blocks(workloads.workload()) == []


@pytest.mark.usefixtures("prefect_server")
def test_a_flow_run_takes_its_key_from_the_server_and_shows_it_nowhere(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from prefect import flow
    from prefect.blocks.system import Secret

    monkeypatch.setenv("OPENAI_API_KEY", "")
    Secret(value=CANARY).save("openai-api-key", overwrite=True)

    @flow
    def run() -> list[str]:
        return keys_from_blocks(workloads.workload())

    state = run(return_state=True)
    assert state.result() == ["OPENAI_API_KEY"]
    assert os.environ["OPENAI_API_KEY"] == CANARY
    assert CANARY not in caplog.text
    assert CANARY not in str(state)
