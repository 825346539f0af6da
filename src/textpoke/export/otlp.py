# SPDX-License-Identifier: Apache-2.0
"""OpenTelemetry: the calls that took long, as spans, sent to a collector by OTLP over HTTP.

Everything that the SDK reads from the environment (OTEL_EXPORTER_OTLP_HEADERS, certificates,
compression, OTEL_RESOURCE_ATTRIBUTES) holds here too. docs/formats.md has the attributes.
"""

from __future__ import annotations

import logging
import os
import socket
import urllib.request
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit
from uuid import UUID

import numpy as np

from textpoke._errors import SpansNotSent
from textpoke._version import __version__
from textpoke.callers import Callers
from textpoke.calls import layouts_by_site
from textpoke.export.timeline import timelines
from textpoke.optional import needed
from textpoke.payload import CALLER, DURATION, FAULT, Formatter, Layout, split
from textpoke.report.names import encodable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from textpoke.calls import Calls
    from textpoke.export.source import Source
    from textpoke.export.timeline import Timeline
    from textpoke.payload import Field, Value

EXTRA = "otlp"
BATCH = 512
"""Spans of a request: some 250 KB, where collectors take 20 MB at most."""
_PATH = "/v1/traces"
_PORTS = {"http": 80, "https": 443}
_CONNECT_S = 5.0
_LOGGER = "opentelemetry.exporter.otlp"
_MOST_INT = (1 << 63) - 1
_MOST_TIME = (1 << 64) - 1
_MOST_REASON = 200


@dataclass(slots=True)
class Sent:
    """What became of the calls.

    Attributes:
        endpoint: Where the spans went.
        spans: Calls that took at least the threshold, sent and accepted.
        below: Calls that did not.
        rejected: Spans that the receiver has said it did not take.
        why: What it said of them.
    """

    endpoint: str
    spans: int = 0
    below: int = 0
    rejected: int = 0
    why: str = ""


def send(source: Source, threshold_ns: int, endpoint: str | None = None) -> Sent:
    """Send a span for every call that took at least the threshold.

    Args:
        source: With exits.
        threshold_ns: The shortest call that is sent.
        endpoint: URL, with or without a path; None for what the environment says, else the
            collector of this machine.

    Raises:
        CaptureFormat: the capture changed while it was read.
        MissingLibrary: the SDK is not installed.
        SpansNotSent: nobody takes the spans there.
    """
    sender = _Sender(endpoint)
    with Callers(source.capture) as callers:
        spans = _Spans(source, callers)
        for tid in source.tids():
            before = 0
            for calls, line in timelines(source, tid):
                for part in source.parts(len(calls)):
                    rows = part.start + np.flatnonzero(
                        line.end_ns[part] - line.begin_ns[part] >= threshold_ns
                    )
                    sender.sent.below += part.stop - part.start - len(rows)
                    for span in spans.of(calls, line, rows.tolist(), before):
                        sender.add(span)
                before += len(calls)
    sender.close()
    return sender.sent


