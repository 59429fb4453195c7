from typing import Any

import pytest

from schemas.errors import Problem
from schemas.routes import Prompt
from tests.support.workloads import TOPIC_SCHEMA
from transforms.prompt import CompiledPrompt, PromptError, check_prompt, compile_prompt

ROW: dict[str, Any] = {
    "text": "Canary: {{ 7 * 7 }} {% for x in y %}",
    "kind": None,
    "size": 3,
    "tags": ["first-canary", "second-canary"],
    "deep": {"inner": "third-canary"},
}


def compiled(template: str, **more: Any) -> CompiledPrompt:
    return compile_prompt("topic", Prompt(template=template, **more))


def render(template: str, row: dict[str, Any] = ROW) -> str:
    return compiled(template).render(row)


def refusal(template: str) -> str:
    with pytest.raises(PromptError) as caught:
        render(template)
    return str(caught.value)


def check(template: str, **more: Any) -> list[Problem]:
    return check_prompt("topic", Prompt(template=template, **more), list(ROW))


# ---- rows are data


def test_a_document_with_template_syntax_is_not_rendered() -> None:
    assert render("About: {{ text }}") == "About: Canary: {{ 7 * 7 }} {% for x in y %}"


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{ size + 1 }}", "4"),
        ("kind: {{ kind }}!", "kind: !"),
        ("{{ tags | join(', ') }}", "first-canary, second-canary"),
        ("{% for t in tags %}[{{ t }}]{% endfor %}", "[first-canary][second-canary]"),
        ("{{ deep.inner | upper }}", "THIRD-CANARY"),
        ("{{ kind or 'none' }}", "none"),
        ("{{ text[:6] }}", "Canary"),
        ("{% set x = namespace(n=1) %}{{ x.n }}{{ range(3) | list }}", "1[0, 1, 2]"),
        ("a <b> & {{ '<c>' }}\n", "a <b> & <c>\n"),
    ],
)
def test_templates_see_the_rows_columns(template: str, text: str) -> None:
    assert render(template) == text
    assert check(template) == []


def test_one_rendering_leaves_nothing_for_the_next() -> None:
    prompt = compiled("{% set x = namespace(n=0) %}{% set x.n = x.n + size %}{{ x.n }}")
    assert [prompt.render(ROW), prompt.render(ROW)] == ["3", "3"]


# ---- the sandbox


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__ }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ text | attr('__class__') }}",
        "{{ tags.__init__.__globals__ }}",
        "{{ self.__init__ }}",
        "{{ '{0.__class__}'.format(text) }}",
        "{{ range.__class__ }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ tags.append('x') }}",
        "{{ deep.update({'a': 1}) }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}{{ os }}",
        "{{ open('/etc/passwd') }}",
        "{{ config }}",
    ],
)
def test_a_template_can_not_reach_out_of_its_row(template: str) -> None:
    assert refusal(template).startswith("the template of prompt 'topic' failed (")
    assert ROW["tags"] == ["first-canary", "second-canary"]
    assert ROW["deep"] == {"inner": "third-canary"}


@pytest.mark.parametrize(
    "template", ["{% for i in range(10 ** 9) %}x{% endfor %}", "{{ range(10 ** 6) | list }}"]
)
def test_a_huge_range_is_refused_at_once(template: str) -> None:
    assert "OverflowError" in refusal(template)


# ---- the same row is asked the same again


@pytest.mark.parametrize(
    "template",
    ["{{ text.upper }}", "{{ tags | map('upper') }}", "{{ range }}", "{% macro m() %}{% endmacro %}{{ m }}"],
)
def test_what_would_print_an_address_is_refused(template: str) -> None:
    assert "TemplateRuntimeError" in refusal(template)


@pytest.mark.parametrize("name", ["lipsum", "cycler", "joiner"])
def test_helpers_that_are_random_or_keep_state_are_unknown(name: str) -> None:
    (problem,) = check(f"{{{{ {name}() }}}}")
    assert problem.value == repr(name)


def test_the_random_filter_is_unknown() -> None:
    (problem,) = check("{{ tags | random }}")
    assert problem.allowed == "does not parse: No filter named 'random'"


