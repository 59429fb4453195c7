"""Rendering prompts: a sandboxed template over the row's columns. Rows are data, never templates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from jinja2 import (
    StrictUndefined,
    Template,
    TemplateError,
    TemplateRuntimeError,
    Undefined,
    meta,
    nodes,
)
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jsonschema.exceptions import SchemaError
from jsonschema.validators import validator_for

from schemas.errors import ConfigurationError, Problem
from schemas.ids import canonical_json, sha256_hex
from schemas.output_types import arrow_type
from schemas.routes import Prompt
from transforms.row_texts import repeats


def _data_only(value: Any) -> Any:
    """What a template puts into the text: nothing for a null, as one expects of an empty cell.

    `{{ title.upper }}` is refused: it would send the address of a function with every document.
    """
    if isinstance(value, Iterator) or (callable(value) and not isinstance(value, Undefined)):
        kind = type(value).__name__
        raise TemplateRuntimeError(f"a {kind} is no text: add `()` to call it, or `|list` or `|join`")
    return "" if value is None else value


def _environment() -> ImmutableSandboxedEnvironment:
    """Templates whose text depends on the row alone: a retried document must be asked the same again."""
    environment = ImmutableSandboxedEnvironment(
        undefined=StrictUndefined,
        autoescape=False,
        keep_trailing_newline=True,
        auto_reload=False,
        finalize=_data_only,
    )
    for name in ("lipsum", "cycler", "joiner"):
        del environment.globals[name]
    del environment.filters["random"]
    return environment


_ENVIRONMENT = _environment()


class PromptError(ValueError):
    """A template that fails on a row; the message says how and carries none of the row's text."""


@dataclass(frozen=True, slots=True)
class CompiledPrompt:
    """A prompt that is ready to be rendered for rows; `variables` are the names that it asks for.

    `head` is what every rendered text begins with: the template up to its first variable or tag.
    """

    name: str
    prompt: Prompt
    template: Template
    variables: frozenset[str]
    sha256: str
    head: str = ""

    def render(self, row: Mapping[str, Any]) -> str:
        """The prompt for one row.

        Raises:
            PromptError: the template fails on this row, or gives nothing.
        """
        try:
            text = self.template.render(row)
        except Exception as error:  # a template can raise whatever its filters do
            reason = f"{type(error).__name__}{_detail(error, row)}"
            raise PromptError(f"the template of prompt {self.name!r} failed ({reason})") from None
        if not text.strip():
            raise PromptError(f"the template of prompt {self.name!r} gave an empty text")
        return text


def _detail(error: Exception, row: Mapping[str, Any]) -> str:
    """What a template's error says, unless it repeats something of the row."""
    if not isinstance(error, TemplateError) or repeats(str(error), row):
        return ""
    return f": {error}"


def compile_prompt(name: str, prompt: Prompt) -> CompiledPrompt:
    """Parse a prompt's template.

    Raises:
        TemplateError: it does not parse.
    """
    digest = sha256_hex(canonical_json(prompt.model_dump(mode="json", exclude={"repair"})))
    template = _ENVIRONMENT.from_string(prompt.template)
    # As they come they are a chain of maps, and copying that for each row takes most of rendering it.
    template.globals = dict(template.globals)
    tree = _ENVIRONMENT.parse(prompt.template)
    variables = frozenset(meta.find_undeclared_variables(tree))
    return CompiledPrompt(name, prompt, template, variables, digest, _head(tree))


def _head(tree: nodes.Template) -> str:
    first = tree.body[0] if tree.body else None
    parts = first.nodes if isinstance(first, nodes.Output) else []
    return parts[0].data if parts and isinstance(parts[0], nodes.TemplateData) else ""


def check_prompt(name: str, prompt: Prompt, columns: list[str]) -> list[Problem]:
    """What is wrong with a prompt for rows of these columns: syntax, unknown columns, JSON Schema."""
    where = f"prompts.{name}"
    try:
        asked_for = compile_prompt(name, prompt).variables
    except TemplateError as error:
        reason = f"does not parse: {(error.message or str(error)).rstrip('.')}"
        return [Problem(f"{where}.template", "(template)", reason, "see Jinja's syntax")]
    problems = [
        Problem(
            f"{where}.template",
            repr(unknown),
            f"is no column that is read; known: {', '.join(columns)}",
            "add it to input.columns",
        )
        for unknown in sorted(asked_for - set(columns) - set(_ENVIRONMENT.globals))
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
