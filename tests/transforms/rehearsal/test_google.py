"""The stand-in's Google formats, driven by the official clients."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import jsonschema
import numpy as np
import openai
import pytest
from google.auth.credentials import AnonymousCredentials
from google.genai import Client, errors, types

from schemas.rehearsal import Faults, Rehearsal
from tests.transforms.rehearsal.wire_requests import CALM, PROMPT, SCHEMA
from transforms.rehearsal import RehearsalServer
from transforms.rehearsal.asks import HttpRequest
from transforms.rehearsal.draws import request_key
from transforms.rehearsal.replies import reply_to

MODEL = "gemini-2.5-flash"
PATH = f"/v1beta/models/{MODEL}:generateContent"
VERTEX_PATH = f"/v1beta1/projects/p/locations/l/publishers/google/models/{MODEL}:generateContent"
NO_SCHEMA = {"responseMimeType": "application/json", "responseJsonSchema": {"type": 1}}
VERTEX = {"project": "p-1", "location": "europe-west1"}


@pytest.fixture(scope="module")
def server() -> Iterator[RehearsalServer]:
    with RehearsalServer(CALM) as running:
        yield running


def client(server: RehearsalServer, platform: str = "direct") -> Client:
    address, _, version = server.base_url("gemini", platform).rpartition("/")
    options = types.HttpOptions(base_url=address, api_version=version)
    if platform == "direct":
        return Client(api_key="k", http_options=options)
    credentials = AnonymousCredentials()
    credentials.token = "t"
    return Client(vertexai=True, **VERTEX, credentials=credentials, http_options=options)


@pytest.mark.parametrize("platform", ["direct", "vertex"])
@pytest.mark.parametrize("schema", [None, SCHEMA])
def test_the_official_client_understands_the_answers(
    server: RehearsalServer, platform: str, schema: Any
) -> None:
    config = types.GenerateContentConfig(
        system_instruction="You classify.",
        max_output_tokens=500,
        temperature=0,
        response_mime_type="application/json" if schema else None,
        response_json_schema=schema,
    )
    with client(server, platform) as google:
        answer = google.models.generate_content(model=MODEL, contents=PROMPT, config=config)
    assert answer.candidates
    assert answer.candidates[0].finish_reason is types.FinishReason.STOP
    assert answer.model_version == MODEL
    assert answer.usage_metadata
    assert answer.usage_metadata.prompt_token_count
    assert answer.usage_metadata.candidates_token_count
    if schema:
        jsonschema.validate(json.loads(answer.text or ""), schema)
    else:
        assert "Frames hold data in columns." in (answer.text or "")


def test_the_clients_own_schema_types_are_understood_too(server: RehearsalServer) -> None:
    schema = types.Schema(
        type=types.Type.OBJECT,
        properties={
            "topic": types.Schema(type=types.Type.STRING, enum=["data", "web"]),
            "tags": types.Schema(type=types.Type.ARRAY, items=types.Schema(type=types.Type.STRING)),
        },
        required=["topic", "tags"],
    )
    config = types.GenerateContentConfig(response_mime_type="application/json", response_schema=schema)
    with client(server) as google:
        answer = google.models.generate_content(model=MODEL, contents=PROMPT, config=config)
    value = json.loads(answer.text or "")
    assert value["topic"] == "data"
    assert all(isinstance(tag, str) for tag in value["tags"])


def test_claude_on_vertex_answers_the_official_client(server: RehearsalServer) -> None:
    vertex = anthropic.AnthropicVertex(
        base_url=server.base_url("anthropic", "vertex"),
        access_token="t",
        project_id=VERTEX["project"],
        region=VERTEX["location"],
        max_retries=0,
    )
    answer = vertex.messages.create(
        model="claude-haiku-4-5@20251001",
        max_tokens=500,
        messages=[{"role": "user", "content": PROMPT}],
    )
    assert answer.model == "claude-haiku-4-5@20251001"
    assert answer.stop_reason == "end_turn"


@pytest.mark.parametrize("encoding", ["float", "base64", None])
def test_embeddings_answer_the_official_client_with_unit_vectors(
    server: RehearsalServer, encoding: Any
) -> None:
    with openai.OpenAI(base_url=server.base_url("openai"), api_key="k", max_retries=0) as vendor:
        more = {} if encoding is None else {"encoding_format": encoding}
        one = vendor.embeddings.create(
            model="text-embedding-3-small", input=["a b c", "d"], dimensions=8, **more
        )
        other = vendor.embeddings.create(model="text-embedding-3-small", input="a b c", dimensions=8)
    assert [entry.index for entry in one.data] == [0, 1]
    if encoding != "base64":  # the client leaves base64 that was asked for as it is
        vectors = np.array([entry.embedding for entry in one.data])
        assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
        assert np.allclose(vectors[0], other.data[0].embedding)
        assert abs(vectors[0] @ vectors[1]) < 0.99
    assert one.usage.prompt_tokens == one.usage.total_tokens == 3


def reply(path: str, content: Any, headers: dict[str, str] | None = None, **faults: float) -> Any:
    settings = Rehearsal(latency_ms=(0, 0), faults=Faults(**faults))
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()
    headers = {"x-goog-api-key": "k", "authorization": "Bearer k"} if headers is None else headers
    request = HttpRequest("POST", path, headers, raw)
    found = reply_to(request, settings, request_key(0, path, raw), 0)
    return found.status, json.loads(found.body)


def content(text: str = PROMPT, **config: Any) -> dict[str, Any]:
    return {"contents": [{"role": "user", "parts": [{"text": text}]}], "generationConfig": config}


@pytest.mark.parametrize(
    ("fault", "status", "word"),
    [
        ("rate_limited", 429, "RESOURCE_EXHAUSTED"),
        ("server_error", 500, "INTERNAL"),
        ("overloaded", 503, "UNAVAILABLE"),
    ],
)
def test_googles_faults_have_googles_shape(fault: str, status: int, word: str) -> None:
    found, body = reply(PATH, content(), **{fault: 1.0})
    assert (found, body["error"]["code"], body["error"]["status"]) == (status, status, word)
    errors.APIError(status, body)
    waits = [part["retryDelay"] for part in body["error"].get("details", [])]
    assert waits == (["1s"] if fault == "rate_limited" else [])


def test_refusals_come_as_a_blocked_prompt_or_as_a_filtered_answer() -> None:
    kinds = set()
    for number in range(30):
        _, body = reply(PATH, content(f"{PROMPT} {number}"), refusal=1.0)
        parsed = types.GenerateContentResponse.model_validate(body)
        assert parsed.text is None
        kinds.add("blocked" if body.get("promptFeedback") else body["candidates"][0]["finishReason"])
    assert kinds == {"blocked", "SAFETY"}


def test_an_answer_that_is_cut_off_says_so() -> None:
    _, body = reply(PATH, content(maxOutputTokens=2))
    assert body["candidates"][0]["finishReason"] == "MAX_TOKENS"
    assert body["usageMetadata"]["candidatesTokenCount"] == 2


@pytest.mark.parametrize(
    ("path", "body", "headers", "status", "said"),
    [
        (PATH, content(), {}, 403, "unregistered callers"),
        (VERTEX_PATH, content(), {}, 401, "credential"),
        (PATH, b"{", None, 400, "Invalid JSON"),
        (PATH, {}, None, 400, "contents"),
        (PATH, {"contents": [{"role": "system", "parts": [{"text": "x"}]}]}, None, 400, "valid role"),
        (PATH, {"contents": [{"parts": [{"inlineData": {}}]}]}, None, 400, "text only"),
        (PATH, {**content(), "surprise": 1}, None, 400, 'Unknown name "surprise"'),
        (PATH, content(surprise=1), None, 400, 'Unknown name "surprise"'),
        (PATH, content(maxOutputTokens=0), None, 400, "max_output_tokens"),
        (PATH, content(responseJsonSchema=SCHEMA), None, 400, "mime type"),
        (PATH, content(**NO_SCHEMA), None, 400, "json_schema"),
        ("/v1beta/models/x:unknownMethod", content(), None, 404, "Not found"),
    ],
)
def test_what_google_would_refuse_is_refused_in_its_words(
    path: str, body: Any, headers: dict[str, str] | None, status: int, said: str
) -> None:
    found, answer = reply(path, body, headers)
    assert found == status
    assert said in answer["error"]["message"]


RAW = "/v1/projects/p/locations/l/publishers/anthropic/models/claude-x:rawPredict"
MESSAGE = {
    "anthropic_version": "vertex-2023-10-16",
    "max_tokens": 9,
    "messages": [{"role": "user", "content": "x"}],
}


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (MESSAGE, {"authorization": "Bearer t"}, 200),
        (MESSAGE, {"x-api-key": "k"}, 401),
        ({**MESSAGE, "anthropic_version": "2023-06-01"}, {"authorization": "Bearer t"}, 400),
        ({**MESSAGE, "model": "claude-x"}, {"authorization": "Bearer t"}, 400),
        (b"{", {"authorization": "Bearer t"}, 400),
    ],
)
def test_raw_predict_wants_its_version_a_token_and_no_model(
    body: Any, headers: dict[str, str], status: int
) -> None:
    assert reply(RAW, body, headers)[0] == status


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"model": "m", "input": "x"}, 200),
        ({"model": "m", "input": []}, 400),
        ({"model": "m", "input": [""]}, 400),
        ({"model": "m", "input": [1, 2]}, 400),
        ({"model": "m"}, 400),
        ({"input": "x"}, 400),
        ({"model": "m", "input": "x", "dimensions": 0}, 400),
        ({"model": "m", "input": "x", "encoding_format": "hex"}, 400),
    ],
)
def test_embeddings_are_refused_as_openai_refuses_them(body: dict[str, Any], status: int) -> None:
    assert reply("/v1/embeddings", body)[0] == status


def test_geminis_embeddings_have_the_length_that_was_asked_for() -> None:
    path = "/v1beta/models/gemini-embedding-001:embedContent"
    body = {"content": {"parts": [{"text": "a b c d e"}]}}
    _, usual = reply(path, body)
    _, short = reply(path, {**body, "outputDimensionality": 8})
    assert (len(usual["embedding"]["values"]), len(short["embedding"]["values"])) == (3072, 8)
    assert short["usageMetadata"] == {"promptTokenCount": 3}
    types.ContentEmbedding.model_validate(short["embedding"])
    assert reply(path, {"content": {"parts": []}})[0] == 400
    assert reply(path, {**body, "outputDimensionality": "8"})[0] == 400
