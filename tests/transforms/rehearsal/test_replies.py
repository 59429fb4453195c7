import json

import anthropic.types
import jsonschema
import openai.types.chat
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.transforms.rehearsal.wire_requests import (
    CALM,
    DOCUMENT,
    PROMPT,
    PROVIDERS,
    SCHEMA,
    ask,
    body,
    faulty,
    finish_of,
    request,
    text_of,
    usage_of,
)
from transforms.rehearsal.answers import PLAIN_PREFIX
from transforms.rehearsal.asks import HttpRequest
from transforms.rehearsal.draws import request_key
from transforms.rehearsal.replies import latency_s

TYPES = {"anthropic": anthropic.types.Message, "openai": openai.types.chat.ChatCompletion}
both = pytest.mark.parametrize("provider", PROVIDERS)


def unknown_fields(model) -> list[str]:
    """Fields, at any depth, that the official SDK's type doesn't know."""
    found = list(model.model_extra or {})
    for name in type(model).model_fields:
        value = getattr(model, name)
        for part in value if isinstance(value, list) else [value]:
            found += unknown_fields(part) if hasattr(part, "model_extra") else []
    return found


@both
@pytest.mark.parametrize("schema", [None, SCHEMA])
@pytest.mark.parametrize("fault", [{}, {"max_tokens": 1}, {"refusal": 1}, {"invalid_json": 1}])
def test_answers_are_what_the_official_types_describe(provider, schema, fault):
    reply, answer = ask(request(provider, schema=schema), faulty(**fault))
    assert reply.status == 200
    assert reply.billed
    assert unknown_fields(TYPES[provider].model_validate(answer)) == []


@both
def test_structured_answers_fit_the_schema_and_come_from_the_document(provider):
    _, answer = ask(request(provider, schema=SCHEMA))
    value = json.loads(text_of(provider, answer))
    jsonschema.validate(value, SCHEMA)
    assert value["summary"] == "Frames hold data in columns."
    assert value["topic"] == "data"


@both
def test_plain_answers_say_that_they_are_a_rehearsal_and_quote_the_document(provider):
    _, answer = ask(request(provider))
    assert text_of(provider, answer) == f"{PLAIN_PREFIX}Frames hold data in columns."
    assert finish_of(provider, answer) == {"anthropic": "end_turn", "openai": "stop"}[provider]


@both
def test_the_model_that_was_asked_for_answers(provider):
    _, answer = ask(request(provider, model="some-model-1"))
    assert answer["model"] == "some-model-1"


