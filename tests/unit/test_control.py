# SPDX-License-Identifier: Apache-2.0
"""The control socket: who gets in, what is answered, who is cut off, what a killed tool leaves."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from fake_session import FakeSession, Serving
from hypothesis import given
from hypothesis import strategies as st

from textpoke import control, control_place
from textpoke._errors import (
    ControlBusy,
    ControlFailed,
    ControlUnsafe,
    NobodyRecords,
    NoSuchTarget,
)
from textpoke.control import ControlClient, ControlServer
from textpoke.control_verbs import answer

if TYPE_CHECKING:
    from collections.abc import Iterator

PID = 4_194_304  # nobody's
NOBODY_UID = 65534
FOREIGN = os.stat_result([stat.S_IFDIR | 0o700, 1, 1, 1, NOBODY_UID, 0, 0, 0, 0, 0])


@pytest.fixture(autouse=True)
def private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place for sockets that is this test's alone."""
    runtime = tmp_path / "run"
    runtime.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", os.fspath(runtime))
    monkeypatch.setattr(control_place, "RUNTIME", os.fspath(tmp_path / "none"))
    monkeypatch.setattr(control_place, "TEMPORARY", os.fspath(tmp_path))
    return runtime


@pytest.fixture
def serving() -> Iterator[Serving]:
    with Serving(FakeSession(PID)) as found:
        yield found


@pytest.fixture
def client(serving: Serving) -> Iterator[ControlClient]:
    assert serving.session.pid == PID
    with ControlClient(PID, timeout_s=10) as found:
        yield found


def raw(server: ControlServer) -> socket.socket:
    found = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    found.settimeout(10)
    found.connect(server.path)
    return found


def polled(server: ControlServer, seconds: float = 0.05) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        server.poll()
        time.sleep(0.001)


# The verbs.


def test_status_and_tracers(client: ControlClient) -> None:
    status = client.ask("status")
    assert (status["pid"], status["exe"]) == (PID, "/bin/prog")
    assert [each["tracer"] for each in status["instances"]] == ["function"]
    assert "branch" not in client.ask("tracers")["tracers"]
    assert "durations" in client.ask("tracers")["tracers"]["function_graph"]


def test_switch(client: ControlClient, serving: Serving) -> None:
    result = client.ask("switch", tracer="function_graph")
    assert (result["tracer"], result["sites"]) == ("function_graph", 5)
    assert serving.session.known[""].tracer == "function_graph"
    with pytest.raises(ControlFailed, match="no tracer 'branch': function, function_graph"):
        client.ask("switch", tracer="branch")
    with pytest.raises(ControlFailed, match="no instance 'x'; there are: none"):
        client.ask("switch", tracer="nop", instance="x")


def test_filter_replace_append_read_clear_in_one_batch(client: ControlClient) -> None:
    changes = [
        {"kind": "trace", "action": "replace", "patterns": ["*Command", "libc!*"]},
        {"kind": "notrace", "action": "replace", "patterns": ["free"]},
        {"kind": "thread", "action": "replace", "patterns": ["bio*"]},
    ]
    result = client.ask("filter", changes=changes, follow=True, sample=10)
    assert (result["chosen"], result["on"], result["off"]) == (3, 0, 2)
    assert result["lines"] == [
        "*Command",
        "libc!*",
        "notrace free",
        "thread bio*",
        "follow new threads",
        "one of 10 calls",
    ]
    more = [{"kind": "trace", "action": "append", "patterns": ["!set*"]}]
    assert client.ask("filter", changes=more, list=True)["functions"] == [
        "getCommand",
        "malloc [libc.so.6]",
        "free [libc.so.6]",
    ]
    read = client.ask("filter", list=True)
    assert read["notrace"] == ["free [libc.so.6]"]
    assert "chosen" not in read  # nothing was changed
    clear = [{"kind": kind, "action": "replace"} for kind in ("trace", "notrace", "thread")]
    cleared = client.ask("filter", changes=clear, follow=False, sample=1, list=True)
    assert (cleared["chosen"], cleared["lines"]) == (5, [])
    assert cleared["functions"] == ["#### all functions enabled ####"]


