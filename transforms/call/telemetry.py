"""Calls as OpenTelemetry traces and metrics, by the semantic conventions for generative AI clients.

Off unless an OTLP endpoint is set (`OTEL_EXPORTER_OTLP_ENDPOINT`, or that of one signal); everything else
is set through OpenTelemetry's own `OTEL_*` variables: headers, resource attributes, sampler, intervals.
No prompt, answer, document id or key is recorded, whatever is set.

A trace is one attempt at a batch: a span `switchgear.batch` over a client span for every call, named by
operation and model. With `TRACEPARENT` in the environment each of them is linked to that span. Metrics are
`gen_ai.client.token.usage` and `gen_ai.client.operation.duration`. Names and buckets are those of
https://opentelemetry.io/docs/specs/semconv/gen-ai/ (spans and metrics of clients).
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from schemas.errors import ConfigurationError
from schemas.run import CODE_VERSION, RunContext
from transforms.call.address import parse_base_url
from transforms.call.observe import SeenCall

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Link, Span

Attributes = dict[str, str | int | tuple[str, ...]]

TOKEN_BUCKETS = tuple(4.0**power for power in range(14))
SECOND_BUCKETS = tuple(0.01 * 2**power for power in range(14))
_ENDPOINTS = {
    "traces": ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"),
    "metrics": ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT"),
}
_FLUSH_S = 5.0
_NS = 1_000_000_000
_log = logging.getLogger(__name__)


def signals(environ: Mapping[str, str]) -> frozenset[str]:
    """Which of `traces` and `metrics` the environment asks for.

    Raises:
        ConfigurationError: an exporter or protocol that is not in this package.
    """
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return frozenset()
    return frozenset(name for name in _ENDPOINTS if _is_on(name, environ))


def _is_on(signal: str, environ: Mapping[str, str]) -> bool:
    if not any(environ.get(name, "").strip() for name in _ENDPOINTS[signal]):
        return False
    _require(environ, f"OTEL_{signal.upper()}_EXPORTER", ("otlp", "none"))
    _require(environ, f"OTEL_EXPORTER_OTLP_{signal.upper()}_PROTOCOL", ("http/protobuf",))
    _require(environ, "OTEL_EXPORTER_OTLP_PROTOCOL", ("http/protobuf",))
    return environ.get(f"OTEL_{signal.upper()}_EXPORTER", "").strip() != "none"


def _require(environ: Mapping[str, str], name: str, allowed: tuple[str, ...]) -> None:
    value = environ.get(name, "").strip()
    if value and value not in allowed:
        raise ConfigurationError(
            f"{name} = {value!r}: this package exports by {' or '.join(allowed)}. Set it so, or unset the "
            "OTLP endpoint"
        )


def open_telemetry(run: RunContext, environ: Mapping[str, str] = os.environ) -> Telemetry | None:
    """What watches a run's calls; None when nothing is asked for, and then nothing is imported.

    Raises:
        ConfigurationError: see `signals`.
    """
    asked = signals(environ)
    if not asked:
        return None
    resource = _resource(environ)
    tracers = _tracers(resource) if "traces" in asked else None
    meters = _meters(resource) if "metrics" in asked else None
    return Telemetry(run, tracers, meters, _links(environ))


class Telemetry:
    """A `CallObserver` that makes spans and measurements of what it is told.

    Providers of its own and not the process's: no other library's spans come with them.
    """

    def __init__(
        self,
        run: RunContext,
        tracers: TracerProvider | None,
        meters: MeterProvider | None,
        links: tuple[Link, ...] = (),
    ) -> None:
        self._run = run
        self._tracers = tracers
        self._meters = meters
        self._links = links
        self._batches: dict[tuple[str, int], Span] = {}
        self._fixed: dict[tuple[str, str], Attributes] = {}
        self._tracer = None if tracers is None else tracers.get_tracer("switchgear", CODE_VERSION)
        if meters is not None:
            meter = meters.get_meter("switchgear", CODE_VERSION)
            self._tokens = meter.create_histogram(
                "gen_ai.client.token.usage",
                unit="{token}",
                description="Number of input and output tokens used.",
                explicit_bucket_boundaries_advisory=TOKEN_BUCKETS,
            )
            self._seconds = meter.create_histogram(
                "gen_ai.client.operation.duration",
                unit="s",
                description="GenAI operation duration.",
                explicit_bucket_boundaries_advisory=SECOND_BUCKETS,
            )

    def called(self, call: SeenCall) -> None:
        """See `CallObserver`. An export that fails is a line in the log, never a run's failure."""
        fixed = self._fixed.get((call.backend, call.route)) or self._fix(call)
        self._trace(call, fixed)
        if self._meters is not None:
            self._measure(call, fixed)

    def batch_ended(self, batch_id: str, attempt: int) -> None:
        """See `CallObserver`."""
        span = self._batches.pop((batch_id, attempt), None)
        if span is not None:
            span.end()

    def close(self) -> None:
        """Send what is left; a collector that does not answer holds the worker up for seconds at most."""
        for key in list(self._batches):
            self.batch_ended(*key)
        for provider in (self._tracers, self._meters):
            if provider is not None:
                try:
                    provider.force_flush(int(_FLUSH_S * 1000))
                    provider.shutdown()
                except Exception as error:
                    _log.warning("telemetry was not sent: %s", type(error).__name__)

    def _fix(self, call: SeenCall) -> Attributes:
        """The attributes that all calls of a route to a backend have."""
        address = parse_base_url(call.backend, call.base_url)[1]
        made: Attributes = {
            "gen_ai.operation.name": call.operation,
            "gen_ai.provider.name": call.provider,
            "gen_ai.request.model": call.request_model,
            "server.address": address.host,
            "server.port": address.port,
            "switchgear.route": call.route,
            "switchgear.backend": call.backend,
        }
        if self._run.rehearsal:
            made["switchgear.rehearsal"] = "true"
        self._fixed[call.backend, call.route] = made
        return made

    def _trace(self, call: SeenCall, fixed: Attributes) -> None:
        if self._tracer is None:
            return
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context

        ended = time.time_ns()
        parent = set_span_in_context(self._batch(call, ended))
        span = self._tracer.start_span(
            f"{call.operation} {call.request_model}",
            context=parent,
            kind=SpanKind.CLIENT,
            attributes=fixed,
            start_time=ended - int(call.seconds * _NS),
        )
        if span.is_recording():
            span.set_attributes(_of_this_call(call))
            if call.error:
                span.set_status(Status(StatusCode.ERROR))
        span.end(ended)

    def _batch(self, call: SeenCall, now: int) -> Span:
        """The span of the attempt at a batch; begun with its first call, so that replays make none."""
        assert self._tracer is not None
        key = (call.batch_id, call.attempt)
        if key not in self._batches:
            from opentelemetry.context import Context

            self._batches[key] = self._tracer.start_span(
                "switchgear.batch",
                context=Context(),
                links=self._links,
                start_time=now - int(call.seconds * _NS),
                attributes={
                    "switchgear.run_id": self._run.run_id,
                    "switchgear.batch_id": call.batch_id,
                    "switchgear.attempt": call.attempt,
                },
            )
        return self._batches[key]

    def _measure(self, call: SeenCall, fixed: Attributes) -> None:
        attributes: dict[str, Any] = dict(fixed)
        if call.response_model:
            attributes["gen_ai.response.model"] = call.response_model
        if call.error:
            attributes["error.type"] = call.error
        self._seconds.record(call.seconds, attributes)
        for kind, count in (("input", call.usage.input_tokens), ("output", call.usage.output_tokens)):
            if count is not None:
                self._tokens.record(count, {**attributes, "gen_ai.token.type": kind})


