"""Rendering prompts: a sandboxed template over the row's columns. Rows are data, never templates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jinja2 import StrictUndefined, Template, TemplateError, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jsonschema.exceptions import SchemaError
from jsonschema.validators import validator_for

from schemas.errors import ConfigurationError, Problem
from schemas.ids import canonical_json, sha256_hex
from schemas.output_types import arrow_type
from schemas.workload import Prompt

_ENVIRONMENT = ImmutableSandboxedEnvironment(
    undefined=StrictUndefined, autoescape=False, keep_trailing_newline=True, auto_reload=False
)


class PromptError(ValueError):
    """A template that fails on a row; the message says how and carries none of the row's text."""


@dataclass(frozen=True, slots=True)
class CompiledPrompt:
    """A prompt that is ready to be rendered for rows."""

    name: str
    prompt: Prompt
    template: Template
    sha256: str

    def render(self, row: Mapping[str, Any]) -> str:
        """The prompt for one row.

        Raises:
            PromptError: the template fails on this row, or gives nothing.
        """
        try:
            text = self.template.render(row)
        except Exception as error:  # a template can raise whatever its filters do
            kind = type(error).__name__
            detail = f": {error}" if isinstance(error, TemplateError) else ""
            raise PromptError(f"the template of prompt {self.name!r} failed ({kind}{detail})") from None
        if not text.strip():
            raise PromptError(f"the template of prompt {self.name!r} gave an empty text")
        return text


def compile_prompt(name: str, prompt: Prompt) -> CompiledPrompt:
    """Parse a prompt's template.

    Raises:
        TemplateError: it does not parse.
    """
    digest = sha256_hex(canonical_json(prompt.model_dump(mode="json")))
    return CompiledPrompt(name, prompt, _ENVIRONMENT.from_string(prompt.template), digest)


def check_prompt(name: str, prompt: Prompt, columns: list[str]) -> list[Problem]:
    """What is wrong with a prompt for rows of these columns: syntax, unknown columns, JSON Schema."""
    where = f"prompts.{name}"
    try:
        tree = _ENVIRONMENT.parse(prompt.template)
        compile_prompt(name, prompt)
    except TemplateError as error:
        return [Problem(f"{where}.template", "(template)", f"does not parse: {error}", "see Jinja's syntax")]
    problems = [
        Problem(
            f"{where}.template",
            repr(unknown),
            f"is no column that is read; known: {', '.join(columns)}",
            "add it to input.columns",
        )
        for unknown in sorted(meta.find_undeclared_variables(tree) - set(columns))
    ]
    return problems + _check_json_schema(f"{where}.json_schema", prompt.json_schema)


def _check_json_schema(where: str, schema: dict[str, Any] | None) -> list[Problem]:
    if schema is None:
        return []
    try:
        validator_for(schema).check_schema(schema)
        arrow_type(schema)
    except SchemaError as error:
        return [Problem(where, "(schema)", f"is no valid JSON Schema: {error.message}")]
    except ConfigurationError as error:
        return [Problem(where, "(schema)", str(error))]
    return []