def test_errors_of_the_session_come_back_with_their_exit_code(client: ControlClient) -> None:
    bad = [{"kind": "trace", "action": "append", "patterns": ["f:modul:x"]}]
    with pytest.raises(ControlFailed, match="no such command 'modul'") as caught:
        client.ask("filter", changes=bad)
    assert (caught.value.kind, caught.value.exit_code) == ("BadFilter", 2)
    unknown = [{"kind": "trace", "action": "append", "patterns": ["setComand"]}]
    with pytest.raises(ControlFailed, match="close names: setCommand") as caught:
        client.ask("filter", changes=unknown)
    assert (caught.value.kind, caught.value.exit_code) == ("UnknownFunction", 1)
    assert client.ask("filter")["lines"] == []


def test_status_tells_of_the_last_eight_failures(client: ControlClient) -> None:
    # tracing-error-log of the kernel's selftests.
    for number in range(9):
        with pytest.raises(ControlFailed):
            client.ask("trigger", lines=[f"f{number}:traceof"])
    errors = client.ask("status")["errors"]
    assert [error["verb"] for error in errors] == ["trigger"] * 8
    assert errors[0]["caret"] == "f1:traceof\n   ^"
    assert "no command 'traceof'" in errors[-1]["message"]


def test_no_file_is_read_for_somebody_else(client: ControlClient) -> None:
    changes = [{"kind": "trace", "action": "append", "patterns": [" @/etc/passwd"]}]
    with pytest.raises(ControlFailed, match="read by whoever asks"):
        client.ask("filter", changes=changes)


def test_triggers_add_up_and_are_removed(client: ControlClient) -> None:
    lines = ["handle_request>5ms:keep=200ms", "setCommand:traceoff:3"]
    assert client.ask("trigger", lines=lines)["triggers"] == [
        "setCommand:traceoff:count=3",
        "handle_request>5ms:keep=200ms:unlimited",
    ]
    removed = client.ask("trigger", lines=["!setCommand:traceoff:0"])
    assert removed["triggers"] == ["handle_request>5ms:keep=200ms:unlimited"]
    with pytest.raises(ControlFailed, match="no such trigger"):
        client.ask("trigger", lines=["!setCommand:traceoff:0"])
    assert client.ask("trigger")["triggers"] == removed["triggers"]
    assert client.ask("trigger", clear=True)["triggers"] == []


def test_counts_of_the_profile(client: ControlClient) -> None:
    found = client.ask("counts")
    assert found == {"instance": "", "functions": [{"function": "function", "calls": 3}]}


def test_tracing_on_and_off(client: ControlClient, serving: Serving) -> None:
    assert client.ask("tracing", on=False) == {"instance": "", "on": False}
    assert serving.session.known[""].on is False


def test_an_instance_records_into_the_file_of_whoever_asked(
    client: ControlClient, tmp_path: Path
) -> None:
    with open(tmp_path / "own.tptrace", "w+b") as file:
        made = client.ask(
            "instance",
            action="create",
            name="mine",
            tracer="function",
            patterns=["set*"],
            fds=[file.fileno()],
        )
    assert made["chosen"] == 1
    names = [each["name"] for each in client.ask("instance", action="list")["instances"]]
    assert names == ["", "mine"]
    client.ask("switch", tracer="nop", instance="mine")
    assert client.ask("instance", action="remove", name="mine")["events"] == 12
    assert (tmp_path / "own.tptrace").read_bytes() == b"begunended"
    with pytest.raises(ControlFailed, match="no instance 'mine'"):
        client.ask("instance", action="remove", name="mine")


