import socket
from urllib.parse import urlsplit

import anthropic
import openai
import pytest

from tests.peers import mock_vendor as aimock

pytestmark = pytest.mark.peer


def ask_anthropic(vendor, prompt):
    client = anthropic.Anthropic(base_url=vendor.base_url("anthropic"), api_key="k", max_retries=0)
    return client.messages.create(
        model="claude-haiku-5-5", max_tokens=50, messages=[{"role": "user", "content": prompt}]
    )


def ask_openai(vendor, prompt):
    client = openai.OpenAI(base_url=vendor.base_url("openai"), api_key="k", max_retries=0)
    return client.chat.completions.create(
        model="gpt-6-luna", messages=[{"role": "user", "content": prompt}], max_completion_tokens=50
    )


def test_both_formats_get_the_answer_and_the_journal_counts_each_document(mock_vendor):
    mock_vendor.answer({"id": "$ID"}, id=r"doc-\d+", usage=(11, 5))
    message = ask_anthropic(mock_vendor, "about doc-1: hello")
    completion = ask_openai(mock_vendor, "about doc-2: hello")
    ask_openai(mock_vendor, "about doc-2: hello")
    assert message.content[0].text == '{"id": "doc-1"}'
    assert (message.usage.input_tokens, message.usage.output_tokens) == (11, 5)
    assert completion.choices[0].message.content == '{"id": "doc-2"}'
    assert (completion.usage.prompt_tokens, completion.usage.completion_tokens) == (11, 5)
    assert mock_vendor.answered(r"doc-\d+") == {"doc-1": 1, "doc-2": 2}
    assert mock_vendor.answered(r"about (\S+):") == {"doc-1": 1, "doc-2": 2}


def test_usage_follows_the_length_of_prompt_and_answer_unless_given(mock_vendor):
    mock_vendor.answer("12345678")
    assert ask_anthropic(mock_vendor, "x" * 40).usage.input_tokens == 10
    assert ask_openai(mock_vendor, "x" * 40).usage.completion_tokens == 2


def test_a_rule_for_some_documents_fails_them_as_often_as_it_says(mock_vendor):
    limited = mock_vendor.failure(429, "rate_limit_error", contains="doc-1", times=1, retry_after=7)
    mock_vendor.rules([limited, mock_vendor.rule("fine")])
    with pytest.raises(anthropic.RateLimitError) as raised:
        ask_anthropic(mock_vendor, "doc-1")
    assert raised.value.response.headers["retry-after"] == "7"
    assert ask_anthropic(mock_vendor, "doc-1").content[0].text == "fine"
    assert [entry["response"]["status"] for entry in mock_vendor.journal()] == [429, 200]
    assert mock_vendor.answered("doc-1") == {"doc-1": 1}


def test_a_prompt_without_a_rule_is_not_found(mock_vendor):
    with pytest.raises(openai.NotFoundError):
        ask_openai(mock_vendor, "anything")


def test_an_answer_is_billed_even_when_the_client_has_gone(mock_vendor):
    mock_vendor.answer("late", latency_ms=(100, 100))
    body = b'{"model":"m","max_tokens":9,"messages":[{"role":"user","content":"doc-9"}]}'
    head = f"POST /v1/messages HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    with socket.create_connection(
        (urlsplit(mock_vendor.url).hostname, urlsplit(mock_vendor.url).port)
    ) as gone:
        gone.sendall(head + body)
    ask_anthropic(mock_vendor, "doc-10")  # asked after it and as slow: answered after it
    assert mock_vendor.answered(r"doc-\d+") == {"doc-9": 1, "doc-10": 1}


def test_a_missing_package_names_the_command_that_provides_it(monkeypatch, tmp_path):
    monkeypatch.setattr(aimock, "_ENTRY", tmp_path / "index.js")
    assert aimock.PROVIDE in aimock.missing()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "Node.js" in aimock.missing()