def _of_this_call(call: SeenCall) -> Attributes:
    found: dict[str, str | int | tuple[str, ...] | None] = {
        "gen_ai.request.max_tokens": call.max_tokens,
        "gen_ai.response.model": call.response_model,
        "gen_ai.response.id": call.response_id,
        "gen_ai.response.finish_reasons": call.finish_reasons or None,
        "gen_ai.usage.input_tokens": call.usage.input_tokens,
        "gen_ai.usage.output_tokens": call.usage.output_tokens,
        "gen_ai.usage.cache_read.input_tokens": call.usage.cache_read_input_tokens,
        "gen_ai.usage.cache_creation.input_tokens": call.usage.cache_creation_input_tokens,
        "error.type": call.error or None,
    }
    return {name: value for name, value in found.items() if value is not None}


def _resource(environ: Mapping[str, str]) -> Resource:
    """What sends this; the environment's own names for it win."""
    from opentelemetry.sdk.resources import Resource

    own = {"service.version": CODE_VERSION}
    if not environ.get("OTEL_SERVICE_NAME") and "service.name=" not in environ.get(
        "OTEL_RESOURCE_ATTRIBUTES", ""
    ):
        own["service.name"] = "switchgear"
    return Resource.create(own)


def _tracers(resource: Resource) -> TracerProvider:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    made = TracerProvider(resource=resource, shutdown_on_exit=False)
    made.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return made


def _meters(resource: Resource) -> MeterProvider:
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

    reader = PeriodicExportingMetricReader(OTLPMetricExporter())
    return MeterProvider(metric_readers=[reader], resource=resource, shutdown_on_exit=False)


def _links(environ: Mapping[str, str]) -> tuple[Link, ...]:
    """A link to the span that started this process, if it says so (W3C Trace Context)."""
    from opentelemetry import trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier = {name.lower(): environ[name] for name in ("TRACEPARENT", "TRACESTATE") if name in environ}
    context = trace.get_current_span(TraceContextTextMapPropagator().extract(carrier)).get_span_context()
    return (trace.Link(context),) if context.is_valid else ()
