# SPDX-License-Identifier: Apache-2.0
"""Spans, read back by a receiver with OpenTelemetry's own classes."""

from __future__ import annotations

import contextlib
import logging
import socket
import sys
import threading
from typing import TYPE_CHECKING

import captures
import exports
import pytest
from captures import GET, SET, UNKNOWN, Ring
from exports import IN, OUT, US
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from otlp_receiver import Receiver, attributes, nesting

from textpoke._errors import SpansNotSent
from textpoke._version import __version__
from textpoke.capture import Capture
from textpoke.cli import main
from textpoke.export import otlp
from textpoke.export import source as source_module
from textpoke.export.source import Source
from textpoke.payload import Field, Layout, layouts_json

if TYPE_CHECKING:
    from pathlib import Path

WALL_NS = 1_700_000_000_000_000_000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.tptrace"


@pytest.fixture(autouse=True)
def nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "OTEL_EXPORTER_OTLP_ENDPOINT", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def sent(path: Path, receiver: Receiver, threshold_ns: int = 0) -> otlp.Sent:
    with exports.source(path) as source:
        return otlp.send(source, threshold_ns, receiver.url)


def received(path: Path, threshold_ns: int = 0) -> Receiver:
    with Receiver() as receiver:
        sent(path, receiver, threshold_ns)
    return receiver


def calls_of(spans: list[Span]) -> list[tuple[int, str, int, int]]:
    """Thread, name, begin and end, as in `exports.NESTED`."""
    return [
        (
            attributes(span.attributes)["thread.id"],
            span.name,
            span.start_time_unix_nano - WALL_NS,
            span.end_time_unix_nano - WALL_NS,
        )
        for span in spans
    ]