@both
def test_usage_is_a_token_for_four_characters(provider):
    _, small = ask(request(provider, prompt="x" * 40))
    _, large = ask(request(provider, prompt="x" * 440))
    assert usage_of(provider, large)[0] - usage_of(provider, small)[0] == 100
    _, answer = ask(request(provider))
    assert usage_of(provider, answer)[1] == -(-len(text_of(provider, answer)) // 4)


@both
def test_system_text_and_schema_are_input_too(provider):
    plain = usage_of(provider, ask(request(provider))[1])[0]
    assert usage_of(provider, ask(request(provider, schema=SCHEMA))[1])[0] > plain
    long = {"system": "s" * 1000} if provider == "anthropic" else {}
    messages = [{"role": "system", "content": "s" * 1000}, *body(provider)["messages"]]
    asked = request(provider, **(long or {"messages": messages}))
    assert usage_of(provider, ask(asked)[1])[0] > plain + 200


@both
def test_an_answer_longer_than_allowed_is_cut_off_and_billed_as_allowed(provider):
    limit = "max_tokens" if provider == "anthropic" else "max_completion_tokens"
    _, answer = ask(request(provider, schema=SCHEMA, **{limit: 3}))
    assert finish_of(provider, answer) == {"anthropic": "max_tokens", "openai": "length"}[provider]
    assert usage_of(provider, answer)[1] == 3
    assert len(text_of(provider, answer)) == 12


@both
def test_the_same_request_gets_the_same_reply_and_another_seed_another(provider):
    asked = request(provider, schema=SCHEMA)
    assert ask(asked)[0] == ask(asked)[0]
    other = CALM.model_copy(update={"seed": 1})
    assert ask(asked)[1]["id"] != ask(asked, other)[1]["id"]
    assert ask(asked)[1]["id"] != ask(request(provider, prompt=PROMPT + " ", schema=SCHEMA))[1]["id"]


@both
def test_every_answer_carries_the_providers_request_id_and_rate_limits(provider):
    headers = dict(ask(request(provider))[0].headers)
    expected = {
        "anthropic": {"request-id", "anthropic-ratelimit-requests-remaining"},
        "openai": {"x-request-id", "x-ratelimit-remaining-tokens", "openai-processing-ms"},
    }
    assert expected[provider] <= headers.keys()


def test_a_forced_tool_is_called_with_an_input_that_fits():
    tools = [
        {"name": "other", "input_schema": {"type": "object"}},
        {"name": "classify", "input_schema": SCHEMA},
    ]
    _, answer = ask(request("anthropic", tools=tools, tool_choice={"type": "tool", "name": "classify"}))
    message = anthropic.types.Message.model_validate(answer)
    assert message.stop_reason == "tool_use"
    assert message.content[0].name == "classify"
    jsonschema.validate(message.content[0].input, SCHEMA)


def test_a_forced_tools_input_is_broken_or_cut_by_the_faults_too():
    tools = [{"name": "classify", "input_schema": SCHEMA}]
    asked = request("anthropic", tools=tools, tool_choice={"type": "any"})
    for fault, stop_reason in (("invalid_json", "tool_use"), ("max_tokens", "max_tokens")):
        _, answer = ask(asked, faulty(**{fault: 1}))
        assert answer["stop_reason"] == stop_reason
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(answer["content"][0]["input"], SCHEMA)


def test_the_former_output_format_is_understood():
    asked = request("anthropic", output_format={"type": "json_schema", "schema": SCHEMA})
    jsonschema.validate(json.loads(text_of("anthropic", ask(asked)[1])), SCHEMA)


def test_json_mode_without_a_schema_gives_an_object():
    _, answer = ask(request("openai", response_format={"type": "json_object"}))
    assert isinstance(json.loads(text_of("openai", answer)), dict)


def test_text_blocks_are_as_good_as_a_string():
    blocks = [{"type": "text", "text": PROMPT[:20]}, {"type": "text", "text": PROMPT[20:]}]
    for provider in PROVIDERS:
        messages = [{"role": "user", "content": blocks}]
        assert DOCUMENT[:28] in text_of(provider, ask(request(provider, messages=messages))[1])


@pytest.mark.parametrize(
    ("fault", "provider", "status", "kind"),
    [
        ("rate_limited", "anthropic", 429, "rate_limit_error"),
        ("rate_limited", "openai", 429, "requests"),
        ("server_error", "anthropic", 500, "api_error"),
        ("server_error", "openai", 500, "server_error"),
        ("overloaded", "anthropic", 529, "overloaded_error"),
        ("overloaded", "openai", 503, "service_unavailable_error"),
    ],
)
def test_faults_of_the_provider_have_its_status_and_shape_and_are_not_billed(fault, provider, status, kind):
    reply, answer = ask(request(provider), faulty(**{fault: 1}))
    assert (reply.status, answer["error"]["type"], reply.billed) == (status, kind, False)
    assert dict(reply.headers).get("retry-after") == ("1" if status == 429 else None)
    if provider == "anthropic":
        assert answer["type"] == "error"
        assert answer["request_id"] == dict(reply.headers)["request-id"]
    else:
        assert answer["error"].keys() == {"message", "type", "param", "code"}


@both
def test_a_refusal_is_an_answer_that_is_billed_and_says_nothing(provider):
    _, answer = ask(request(provider), faulty(refusal=1))
    assert text_of(provider, answer) == ""
    assert finish_of(provider, answer) == {"anthropic": "refusal", "openai": "content_filter"}[provider]


def test_a_refusal_of_a_structured_answer_stands_in_its_own_field():
    _, answer = ask(request("openai", schema=SCHEMA), faulty(refusal=1))
    assert "can't help" in answer["choices"][0]["message"]["refusal"]
    assert finish_of("openai", answer) == "stop"


@both
def test_invalid_json_breaks_structured_answers_only(provider):
    with pytest.raises(json.JSONDecodeError):
        json.loads(text_of(provider, ask(request(provider, schema=SCHEMA), faulty(invalid_json=1))[1]))
    assert text_of(provider, ask(request(provider), faulty(invalid_json=1))[1]).startswith(PLAIN_PREFIX)


@both
def test_a_fault_depends_on_how_often_the_request_was_seen(provider):
    asked = request(provider)
    settings = faulty(server_error=0.5)
    statuses = [ask(asked, settings, nth)[0].status for nth in range(200)]
    assert statuses == [ask(asked, settings, nth)[0].status for nth in range(200)]
    assert 60 < statuses.count(500) < 140


@both
def test_faults_come_about_as_often_as_configured(provider):
    settings = faulty(rate_limited=0.2, server_error=0.1, refusal=0.3)
    statuses = [ask(request(provider, prompt=f"{n}"), settings)[0].status for n in range(1000)]
    assert 150 < statuses.count(429) < 250
    assert 60 < statuses.count(500) < 140


def test_latency_is_drawn_between_its_bounds_and_repeats_itself():
    settings = CALM.model_copy(update={"latency_ms": (20.0, 80.0)})
    keys = [request_key(0, "/", b"%d" % n) for n in range(500)]
    latencies = [latency_s(settings, key) for key in keys]
    assert latencies == [latency_s(settings, key) for key in keys]
    assert 0.020 <= min(latencies) < 0.025
    assert 0.075 < max(latencies) <= 0.080


LIST = [{"role": "user", "content": [{"type": "image"}]}]
OPEN = {"type": "object", "properties": {"a": {"type": "object", "properties": {}}}, "required": ["a"]}
CLOSED = {**OPEN, "additionalProperties": False}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"model": None}, "model: Field required"),
        ({"max_tokens": None}, "max_tokens: Field required"),
        ({"max_tokens": 0}, "greater than or equal to 1"),
        ({"max_tokens": "5"}, "max_tokens: Input should be a valid int"),
        ({"messages": None}, "messages: Field required"),
        ({"messages": []}, "at least one message"),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages.0.role"),
        ({"messages": LIST}, "reads text only"),
        ({"messages": [{"role": "user", "content": " "}]}, "non-whitespace"),
        ({"system": 5}, "system: Input should be"),
        ({"stream": True}, "whole answers only"),
        ({"tool_choice": {"type": "tool", "name": "gone"}}, "Tool 'gone' not found"),
        ({"output_config": {"format": {"type": "xml"}}}, "Input should be 'json_schema'"),
        ({"output_config": {"format": {"type": "json_schema"}}}, "schema: Field required"),
        ({"schema": CLOSED}, "'additionalProperties' must be explicitly set to false"),
        ({"schema": {"type": "string", "pattern": "a"}}, "pattern is not supported"),
        ({"schema": {"type": "number", "multipleOf": 0}}, "Invalid schema: $.multipleOf"),
        ({"schema": {"type": "strange"}}, "Invalid schema: $.type"),
    ],
)
def test_requests_that_anthropic_refuses_are_refused_in_its_shape(more, message):
    reply, answer = ask(request("anthropic", **more))
    assert (reply.status, answer["error"]["type"], reply.billed) == (400, "invalid_request_error", False)
    assert message in answer["error"]["message"]