class _Spans:
    # Makes the spans of one capture.

    def __init__(self, source: Source, callers: Callers) -> None:
        self._sdk = needed("opentelemetry.sdk.trace", EXTRA)
        self._api = needed("opentelemetry.trace", EXTRA)
        self._source = source
        capture = source.capture
        meta = capture.meta
        clock = source.decoder.clock
        self._start_ns = meta.clock.realtime_ns
        self._layouts = layouts_by_site(capture)
        rate = clock.ns_per_tick if clock.known else None
        self._formatter = Formatter(meta.enums, callers.name, rate)
        self._names = [(encodable(s.function), encodable(s.module)) for s in meta.sites]
        # The same capture has the same ids when it is sent again.
        self._seed = f"{meta.pid} {meta.clock.tsc} {meta.clock.realtime_ns}".encode()
        resources = needed("opentelemetry.sdk.resources", EXTRA)
        instance = str(UUID(bytes=blake2b(self._seed, digest_size=16).digest()))
        self._resource = resources.Resource.create(
            {"service.instance.id": instance, **_about(source)}
        )
        scope = needed("opentelemetry.sdk.util.instrumentation", EXTRA).InstrumentationScope
        self._scope = scope("textpoke", __version__)
        self._sampled = self._api.TraceFlags(self._api.TraceFlags.SAMPLED)

    def of(self, calls: Calls, line: Timeline, rows: Sequence[int], before: int) -> Iterator[Any]:
        # Spans of these rows, in order of their start; `before` calls of the thread came before.
        # A caller took at least as long as what it called: it is a span too.
        if not rows:
            return
        tid = int(calls.tid[0])
        tops = np.flatnonzero(calls.depth == 0)
        of_top = tops[np.searchsorted(tops, rows, side="right") - 1].tolist()
        thread = {"thread.id": tid, "thread.name": self._source.thread_name(tid)}
        for row, top in zip(rows, of_top, strict=True):
            trace_id = self._id(16, tid, before + top)
            parent = int(calls.parent[row])
            yield self._sdk.ReadableSpan(
                self._source.labels[calls.site[row]],
                self._context(trace_id, tid, before + row),
                self._context(trace_id, tid, before + parent) if parent >= 0 else None,
                self._resource,
                {**thread, **self._attributes(calls, row, is_open=bool(line.is_open[row]))},
                start_time=self._wall_ns(line.begin_ns[row]),
                end_time=self._wall_ns(line.end_ns[row]),
                instrumentation_scope=self._scope,
            )

    def _id(self, size: int, tid: int, number: int) -> int:
        text = b"%s %d %d" % (self._seed, tid, number)
        return int.from_bytes(blake2b(text, digest_size=size).digest()) or 1  # 0 is no id

    def _context(self, trace_id: int, tid: int, number: int) -> Any:  # noqa: ANN401 - the SDK's
        span_id = self._id(8, tid, number)
        return self._api.SpanContext(trace_id, span_id, is_remote=False, trace_flags=self._sampled)

    def _wall_ns(self, ns: np.int64) -> int:
        return min(max(self._start_ns + int(ns), 0), _MOST_TIME)  # damaged captures have others

    def _attributes(self, calls: Calls, row: int, *, is_open: bool) -> dict[str, Any]:
        site = int(calls.site[row])
        found: dict[str, Any] = {}
        if site >= 0:
            found["code.function.name"], found["textpoke.module"] = self._names[site]
        if is_open:
            found["textpoke.unfinished"] = True
        layout = self._layouts.get(site)
        if layout:
            found.update(self._payload(calls, row, layout))
        return found

    def _payload(self, calls: Calls, row: int, layout: Layout) -> dict[str, Any]:
        parts = (
            ("argument", layout.entry, calls.entry_words(row)),
            ("result", layout.exit, calls.exit_words(row)),
        )
        return {
            _key(group, field): _value(self._formatter.value(field.kind, part))
            for group, fields, words in parts
            for field, part in split(fields, words)
            if field.kind != DURATION
        }


def _key(group: str, field: Field) -> str:
    if field.kind == CALLER:
        return "textpoke.caller"
    return f"textpoke.{group}.{encodable(field.name)}"


def _value(value: Value) -> int | float | bool | str:
    if value is None:
        return FAULT
    if isinstance(value, str):
        return encodable(value)
    # OTLP's numbers have a sign.
    return str(value) if isinstance(value, int) and value > _MOST_INT else value


def _about(source: Source) -> dict[str, Any]:
    capture = source.capture
    meta = capture.meta
    found = {
        "service.name": source.program,
        "process.pid": source.pid,
        "process.executable.name": source.program,
        "process.executable.path": encodable(meta.exe),
        "process.command_args": _words(meta.command),
        "textpoke.tracer": meta.tracer,
        "textpoke.capture": encodable(os.path.basename(capture.path)),
        "textpoke.events_lost": source.lost,
        "textpoke.time_known": source.decoder.clock.known,
    }
    return {**found, "textpoke.cut_off": capture.cut_off} if capture.cut_off else found