# ---- what an error says


def test_an_error_names_the_prompt_and_the_unknown_column() -> None:
    assert (
        refusal("{{ titel }}")
        == "the template of prompt 'topic' failed (UndefinedError: 'titel' is undefined)"
    )


@pytest.mark.parametrize(
    "template",
    [
        "{{ deep[text] }}",
        "{{ deep[tags[0]] }}",
        "{{ deep[deep.inner].x }}",
        "{{ text | int / 0 }}",
        "{{ size[text] }}",
    ],
)
def test_an_error_carries_nothing_of_the_rows_text(template: str) -> None:
    assert "anary" not in refusal(template)


@pytest.mark.parametrize("template", ["{{ kind or '' }}", "  \n", "{% if false %}x{% endif %}"])
def test_a_prompt_without_text_is_an_error(template: str) -> None:
    assert refusal(template) == "the template of prompt 'topic' gave an empty text"


# ---- checking before anything is read


def test_an_unknown_column_is_named_with_those_that_are_read() -> None:
    assert check("{{ titel }} {{ text }} {{ autor }}") == [
        Problem(
            "prompts.topic.template",
            repr(name),
            "is no column that is read; known: text, kind, size, tags, deep",
            "add it to input.columns",
        )
        for name in ("autor", "titel")
    ]


def test_names_that_the_template_sets_itself_are_no_columns() -> None:
    assert check("{% set a = text %}{% for b in tags %}{{ a }}{{ b }}{{ loop.index }}{% endfor %}") == []


@pytest.mark.parametrize("template", ["{{ text", "{% for %}", "{{ text | none_such }}", "{% endfor %}"])
def test_a_template_that_does_not_parse_is_one_problem(template: str) -> None:
    (problem,) = check(template)
    assert problem.where == "prompts.topic.template"
    assert problem.allowed.startswith("does not parse: ")


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "objekt"}, "is no valid JSON Schema"),
        ({"type": "string"}, "must describe an object with `properties`"),
        ({"type": "object", "properties": {"a": {"$ref": "#/$defs/None"}}}, "points nowhere"),
    ],
)
def test_a_json_schema_that_can_not_become_columns_is_a_problem(schema: dict[str, Any], words: str) -> None:
    (problem,) = check("{{ text }}", json_schema=schema)
    assert problem.where == "prompts.topic.json_schema"
    assert words in problem.allowed


def test_a_sound_json_schema_is_none() -> None:
    assert check("{{ text }}", json_schema=TOPIC_SCHEMA) == []


# ---- the digest


@pytest.mark.parametrize("more", [{"system": "Be brief."}, {"json_schema": TOPIC_SCHEMA}])
def test_the_digest_covers_all_that_is_asked(more: dict[str, Any]) -> None:
    assert compiled("{{ text }}", **more).sha256 != compiled("{{ text }}").sha256
    assert compiled("{{ text }} ").sha256 != compiled("{{ text }}").sha256
    assert compiled("{{ text }}").sha256 == compile_prompt("other", Prompt(template="{{ text }}")).sha256


def test_whether_a_bad_answer_goes_back_is_no_part_of_what_is_asked_first() -> None:
    assert compiled("{{ text }}", repair=False).sha256 == compiled("{{ text }}").sha256


# ---- what all rows share


@pytest.mark.parametrize(
    ("template", "head"),
    [
        ("About: {{ size }}", "About: "),
        ("{{ size }} is it", ""),
        ("Rules.\n{% if size %}many{% endif %}", "Rules.\n"),
        ("{# a note #}Rules. {{ size }}", "Rules. "),
        ("{% if size %}many{% endif %}", ""),
        ("only words", "only words"),
        ("{% raw %}{{ no }}{% endraw %} {{ size }}", "{{ no }}"),
    ],
)
def test_the_head_of_a_template_is_what_every_text_begins_with(template: str, head: str) -> None:
    prompt = compiled(template)
    assert prompt.head == head
    for size in (0, 7):
        assert prompt.render({**ROW, "size": size} if size else ROW).startswith(head)