@pytest.mark.parametrize(
    ("more", "message", "param"),
    [
        ({"model": None}, "you must provide a model parameter", None),
        ({"messages": None}, "Missing required parameter: 'messages'", "messages"),
        ({"messages": []}, "empty array", "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "Supported values are", "messages[0].role"),
        ({"messages": LIST}, "reads text only", "messages[0].content"),
        ({"max_completion_tokens": 0}, "expected an integer >= 1", "max_completion_tokens"),
        ({"stream": True}, "whole answers only", "stream"),
        ({"response_format": {"type": "xml"}}, "Supported values are", "response_format.type"),
        (
            {"response_format": {"type": "json_schema"}},
            "Missing required",
            "response_format.json_schema.name",
        ),
        (
            {"schema": {"type": "string"}},
            "schema must be a JSON Schema of 'type: \"object\"'",
            "response_format",
        ),
        ({"schema": CLOSED}, "In context=('properties', 'a'), 'additionalProperties'", "response_format"),
        ({"schema": {**SCHEMA, "required": ["topic"]}}, "Missing 'summary'", "response_format"),
    ],
)
def test_requests_that_openai_refuses_are_refused_in_its_shape(more, message, param):
    reply, answer = ask(request("openai", **more))
    assert (reply.status, answer["error"]["type"]) == (400, "invalid_request_error")
    assert message in answer["error"]["message"]
    assert answer["error"]["param"] == param


def test_the_older_name_of_the_limit_is_understood():
    _, answer = ask(request("openai", max_completion_tokens=None, max_tokens=3))
    assert finish_of("openai", answer) == "length"


@both
@pytest.mark.parametrize("raw", [b"", b"{", b"[1]", b'"x"', b'{"model": "\\ud800"}'])
def test_a_body_that_is_not_a_json_object_is_refused(provider, raw):
    assert ask(request(provider, raw))[0].status == 400


@pytest.mark.parametrize(
    ("provider", "headers", "status", "kind"),
    [
        ("anthropic", {"anthropic-version": "2023-06-01"}, 401, "authentication_error"),
        (
            "anthropic",
            {"anthropic-version": "2023-06-01", "authorization": "Bearer "},
            401,
            "authentication_error",
        ),
        ("anthropic", {"x-api-key": "k"}, 400, "invalid_request_error"),
        ("openai", {}, 401, "invalid_request_error"),
        ("openai", {"authorization": "Bearer"}, 401, "invalid_request_error"),
    ],
)
def test_a_request_without_its_headers_is_refused(provider, headers, status, kind):
    reply, answer = ask(request(provider, headers=headers))
    assert (reply.status, answer["error"]["type"]) == (status, kind)


def test_anthropic_takes_a_bearer_token_as_its_sdk_sends_it():
    headers = {"anthropic-version": "2023-06-01", "authorization": "Bearer k"}
    assert ask(request("anthropic", headers=headers))[0].status == 200


@pytest.mark.parametrize(
    ("method", "path", "headers", "status", "kind"),
    [
        ("POST", "/v1/message", {"anthropic-version": "2023-06-01"}, 404, "not_found_error"),
        ("POST", "/v1/v1/chat/completions", {}, 404, "invalid_request_error"),
        ("GET", "/v1/messages", {}, 405, "invalid_request_error"),
        ("GET", "/v1/chat/completions", {}, 405, "invalid_request_error"),
    ],
)
def test_another_address_is_not_found(method, path, headers, status, kind):
    reply, answer = ask(HttpRequest(method, path, headers, b"{}"))
    assert (reply.status, answer["error"]["type"]) == (status, kind)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=3) | st.just("json_schema"),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(
                ["type", "name", "format", "schema", "json_schema", "role", "content", "properties"]
            ),
            inner,
        )
    ),
    max_leaves=8,
)
KEYS = [
    "model",
    "messages",
    "max_tokens",
    "max_completion_tokens",
    "system",
    "tools",
    "tool_choice",
    "stream",
]
KEYS += ["output_config", "output_format", "response_format"]