def test_instances_need_a_name_and_a_regular_file(client: ControlClient, tmp_path: Path) -> None:
    def create(*fds: int, **fields: object) -> dict[str, object]:
        wanted = {"action": "create", "name": "x", "tracer": "function", **fields}
        return client.ask("instance", fds=fds, **wanted)

    read, write = os.pipe()
    with open(tmp_path / "x", "w+b") as file, open(tmp_path / "x", "rb") as unwritable:
        for fds, fields, problem in (
            ([], {}, "no capture"),
            ([write], {}, "not a regular file"),
            ([unwritable.fileno()], {}, "open for writing"),
            ([file.fileno()], {"name": "../x"}, "no name"),
            ([file.fileno()], {"name": ""}, "missing"),
            ([file.fileno()], {"patterns": ["nosuch"]}, "no function"),
        ):
            with pytest.raises(ControlFailed, match=problem):
                create(*fds, **fields)
        create(file.fileno())
        with pytest.raises(ControlFailed, match="already"):
            create(file.fileno())
    os.close(read)
    os.close(write)


@pytest.mark.usefixtures("serving")
def test_descriptors_that_nobody_takes_are_closed(tmp_path: Path) -> None:
    def count() -> int:
        return len(os.listdir("/proc/self/fd"))

    with ControlClient(PID) as client, open(tmp_path / "x", "wb") as file:
        client.ask("status")
        before = count()
        for _ in range(20):
            client.ask("status", fds=[file.fileno()])
            with pytest.raises(ControlFailed):
                client.ask("nosuch", fds=[file.fileno(), file.fileno()])
        assert count() == before


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-1, 2), st.sampled_from(["", "set*", "append", "x"])
)
VALUES = SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(SCALARS.map(str), SCALARS)
WORDS = ["instance", "tracer", "changes", "kind", "action", "patterns"]
WORDS += ["lines", "list", "clear", "on", "name", "sample"]
CHANGE = {"kind": "trace", "action": "append", "patterns": ["set*"]}


@given(
    st.sampled_from(
        ["status", "tracers", "switch", "filter", "trigger", "instance", "tracing", "counts"]
    ),
    st.dictionaries(st.sampled_from(WORDS), VALUES | st.just([CHANGE]), max_size=6),
)
def test_any_request_is_answered_with_plain_json(verb: str, fields: dict[str, object]) -> None:
    result = answer(FakeSession(PID), {**fields, "verb": verb}, [])
    assert json.loads(json.dumps(result))["ok"] in (True, False)
    if not result["ok"]:
        assert "\n" not in result["error"]["message"]


# The socket.


def test_nobody_records() -> None:
    with pytest.raises(NobodyRecords, match="start one with textpoke record -p"):
        ControlClient(os.getpid())
    with pytest.raises(NoSuchTarget):
        ControlClient(PID)


