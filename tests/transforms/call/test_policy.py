"""What a workload's policy says of providers, held where calls are made, whatever else goes wrong."""

from __future__ import annotations

import random

import pytest

from schemas.failures import FailureClass
from schemas.routes import Policy
from tests.transforms.call.fakes import (
    FLASH,
    HAIKU,
    MINI,
    Reply,
    Sent,
    answer_for,
    error,
    gemini_answer,
    make_batch,
    make_workload,
    run_batch,
)
from transforms.call.ports import LostError, NotSentError

BACKENDS = {"flash": FLASH, "haiku": HAIKU, "mini": MINI}
PROVIDER_OF = {backend.model: backend.provider for backend in BACKENDS.values()}
TROUBLES = (
    error(429, "rate_limit_error"),
    error(401, "authentication_error"),
    error(404, "not_found_error"),
    error(500, "api_error"),
    error(529, "overloaded_error"),
    LostError("timeout", "no answer"),
    NotSentError("refused"),
)


@pytest.mark.parametrize("seed", range(40))
def test_no_document_reaches_a_provider_that_its_route_does_not_allow(seed: int) -> None:
    """Also where a chain names one that the loader would have refused, and all that are allowed are down."""
    source = random.Random(seed)
    allowed = tuple(source.sample(sorted(set(PROVIDER_OF.values())), source.randrange(4)))
    chain = tuple(source.sample(sorted(BACKENDS), source.randint(1, 3)))
    down = {model: source.choice((None, *TROUBLES)) for model in PROVIDER_OF}

    def answer(sent: Sent, seen: int) -> Reply:
        trouble = down[sent.model]
        good = gemini_answer("fine") if sent.model == FLASH.model else answer_for(sent)
        return good if trouble is None or source.random() < 0.3 else trouble

    workload = make_workload(BACKENDS, policy=Policy(allowed_providers={"r": allowed}))
    result, transport = run_batch(answer, make_batch(5, chain), workload=workload)

    assert {PROVIDER_OF[sent.model] for sent in transport.sent} <= set(allowed)
    for outcome in result.outcomes:
        assert {BACKENDS[name].provider for name in outcome.chain_tried} <= set(allowed)
        if BACKENDS[chain[0]].provider not in allowed:
            assert outcome.failure is FailureClass.POLICY_REJECTED
            assert outcome.calls == 0


def test_a_route_that_the_policy_does_not_name_may_use_all() -> None:
    workload = make_workload(policy=Policy(allowed_providers={"another": ("openai",)}))
    result, _ = run_batch(lambda sent, seen: answer_for(sent), workload=workload)
    assert result.outcomes[0].is_result
