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
            return _no_result(answer, FailureClass.INVALID_JSON, f"the answer is not JSON: {error}")
        if not isinstance(value, dict):
            kind = type(value).__name__
            return _no_result(answer, FailureClass.SCHEMA_MISMATCH, f"the answer is a JSON {kind}, no object")
        try:
            problem = next(self.validator(schema).iter_errors(value), None)
        except referencing.exceptions.Unresolvable as error:
            return _no_result(answer, FailureClass.SCHEMA_MISMATCH, f"the JSON Schema refers to {error}")
        except RecursionError:
            return _no_result(answer, FailureClass.SCHEMA_MISMATCH, "the answer is nested too deeply")
        if problem is not None:
            where = "".join(f"[{part!r}]" for part in problem.absolute_path) or "the answer"
            reason = f"{where} does not fit the JSON Schema: {problem.message[:_LONGEST_REASON]}"
            return _no_result(answer, FailureClass.SCHEMA_MISMATCH, reason)
        return replace(answer, output=value)


def _no_result(answer: Answer, failure: FailureClass, message: str) -> Answer:
    return replace(answer, failure=failure, message=message)


def _compile(schema: dict[str, Any]) -> Any:
    kind = jsonschema.validators.validator_for(schema, default=jsonschema.validators.Draft202012Validator)
    try:
        kind.check_schema(schema)
    except jsonschema.exceptions.SchemaError as error:
        raise ConfigurationError(
            f"a prompt's json_schema is not a valid JSON Schema: {error.message}"
        ) from None
    return kind(schema, registry=EMPTY_REGISTRY)