@pytest.mark.usefixtures("private")
def test_a_tool_that_is_stopped_is_told_as_such() -> None:
    """Whoever asks it would wait until somebody lets it go on."""
    program = (
        "import sys, time; from textpoke.control import ControlServer; "
        f"sys.path.insert(0, {os.path.dirname(__file__)!r}); "
        "from fake_session import FakeSession; "
        f"server = ControlServer(FakeSession({PID})); print('ready', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGSTOP)
        cure = f"is stopped, let it go on: kill -CONT {process.pid}"
        with ControlClient(PID) as client, pytest.raises(ControlFailed, match=cure):
            client.ask("status")
    finally:
        process.kill()
        process.communicate()


def test_the_socket_is_its_users_alone(private: Path) -> None:
    with ControlServer(FakeSession(PID)) as server:
        assert server.path == f"{private}/textpoke/{PID}.sock"
        assert stat.S_IMODE((private / "textpoke").stat().st_mode) == 0o700
    assert os.listdir(private / "textpoke") == []


def test_without_a_runtime_directory_a_private_one_in_tmp(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    with Serving(FakeSession(PID)) as serving:
        assert serving.server.path == f"{tmp_path}/textpoke-{os.geteuid()}/{PID}.sock"
        monkeypatch.setenv("XDG_RUNTIME_DIR", f"{tmp_path}/run")  # another shell's environment
        with ControlClient(PID) as client:
            assert client.ask("status")["pid"] == PID


@pytest.mark.parametrize("kind", ["link", "file", "open", "foreign"])
def test_a_directory_that_is_not_ours_alone_is_refused(
    private: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, other = private / "textpoke", private / "other"
    other.mkdir(mode=0o700)
    if kind == "link":
        place.symlink_to(other)
    elif kind == "file":
        place.write_text("")
    else:
        place.mkdir()
        place.chmod(0o755 if kind == "open" else 0o700)
    if kind == "foreign":
        monkeypatch.setattr(control_place.os, "fstat", lambda _: FOREIGN)
    with pytest.raises(ControlUnsafe):
        ControlServer(FakeSession(PID))
    with pytest.raises(ControlUnsafe):
        ControlClient(PID)


@pytest.mark.usefixtures("serving")
def test_two_servers_for_one_target_cannot_be() -> None:
    with pytest.raises(ControlBusy, match=rf"textpoke \(pid {os.getpid()}\) answers"):
        ControlServer(FakeSession(PID))
    with ControlServer(FakeSession(PID - 1)), ControlClient(PID) as client:
        client.ask("status")  # the first one is none the worse


def test_a_killed_tools_socket_is_replaced(private: Path) -> None:
    program = (
        f"import sys; sys.path[:0] = {sys.path!r}\n"
        "from fake_session import FakeSession\n"
        "from textpoke.control import ControlServer\n"
        f"server = ControlServer(FakeSession({PID}))\n"
        "print('ready', flush=True)\n"
        "import time; time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    with pytest.raises(ControlBusy, match=f"pid {process.pid}"):
        ControlServer(FakeSession(PID))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert (private / "textpoke" / f"{PID}.sock").exists()
    with pytest.raises(NoSuchTarget):
        ControlClient(PID)
    with Serving(FakeSession(PID)), ControlClient(PID) as client:
        assert client.ask("status")["pid"] == PID


def test_a_forked_child_leaves_the_socket_to_its_parent(serving: Serving) -> None:
    child = os.fork()
    if not child:
        serving.server.close()
        os._exit(0)
    os.waitpid(child, 0)
    with ControlClient(PID) as client:
        assert client.ask("status")["pid"] == PID


@pytest.mark.parametrize(
    "line",
    [b"\n", b"nonsense\n", b"[]\n", b'{"verb"\n', b"\xff\xfe\n", b"[" * 100_000 + b"\n"],
)
def test_who_sends_nonsense_is_cut_off(line: bytes) -> None:
    with ControlServer(FakeSession(PID)) as server:
        with raw(server) as bad:
            bad.sendall(line)
            polled(server)
            assert bad.recv(10) == b""
        with raw(server) as good:
            good.sendall(b'{"verb":"status"}\n')
            polled(server)
            assert json.loads(good.recv(1 << 16))["ok"] is True


def test_who_is_slow_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "_REQUEST_S", 0.1)
    with ControlServer(FakeSession(PID)) as server, raw(server) as slow, raw(server) as idle:
        polled(server, 0.15)
        assert server._clients
        assert sends_until_cut_off(server, slow, b"{") < 50  # a byte now and then does not help
        idle.sendall(b'{"verb":"status"}\n')
        polled(server)
        assert b'"ok":true' in idle.recv(1 << 16)


def sends_until_cut_off(server: ControlServer, who: socket.socket, data: bytes) -> int:
    who.setblocking(False)
    for count in range(10_000):
        try:
            who.send(data)
        except BlockingIOError:
            pass
        except (BrokenPipeError, ConnectionResetError):
            return count
        polled(server, 0.01 if len(data) == 1 else 0)
        server.poll()
    return 10_000


def test_who_does_not_read_is_cut_off_and_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "_REQUEST_S", 0.2)
    session = FakeSession(PID)
    session.listed = lambda _instance, notrace: ["x" * 1000] * 20_000  # noqa: ARG005
    with ControlServer(session) as server, raw(server) as deaf:
        deaf.sendall(b'{"verb":"filter","list":true}\n')
        polled(server, 0.1)
        started = time.monotonic()
        server.poll()
        assert time.monotonic() - started < 0.05
        polled(server, 0.4)
        assert not server._clients


def test_a_request_without_end_is_cut_off() -> None:
    piece = b"x" * (1 << 16)
    with ControlServer(FakeSession(PID)) as server, raw(server) as endless:
        count = sends_until_cut_off(server, endless, piece)
        assert count * len(piece) < 4 * control.MOST_REQUEST_BYTES


def test_large_requests_and_answers_arrive_whole(client: ControlClient) -> None:
    patterns = [f"*{'x' * 30}{i}" for i in range(50_000)] + ["set*"]
    changes = [{"kind": "trace", "action": "append", "patterns": patterns}]
    with pytest.raises(ControlFailed, match="no function matches") as caught:
        client.ask("filter", changes=changes)
    assert caught.value.kind == "UnknownFunction"
    with pytest.raises(ControlFailed, match="too much"):
        client.ask("filter", changes=[{"patterns": ["x" * control.MOST_REQUEST_BYTES]}])


def test_there_is_an_end_to_connections() -> None:
    with ControlServer(FakeSession(PID)) as server:
        many = [raw(server) for _ in range(8)]
        for _ in range(3):
            polled(server, 0.05)
            many += [raw(server) for _ in range(8)]
        polled(server)
        assert len(server._clients) == 16
        for one in many:
            one.close()
        polled(server)
        assert len(server._clients) == 0


def test_polling_costs_next_to_nothing() -> None:
    with ControlServer(FakeSession(PID)) as server, raw(server), raw(server):
        polled(server)
        started = time.process_time()
        for _ in range(1000):
            server.poll()
        assert time.process_time() - started < 0.2  # some 10 us each


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_another_user_does_not_get_in(serving: Serving, tmp_path: Path) -> None:
    for path in (tmp_path, *tmp_path.parents[:3], Path(serving.server.path).parents[1]):
        if path.stat().st_uid == 0 and path != Path("/tmp"):
            path.chmod(path.stat().st_mode | 0o055)
    assert _as_nobody(serving.server.path) == "PermissionError"
    # Even where the directory would let them in, the kernel's word about them counts.
    directory = Path(serving.server.path).parent
    directory.chmod(0o755)
    Path(serving.server.path).chmod(0o777)
    assert _as_nobody(serving.server.path) == "cut off"


def _as_nobody(path: str) -> str:
    program = (
        "import os, socket, sys\n"
        f"os.setgid({NOBODY_UID}); os.setuid({NOBODY_UID})\n"
        "s = socket.socket(socket.AF_UNIX); s.settimeout(10)\n"
        "try:\n"
        "    s.connect(sys.argv[1])\n"
        '    s.sendall(b\'{"verb":"status"}\\n\')\n'
        "    print(s.recv(100).decode() or 'cut off')\n"
        "except ConnectionError:\n"
        "    print('cut off')\n"
        "except OSError as exc:\n"
        "    print(type(exc).__name__)\n"
    )
    words = [sys.executable, "-S", "-c", program, path]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_root_reaches_the_tool_of_the_targets_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = subprocess.Popen(["sleep", "60"], user=NOBODY_UID)
    try:
        directory = tmp_path / f"textpoke-{NOBODY_UID}"
        directory.mkdir(mode=0o700)
        os.chown(directory, NOBODY_UID, NOBODY_UID)
        with pytest.raises(NobodyRecords):
            ControlClient(target.pid)
        monkeypatch.setattr(control_place, "_own_directory", lambda: os.fspath(directory))
        monkeypatch.setattr(control_place.os, "geteuid", lambda: NOBODY_UID)
        serving = Serving(FakeSession(target.pid))
        monkeypatch.undo()
        monkeypatch.setattr(control_place, "TEMPORARY", os.fspath(tmp_path))
        with serving, ControlClient(target.pid) as client:
            assert client.ask("status")["pid"] == target.pid
    finally:
        target.kill()
        target.wait()
