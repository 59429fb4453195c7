import tomllib
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import jinja2.sandbox
import jsonschema
import polars as pl
import pytest
from genai_prices import Usage, calc_price

from flows.corpus import CORPUS_SCHEMA, write_corpus
from schemas.arrow import RESERVED_COLUMNS
from schemas.workload import Workload
from transforms.rehearsal.schema_rules import open_object, optional_property

FILE = Path(__file__).parents[2] / "infra/examples/package-docs.toml"
COPYLEFT = {"MPL-2.0", "MPL-2.0 AND MIT", "GPL-3.0-only", "LGPL-2.1-or-later", "AGPL-3.0"}
COPYLEFT |= {
    "Mozilla Public License 2.0 (MPL 2.0)",
    "Artistic License",
    "GNU General Public License v3 (GPLv3)",
}
PERMISSIVE = {"MIT", "Apache-2.0", "BSD-3-Clause", "ISC", "PSF-2.0", "MIT-CMU", "Apache Software License"}


@pytest.fixture(scope="module")
def workload():
    return Workload.model_validate(tomllib.loads(FILE.read_text()))


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    """The corpus of the environment that runs the tests."""
    folder = tmp_path_factory.mktemp("example") / "input"
    write_corpus(folder)
    return pl.read_parquet(folder / "*.parquet")


def mask(frame: pl.DataFrame, expression: str) -> pl.Series:
    return frame.with_columns(pl.sql_expr(expression).alias("mask"))["mask"]


def test_its_columns_are_those_of_the_corpus(workload):
    assert set(workload.input.needed_columns) <= set(CORPUS_SCHEMA.names)
    assert set(workload.output.columns) <= set(workload.input.needed_columns)
    assert not RESERVED_COLUMNS.intersection(workload.output.columns)


def test_paths_are_beside_the_file(workload):
    assert (workload.input.uri, workload.output.uri) == ("input/*.parquet", "output")


def test_every_document_is_embedded_and_some_hundreds_go_to_each_hosted_route(workload, documents):
    shares = {route.name: mask(documents, route.when).sum() for route in workload.routes}
    assert shares["embed"] == documents.height > 5000
    assert 100 < shares["classify"] < 600
    assert 100 < shares["explain"] < 600


def test_expressions_are_true_or_false_or_null_for_every_document(workload, documents):
    expressions = [route.when for route in workload.routes] + [rule.when for rule in workload.policy.reject]
    assert all(mask(documents, expression).dtype == pl.Boolean for expression in expressions)


def test_every_policy_rule_rejects_some_documents_of_hosted_routes_but_few(workload, documents):
    for rule in workload.policy.reject:
        of_routes = [documents.filter(mask(documents, workload.route(name).when)) for name in rule.routes]
        hosted = pl.concat(of_routes)
        rejected = mask(hosted, rule.when).sum()
        assert 0 < rejected < hosted.height / 4, rule.name


@pytest.mark.parametrize(("licences", "rejected"), [(COPYLEFT, True), (PERMISSIVE, False)])
def test_the_licence_rule_knows_copyleft_from_permissive(workload, licences, rejected):
    frame = pl.DataFrame({"licence": sorted(licences)})
    assert set(mask(frame, workload.policy.reject[0].when)) == {rejected}


def test_a_document_without_a_licence_is_not_rejected_for_it(workload):
    frame = pl.DataFrame({"licence": [None]}, schema={"licence": pl.String})
    assert mask(frame, workload.policy.reject[0].when).sum() == 0


def test_names_that_are_used_are_defined(workload):
    for route in workload.routes:
        assert all(name in workload.backends for chain in route.chains for name in chain.backends)
        assert route.prompt is None or route.prompt in workload.prompts
    assert set(workload.policy.allowed_providers) == {route.name for route in workload.routes}


def test_two_providers_and_an_embedder_take_part_and_both_hosted_routes_have_a_fallback(workload):
    providers = {backend.provider for backend in workload.backends.values()}
    assert providers == {"anthropic", "openai", "jax"}
    for name in ("classify", "explain"):
        assert len(workload.route(name).backends) == 2


def list_price(backend, input_tokens: int, output_tokens: int) -> Decimal:
    usage = Usage(input_tokens=input_tokens, output_tokens=output_tokens)
    when = datetime(2026, 11, 22, tzinfo=UTC)
    price = calc_price(
        usage, model_ref=backend.model, provider_id=backend.provider, genai_request_timestamp=when
    )
    assert price.model.id == backend.model
    return price.total_price


def test_every_hosted_model_has_a_price(workload):
    for backend in workload.hosted_backends().values():
        assert Decimal(0) < list_price(backend, 100_000, 100_000) < Decimal(2)


def test_the_budget_covers_every_document_at_its_worst(workload, documents):
    worst = Decimal(0)
    for route in workload.routes:
        if workload.is_embed_route(route):
            continue
        texts = documents.filter(mask(documents, route.when))["text"].str.slice(0, 6000)
        for name in route.backends:
            backend = workload.backends[name]
            bytes_sent = int(texts.str.len_bytes().sum()) + 2000 * texts.len()
            worst += list_price(backend, 1000, 0) * bytes_sent / 1000
            worst += list_price(backend, 0, backend.max_output_tokens) * texts.len()
    assert worst < workload.budget.amount < 3 * worst


def test_the_embedder_states_its_price_and_its_power(workload):
    backend = workload.embedder_backends()["minilm"]
    assert backend.price_per_device_hour == Decimal("0.18")
    assert backend.device_watts[0] < backend.device_watts[1]


def test_templates_name_input_columns_only_and_carry_the_document(workload, documents):
    row = documents.row(0, named=True)
    columns = {name: row[name] for name in workload.input.needed_columns}
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined)
    for prompt in workload.prompts.values():
        text = environment.from_string(prompt.template).render(columns)
        assert f"<document>\n{row['text'][:6000]}\n</document>" in text


def test_the_schema_is_one_that_both_providers_take(workload):
    schema = workload.prompts["classify"].json_schema
    jsonschema.Draft202012Validator.check_schema(schema)
    assert open_object(schema) is None
    assert optional_property(schema) is None