@both
@given(key=st.sampled_from(KEYS), value=JSON, forced=st.booleans())
def test_no_request_is_too_strange_for_an_answer_or_a_refusal(provider, key, value, forced):
    more = {"tool_choice": {"type": "any"}} if forced and provider == "anthropic" else {}
    reply, answer = ask(request(provider, {**body(provider), **more, key: value}))
    assert reply.status in (200, 400)
    assert ("error" in answer) == (reply.status == 400)


MARK = {"cache_control": {"type": "ephemeral"}}


@pytest.mark.parametrize(
    ("system", "content", "cached"),
    [
        ([{"type": "text", "text": "s" * 8000, **MARK}], PROMPT, 2000),
        ("s" * 4000, [{"type": "text", "text": "h" * 4000, **MARK}, {"type": "text", "text": PROMPT}], 2000),
        ("s" * 8000, PROMPT, 0),
        ([{"type": "text", "text": "s" * 400, **MARK}], PROMPT, 0),
    ],
)
def test_what_is_marked_and_long_enough_counts_as_read_from_the_cache(system, content, cached):
    plain = text_of("anthropic", ask(request("anthropic"))[1])
    asked = request("anthropic", system=system, messages=[{"role": "user", "content": content}])
    _, answer = ask(asked)
    usage = anthropic.types.Message.model_validate(answer).usage
    assert usage.cache_read_input_tokens == cached
    assert usage.input_tokens + cached > cached
    assert text_of("anthropic", answer) == plain


def test_the_document_is_found_in_the_first_question_when_a_better_answer_is_asked_for():
    turns = [
        {"role": "user", "content": PROMPT},
        {"role": "assistant", "content": "no JSON"},
        {"role": "user", "content": "That can't be used. Answer again."},
    ]
    for provider in PROVIDERS:
        _, answer = ask(request(provider, messages=turns))
        assert "Frames hold data in columns." in text_of(provider, answer)
