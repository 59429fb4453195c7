"""Structured answers: parsed strictly, and checked against the prompt's JSON Schema."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jsonschema.exceptions
import jsonschema.validators
import orjson
import referencing.exceptions
from referencing.jsonschema import EMPTY_REGISTRY

from schemas.errors import ConfigurationError
from schemas.failures import FailureClass
from transforms.call.wire import Answer

_LONGEST_REASON = 300


class SchemaBook:
    """Validators of the JSON Schemas in use, each compiled once.

    References are resolved inside the schema only: validating an answer never opens a connection.
    """

    def __init__(self) -> None:
        self._known: dict[int, tuple[dict[str, Any], Any]] = {}  # by identity; the schema is kept alive

    def validator(self, schema: dict[str, Any]) -> Any:
        """The validator of `schema`.

        Raises:
            ConfigurationError: it is not a valid JSON Schema.
        """
        known = self._known.get(id(schema))
        if known is None:
            known = self._known[id(schema)] = (schema, _compile(schema))
        return known[1]

    def check(self, answer: Answer, schema: dict[str, Any] | None) -> Answer:
        """`answer` with its typed `output`, or with the reason why it has none. Paid either way."""
        if schema is None or answer.failure is not None or answer.text is None:
            return answer
        try:
            value = orjson.loads(answer.text)
        except orjson.JSONDecodeError as error:
            message = f"the answer is not JSON: {error}"
            return replace(answer, failure=FailureClass.INVALID_JSON, message=message)
        problem = self._problem(value, schema)
        if problem is not None:
            return replace(answer, failure=FailureClass.SCHEMA_MISMATCH, message=problem)
        return replace(answer, output=value)

    def _problem(self, value: Any, schema: dict[str, Any]) -> str | None:
        if not isinstance(value, dict):
            return f"the answer is a JSON {type(value).__name__}, no object"
        try:
            error = next(self.validator(schema).iter_errors(value), None)
        except referencing.exceptions.Unresolvable as unresolvable:
            return f"the JSON Schema refers to what it does not hold: {unresolvable}"
        except RecursionError:
            return "the answer, or the JSON Schema, is nested too deeply"
        if error is None:
            return None
        where = "".join(f"[{part!r}]" for part in error.absolute_path) or "the answer"
        return f"{where} does not fit the JSON Schema: {_asked_for(error)[:_LONGEST_REASON]}"


def _asked_for(error: jsonschema.exceptions.ValidationError) -> str:
    """What the schema asks for. Not what the answer has instead, which may repeat the document."""
    if error.validator == "required":
        return error.message
    return f"`{error.validator}` must be {error.validator_value!r}"


def _compile(schema: dict[str, Any]) -> Any:
    kind = jsonschema.validators.validator_for(schema, default=jsonschema.validators.Draft202012Validator)
    try:
        kind.check_schema(schema)
    except jsonschema.exceptions.SchemaError as error:
        raise ConfigurationError(
            f"a prompt's json_schema is not a valid JSON Schema: {error.message}"
        ) from None
    return kind(schema, registry=EMPTY_REGISTRY)
