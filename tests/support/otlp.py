"""A receiver of OpenTelemetry's OTLP over HTTP, on loopback: what arrives, as plain values."""

from __future__ import annotations

import gzip
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue


@dataclass
class Receiver:
    """Start with `Receiver.start()`, end with `stop()`. `status` is what it answers with."""

    status: int = 200
    bodies: list[bytes] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    traces: list[ExportTraceServiceRequest] = field(default_factory=list)
    measurements: list[ExportMetricsServiceRequest] = field(default_factory=list)
    _server: Any = None

    @classmethod
    def start(cls, **settings: Any) -> Receiver:
        receiver = cls(**settings)

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                receiver.take(self.path, body, {name.lower(): v for name, v in self.headers.items()})
                self.send_response(receiver.status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        receiver._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=receiver._server.serve_forever, args=(0.01,), daemon=True).start()
        return receiver

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def take(self, path: str, body: bytes, headers: dict[str, str]) -> None:
        self.bodies.append(body)
        self.headers.append(headers)
        if self.status == 200 and path == "/v1/traces":
            self.traces.append(ExportTraceServiceRequest.FromString(body))
        if self.status == 200 and path == "/v1/metrics":
            self.measurements.append(ExportMetricsServiceRequest.FromString(body))

    def resource(self) -> dict[str, Any]:
        """What the spans say of who sent them."""
        return _plain(self.traces[0].resource_spans[0].resource.attributes)

    def spans(self) -> list[dict[str, Any]]:
        """Name, ids, kind, status, times, links and attributes of every span, in the order they came."""
        return [
            {
                "name": span.name,
                "id": span.span_id,
                "parent": span.parent_span_id,
                "trace": span.trace_id,
                "kind": span.kind,
                "error": span.status.code == 2,
                "seconds": (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9,
                "links": [link.trace_id.hex() for link in span.links],
                "attributes": _plain(span.attributes),
            }
            for request in self.traces
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def points(self, name: str) -> list[dict[str, Any]]:
        """The histogram points of a metric as last sent: unit, count, sum, bounds and attributes."""
        return [
            {
                "unit": metric.unit,
                "count": point.count,
                "sum": point.sum,
                "bounds": list(point.explicit_bounds),
                "attributes": _plain(point.attributes),
            }
            for resource in self.measurements[-1].resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.histogram.data_points
        ]


def _plain(attributes: Any) -> dict[str, Any]:
    return {item.key: _value(item.value) for item in attributes}


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(item) for item in value.array_value.values]
    return getattr(value, kind)