def _words(command: Sequence[str]) -> list[str]:
    # A program that writes a title over its arguments leaves many empty ones behind it.
    words = [encodable(word) for word in command]
    while words and not words[-1]:
        words.pop()
    return words


class _Sender:
    # Sends spans, a batch at a time; what goes wrong becomes one error.

    def __init__(self, endpoint: str | None) -> None:
        exporter = needed("opentelemetry.exporter.otlp.proto.http.trace_exporter", EXTRA)
        session = needed("requests", EXTRA).Session()
        session.hooks["response"].append(self._answered)
        self._response = needed("opentelemetry.proto.collector.trace.v1.trace_service_pb2", EXTRA)
        self._success = needed("opentelemetry.sdk.trace.export", EXTRA).SpanExportResult.SUCCESS
        self._exporter = exporter.OTLPSpanExporter(_with_path(endpoint), session=session)
        self.sent = Sent(self._exporter._endpoint)  # noqa: SLF001 - what the environment chose
        self._batch: list[Any] = []
        self._answer = ""
        _require_listener(self.sent.endpoint)

    def add(self, span: Any) -> None:  # noqa: ANN401 - the SDK's
        self._batch.append(span)
        if len(self._batch) == BATCH:
            self._flush()

    def close(self) -> None:
        if self._batch:
            self._flush()
        self._exporter.shutdown()

    def _flush(self) -> None:
        self._answer = ""
        reason = ""
        with _Heard() as heard:
            try:
                taken = self._exporter.export(self._batch) == self._success
            except OSError as exc:  # older SDKs let requests' errors through
                taken, reason = False, str(exc)
        if not taken:
            reason = reason or self._answer or heard.first or "it does not say why"
            raise SpansNotSent(self.sent.endpoint, reason[:_MOST_REASON], self.sent.spans)
        self.sent.spans += len(self._batch)
        self._batch.clear()

    def _answered(self, response: Any, **_: object) -> None:  # noqa: ANN401 - requests'
        if not response.ok:
            self._answer = f"it answered {response.status_code} {response.reason}"
            return
        found = self._response.ExportTraceServiceResponse()
        try:
            found.MergeFromString(response.content)
        except Exception:  # noqa: BLE001 - protobuf's; what is no such message says nothing
            return
        rejected = found.partial_success.rejected_spans
        if rejected > 0:
            self.sent.rejected += rejected
            self.sent.spans -= rejected
            self.sent.why = found.partial_success.error_message


class _Heard(logging.Handler):
    # The exporter tells its logger alone what went wrong, and would print it without a handler.
    # The first line has the cause; what follows says that trying again did not help.

    first = ""

    def __enter__(self) -> Self:
        logger = logging.getLogger(_LOGGER)
        self._propagates, logger.propagate = logger.propagate, False
        logger.addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logger = logging.getLogger(_LOGGER)
        logger.removeHandler(self)
        logger.propagate = self._propagates

    def emit(self, record: logging.LogRecord) -> None:
        self.first = self.first or record.getMessage()


def _with_path(endpoint: str | None) -> str | None:
    # A collector's address alone is what people know by heart.
    if endpoint is None or urlsplit(endpoint).path.strip("/"):
        return endpoint
    return endpoint.rstrip("/") + _PATH


def _require_listener(endpoint: str) -> None:
    # The exporter would try for ten seconds, and not say what was wrong.
    url = urlsplit(endpoint)
    host = url.hostname
    if not host:
        raise SpansNotSent(endpoint, "that is no URL, as http://localhost:4318 is", 0)
    if url.scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(host):
        return  # names are known there, not here
    try:
        port = url.port or _PORTS.get(url.scheme, 0)
        socket.create_connection((host, port), timeout=_CONNECT_S).close()
    except (OSError, ValueError) as exc:
        reason = getattr(exc, "strerror", None) or str(exc)
        raise SpansNotSent(endpoint, reason, 0) from exc
