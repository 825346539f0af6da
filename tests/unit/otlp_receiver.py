# SPDX-License-Identifier: Apache-2.0
"""A receiver of OTLP over HTTP that reads what comes with OpenTelemetry's own classes."""

from __future__ import annotations

import contextlib
import gzip
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Self

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

if TYPE_CHECKING:
    from opentelemetry.proto.common.v1.common_pb2 import KeyValue
    from opentelemetry.proto.trace.v1.trace_pb2 import Span


def attributes(pairs: list[KeyValue]) -> dict[str, object]:
    """Attributes as Python has them."""
    found = {}
    for pair in pairs:
        kind = pair.value.WhichOneof("value")
        value = getattr(pair.value, kind)
        if kind == "array_value":
            value = [one.string_value for one in value.values]
        found[pair.key] = value
    assert len(found) == len(pairs)
    return found


def nesting(spans: list[Span]) -> list[str]:
    """Every span as PARENT/NAME, in order."""
    by_id = {span.span_id: span for span in spans}
    assert len(by_id) == len(spans)
    found = []
    for span in spans:
        parent = by_id.get(span.parent_span_id)
        assert bool(parent) == bool(span.parent_span_id)
        if parent:
            assert parent.trace_id == span.trace_id
            assert parent.start_time_unix_nano <= span.start_time_unix_nano
            assert parent.end_time_unix_nano >= span.end_time_unix_nano
        found.append(f"{parent.name if parent else ''}/{span.name}")
    return found


class Receiver:
    """Listens on loopback as long as the `with` block lasts.

    Args:
        statuses: What to answer, request by request; 200 when there is no more of them.
        rejected: How many spans of every request it says it does not take.

    Attributes:
        requests: Those that were answered with 200.
        paths: Of all requests.
    """

    def __init__(self, statuses: list[int] | None = None, rejected: int = 0) -> None:
        self.statuses = list(statuses or [])
        self.rejected = rejected
        self.requests: list[ExportTraceServiceRequest] = []
        self.paths: list[str] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                receiver._take(self)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _take(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers["Content-Length"]))
        if handler.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        self.paths.append(handler.path)
        status = self.statuses.pop(0) if self.statuses else 200
        answer = ExportTraceServiceResponse()
        if status == 200:
            assert handler.headers["Content-Type"] == "application/x-protobuf"
            self.requests.append(ExportTraceServiceRequest.FromString(body))
            if self.rejected:
                answer.partial_success.rejected_spans = self.rejected
                answer.partial_success.error_message = "too old"
        content = answer.SerializeToString()
        handler.send_response(status)
        handler.send_header("Content-Type", "application/x-protobuf")
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        with contextlib.suppress(BrokenPipeError):
            handler.wfile.write(content)

    def spans(self) -> list[Span]:
        """All spans in the order in which they came."""
        return [
            span
            for request in self.requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def resource(self) -> dict[str, object]:
        """Attributes of the one resource of all spans."""
        found = [attributes(r.resource.attributes) for q in self.requests for r in q.resource_spans]
        assert all(one == found[0] for one in found)
        return found[0]