@pytest.mark.parametrize("part", exports.PARTS)
@pytest.mark.parametrize("batch", [1, 3, 512])
def test_every_call_is_a_span(
    path: Path, part: int, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_module, "PART", part)
    monkeypatch.setattr(source_module, "PIECE", part)
    monkeypatch.setattr(otlp, "BATCH", batch)
    receiver = received(exports.graph(path))
    spans = receiver.spans()
    assert calls_of(spans) == exports.NESTED
    assert len(receiver.requests) == -(-len(spans) // batch)
    zlib = "inflate [libz.so.1]"
    assert nesting(spans) == [
        "/setCommand", "setCommand/getCommand", f"setCommand/{zlib}", f"{zlib}/getCommand",
        "/getCommand", f"getCommand/{zlib}",
        f"/{zlib}",
    ]  # fmt: skip
    traces = [span.trace_id for span in spans]
    assert len(set(traces)) == 3, "a trace per call without a caller"
    assert {len(trace) for trace in traces} == {16}
    assert {span.kind for span in spans} == {Span.SPAN_KIND_INTERNAL}


def test_calls_below_the_threshold_are_counted(path: Path) -> None:
    exports.graph(path)
    with Receiver() as receiver:
        found = sent(path, receiver, 13_000)
    assert (found.spans, found.below, found.rejected) == (4, 3, 0)
    assert calls_of(receiver.spans()) == [
        call for call in exports.NESTED if call[3] - call[2] >= 13_000
    ]
    assert nesting(receiver.spans())[1:3] == [
        "setCommand/inflate [libz.so.1]",
        "inflate [libz.so.1]/getCommand",
    ]


def test_nothing_is_sent_of_a_capture_with_short_calls(path: Path) -> None:
    exports.graph(path)
    with Receiver() as receiver:
        found = sent(path, receiver, 1_000_000)
    assert (found.spans, found.below, receiver.paths) == (0, 7, [])


def test_attributes(path: Path) -> None:
    command = ["redis-server", "--port", "7777", "", ""]  # what a title leaves behind it
    receiver = received(exports.graph(path, command=command))
    spans = receiver.spans()
    assert attributes(spans[2].attributes) == {
        "code.function.name": "inflate",
        "textpoke.module": "libz.so.1",
        "thread.id": 100,
        "thread.name": "redis-server",
    }
    open_ones = [s.name for s in spans if attributes(s.attributes).get("textpoke.unfinished")]
    assert open_ones == ["getCommand"]
    resource = receiver.resource()
    assert resource.pop("telemetry.sdk.name") == "opentelemetry"
    assert len(str(resource.pop("service.instance.id"))) == 36
    del resource["telemetry.sdk.language"], resource["telemetry.sdk.version"]
    assert resource == {
        "service.name": "redis-server",
        "process.pid": 100,
        "process.executable.name": "redis-server",
        "process.executable.path": "/usr/bin/redis-server",
        "process.command_args": ["redis-server", "--port", "7777"],
        "textpoke.tracer": "function_graph",
        "textpoke.capture": "x.tptrace",
        "textpoke.events_lost": 0,
        "textpoke.time_known": True,
    }
    (scope,) = {
        (scope.scope.name, scope.scope.version)
        for scope in receiver.requests[0].resource_spans[0].scope_spans
    }
    assert scope == ("textpoke", __version__)


def test_losses_and_cut_off_captures_are_told(tmp_path: Path) -> None:
    lossy = received(exports.graph(tmp_path / "a", exports.WITH_LOSS)).resource()
    assert lossy["textpoke.events_lost"] == 7
    recipe = captures.Recipe(
        exports.TWO_THREADS,
        meta=captures.meta(tracer="function_graph"),
        clocks=[captures.clock(3_000_000)],
        end=None,
    )
    cut = received(captures.write(tmp_path / "b", recipe))
    assert str(cut.resource()["textpoke.cut_off"]).startswith("cut off after ")
    assert len(cut.spans()) == 7


def test_arguments_and_results(path: Path) -> None:
    layout = Layout(
        entry=(
            Field("key", "str:1"),
            Field("count", "u64"),
            Field("bad", "str:1"),
            Field("caller", "caller"),
        ),
        exit=(Field("retval", "i32"), Field("ok", "bool"), Field("ratio", "f64")),
    )
    words = [int.from_bytes(b"k\xff1", "little"), (1 << 64) - 1]
    words += [int.from_bytes(b"<fault>", "little"), 0xABC]
    rows = [
        (0, SET, IN),
        *captures.data(False, words),
        (3 * US, SET, OUT),
        *captures.data(True, [(1 << 32) - 5, 1, 0x3FF8000000000000]),
    ]
    exports.graph(path, [Ring(rows)], layouts=layouts_json({SET: layout}))
    (span,) = received(path).spans()
    found = attributes(span.attributes)
    assert {key: value for key, value in found.items() if key.startswith("textpoke.")} == {
        "textpoke.module": "redis-server",
        "textpoke.argument.key": "k\\xff1",
        "textpoke.argument.count": str((1 << 64) - 1),  # OTLP's integers have a sign
        "textpoke.argument.bad": "<fault>",
        "textpoke.caller": "0xabc",
        "textpoke.result.retval": -5,
        "textpoke.result.ok": True,
        "textpoke.result.ratio": 1.5,
    }


def test_calls_recorded_by_a_threshold_have_their_duration_as_times(path: Path) -> None:
    layout = Layout(exit=(Field("duration", "duration"),))
    rows = [(9 * US, SET, OUT), *captures.data(True, [6 * US])]
    exports.graph(path, [Ring(rows)], layouts=layouts_json({SET: layout}))
    spans = received(path).spans()
    assert calls_of(spans) == [(100, "setCommand", 3_000, 9_000)]
    assert "textpoke.result.duration" not in attributes(spans[0].attributes)


def test_sent_twice_is_the_same(path: Path) -> None:
    exports.graph(path)
    first, second = (received(path).requests for _ in range(2))
    assert first == second


@pytest.mark.parametrize("name", [exports.HOSTILE, "\ud800", "x" * 100_000])
def test_hostile_names_arrive(path: Path, name: str) -> None:
    exports.graph(path, sites=[[SET, "redis-server", name], *captures.SITES[1:]])
    spans = received(path).spans()
    assert len(spans) == 7
    assert attributes(spans[0].attributes)["code.function.name"] == name.replace("\ud800", "?")


def test_an_address_without_a_site_is_unknown(path: Path) -> None:
    exports.graph(path, [Ring([(0, UNKNOWN, IN), (US, UNKNOWN, OUT)])])
    (span,) = received(path).spans()
    assert span.name == "[unknown]"
    assert "code.function.name" not in attributes(span.attributes)


def run(path: Path, *words: str) -> int:
    return main(["export", str(path), "-f", "otlp", *words])


def test_the_command_line(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exports.graph(path, exports.WITH_LOSS)
    with Receiver() as receiver:
        assert run(path, "--endpoint", f"{receiver.url}/here", "--threshold", "2us") == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[-1] == (
        f"2 spans sent to {receiver.url}/here, 2 calls took less than 2us"
    )
    assert "warning: lost: 7" in err
    assert receiver.paths == ["/here"]


def test_an_endpoint_alone_says_the_format(path: Path) -> None:
    with Receiver() as receiver:
        words = ["export", str(exports.graph(path)), "-q", "--endpoint", receiver.url]
        assert main([*words, "--threshold", "0ns"]) == 0
    assert receiver.paths == ["/v1/traces"]
    assert len(receiver.spans()) == 7
    assert [p.name for p in path.parent.iterdir()] == ["x.tptrace"]


def test_the_environment_says_where_and_how(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exports.graph(path)
    with Receiver() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
        monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=lab")
        assert run(path, "-q", "--threshold", "1ns") == 0
    assert len(receiver.spans()) == 7
    assert receiver.resource()["deployment.environment.name"] == "lab"


def test_nobody_listens(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exports.graph(path)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert run(path, "--endpoint", f"http://127.0.0.1:{port}", "--threshold", "1us") == 1
    assert capsys.readouterr().err == (
        f"textpoke: error: cannot send spans to http://127.0.0.1:{port}/v1/traces: Connection "
        "refused; start a collector there, or name another one with --endpoint\n"
    )


def test_what_listens_speaks_no_http(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "2")  # for how long it is tried again
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"

        def hang_up() -> None:
            with contextlib.suppress(OSError):
                while True:
                    server.accept()[0].close()

        thread = threading.Thread(target=hang_up, daemon=True)
        thread.start()
        with exports.source(exports.graph(path)) as source, pytest.raises(SpansNotSent) as error:
            otlp.send(source, 0, url)
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
    assert "Connection aborted" in error.value.reason or "reset by peer" in error.value.reason


def test_the_environment_has_no_url(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "localhost:4317")
    assert run(exports.graph(path), "--threshold", "1us") == 1
    assert "localhost:4317/v1/traces: that is no URL" in capsys.readouterr().err


@pytest.mark.parametrize(("statuses", "taken"), [([404], 0), ([200, 400], 3)])
def test_a_receiver_that_refuses(
    path: Path, statuses: list[int], taken: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(otlp, "BATCH", 3)
    exports.graph(path)
    with Receiver(statuses) as receiver, pytest.raises(SpansNotSent) as error:
        sent(path, receiver)
    assert error.value.sent == taken
    assert f"it answered {statuses[-1]}" in error.value.reason
    assert f"after {taken} spans" in str(error.value) or not taken


def test_a_busy_receiver_is_asked_again(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exports.graph(path)
    with Receiver([503]) as receiver:
        assert run(path, "-q", "--endpoint", receiver.url, "--threshold", "1us") == 0
    assert len(receiver.spans()) == 7
    assert capsys.readouterr().err == ""
    assert logging.getLogger("opentelemetry.exporter.otlp").propagate


def test_spans_that_are_rejected_are_told(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exports.graph(path)
    with Receiver(rejected=2) as receiver:
        assert run(path, "--endpoint", receiver.url, "--threshold", "1us") == 0
    err = capsys.readouterr().err
    assert "warning: 2 spans were rejected there: too old" in err
    assert "5 spans sent" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-o", "x"], "--output is for files"),
        (["--diff", "x"], "--diff is for files"),
        (["--force"], "--force is for files"),
        (["--endpoint", "localhost:4318"], "'localhost:4318' is no URL"),
        (["--endpoint", "http://[/"], "is no URL"),
        (["--threshold", "5"], "has no unit"),
        (["-f", "folded", "--threshold", "5ms"], "--threshold is for -f otlp"),
        (["-f", "folded", "--endpoint", "http://x"], "--endpoint is for -f otlp"),
    ],
)
def test_options_that_do_not_fit(
    path: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(exports.graph(path), *words) == 2
    err = capsys.readouterr().err
    assert said in err
    assert len(err.splitlines()) == 1


def test_without_exits_there_are_no_spans(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(exports.function(path)) == 2
    assert capsys.readouterr().err == (
        f"textpoke: error: -f otlp needs exits, and {path} holds none: "
        "record with -t function_graph, and functions that are called\n"
    )


def test_without_the_sdk_a_line_says_what_to_install(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    for name in [name for name in sys.modules if name.startswith("opentelemetry.")]:
        monkeypatch.delitem(sys.modules, name)
    assert run(exports.graph(path)) == 1
    assert capsys.readouterr().err == (
        "textpoke: error: opentelemetry is not installed: pip install 'textpoke[otlp]'\n"
    )


def test_a_damaged_time_is_no_reason_to_fail(path: Path) -> None:
    rows = [(0, SET, IN), (US, GET, IN), (2 * US, GET, OUT), ((1 << 62), SET, OUT)]
    assert len(received(exports.graph(path, [Ring(rows)])).spans()) == 2


def test_progress_counts_every_call(path: Path) -> None:
    done: list[int] = []
    with Receiver() as receiver, Capture(exports.graph(path)) as capture:
        otlp.send(Source(capture, done.append), 1_000_000, receiver.url)
    assert sum(done) == 7
