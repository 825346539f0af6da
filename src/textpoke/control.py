# SPDX-License-Identifier: Apache-2.0
"""The tool that records a process answers other tools: a server that never waits, and its client.

A line of JSON a request, a line an answer, on a socket that only its user (and root) can reach.
The server is polled between two drains. Who sends nonsense, or takes too long, is cut off.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from textpoke import control_place, proc
from textpoke._errors import ControlFailed, NobodyRecords
from textpoke.control_verbs import ErrorLog, Session, answer

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType
    from typing import Self

__all__ = ["ControlClient", "ControlServer", "Session"]

MOST_REQUEST_BYTES = 4 << 20
"""Room for the 100,000 patterns that a filter may have."""
_MOST_ANSWER_BYTES = 256 << 20
_MOST_CLIENTS = 16
_PIECE_BYTES = 1 << 16
_PIECES = 16
_REQUEST_S = 2.0
_IDLE_S = 60.0
_POLL_S = 0.001
_CLIENT_S = 30.0
_SLICE_S = 2.0


@dataclass(slots=True)
class _Client:
    socket: socket.socket
    since_s: float
    received: bytearray = field(default_factory=bytearray)
    fds: list[int] = field(default_factory=list)
    unsent: memoryview = field(default_factory=lambda: memoryview(b""))

    def patience_s(self) -> float:
        """For how long nothing may happen."""
        return _REQUEST_S if self.received or self.unsent else _IDLE_S


class ControlServer:
    """Listens for one target; a context manager.

    Args:
        session: What can be asked for.

    Raises:
        ControlBusy: Another tool listens for this target.
        ControlUnsafe: The directory for sockets is not ours alone.
        OSError: The socket cannot be made.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._log = ErrorLog()
        self._owner = os.getpid()
        self._place = control_place.Place(session.pid)
        self._clients: deque[_Client] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def path(self) -> str:
        """Of the socket."""
        return self._place.path

    def fileno(self) -> int:
        """Of the listening socket, for select; -1 when closed."""
        return self._place.socket.fileno()

    def poll(self) -> int:
        """Handle what has come; returns how many requests were answered.

        Waits for nobody, and spends no more than a millisecond on the sockets; what the session
        does for a request takes the time that it takes.
        """
        until_s = time.monotonic() + _POLL_S
        self._accept()
        answered = 0
        for _ in range(len(self._clients)):
            client = self._clients.popleft()
            outcome = self._serve(client)
            if outcome is None:
                _drop(client)
            else:
                answered += outcome
                self._clients.append(client)
            if time.monotonic() > until_s:
                break
        return answered

    def close(self) -> None:
        """Stop listening, cut everybody off; a second call does nothing."""
        while self._clients:
            _drop(self._clients.popleft())
        if os.getpid() == self._owner:  # a forked child leaves the socket to its parent
            self._place.close()

    def _accept(self) -> None:
        try:
            connection, _ = self._place.socket.accept()
        except OSError:
            return
        allowed = control_place.peer_uid(connection) in (os.geteuid(), 0)
        if not allowed or len(self._clients) >= _MOST_CLIENTS:
            connection.close()
            return
        connection.setblocking(False)
        self._clients.append(_Client(connection, time.monotonic()))

    def _serve(self, client: _Client) -> int | None:
        """Go on with one client; None to cut it off, else requests that were answered."""
        try:
            self._send(client)
            if not client.unsent:
                self._receive(client)
        except (OSError, EOFError):
            return None
        line = None if client.unsent else _take_line(client)
        if line is not None:
            return 1 if self._answer(client, line) else None
        # A request has its time as a whole: a byte a second does not hold a place.
        overdue = time.monotonic() - client.since_s > client.patience_s()
        return None if overdue or len(client.received) > MOST_REQUEST_BYTES else 0

    def _answer(self, client: _Client, line: bytes) -> bool:
        request = _parse(line)
        if request is None:
            return False
        fds, client.fds = client.fds, []
        try:
            result = answer(self._session, request, fds, self._log)
        finally:
            for fd in fds:
                os.close(fd)
        client.unsent = memoryview(_line_of(result))
        client.since_s = time.monotonic()
        with contextlib.suppress(OSError):  # told at the next poll
            self._send(client)
        return True

    @staticmethod
    def _send(client: _Client) -> None:
        if not client.unsent:
            return
        with contextlib.suppress(BlockingIOError):
            sent = client.socket.send(client.unsent[: _PIECES * _PIECE_BYTES], socket.MSG_NOSIGNAL)
            client.unsent = client.unsent[sent:]
            client.since_s = time.monotonic()

    @staticmethod
    def _receive(client: _Client) -> None:
        with contextlib.suppress(BlockingIOError):
            for _ in range(_PIECES):
                if b"\n" in client.received:
                    return
                _receive_piece(client)


def _receive_piece(client: _Client) -> None:
    flags = socket.MSG_CMSG_CLOEXEC
    data, fds, _, _ = socket.recv_fds(client.socket, _PIECE_BYTES, 1, flags)
    client.fds += fds
    while len(client.fds) > 1:  # the last one is the one that is meant
        os.close(client.fds.pop(0))
    if not data:
        raise EOFError
    if not client.received:
        client.since_s = time.monotonic()
    client.received += data


def _take_line(client: _Client) -> bytes | None:
    end = client.received.find(b"\n")
    if end < 0:
        return None
    line = bytes(client.received[:end])
    del client.received[: end + 1]
    return line if len(line) <= MOST_REQUEST_BYTES else b""


def _parse(line: bytes) -> dict[str, object] | None:
    try:
        data = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) else None


def _line_of(data: dict[str, object]) -> bytes:
    return json.dumps(data, separators=(",", ":")).encode("ascii") + b"\n"


def _drop(client: _Client) -> None:
    client.socket.close()
    for fd in client.fds:
        os.close(fd)
    client.fds = []


class ControlClient:
    """A connection to the tool that records a process; a context manager.

    Args:
        pid: The target.
        timeout_s: How long an answer may take.

    Raises:
        NobodyRecords: No tool listens for this target.
        NoSuchTarget, AttachDenied: There is no such process, or it is another user's.
        ControlUnsafe: A place where it might listen is not its user's alone.
    """

    def __init__(self, pid: int, timeout_s: float = _CLIENT_S) -> None:
        found = control_place.connect(pid, timeout_s)
        if found is None:
            proc.read_maps(pid)  # there may be no such process, or it is not ours to ask about
            raise NobodyRecords(pid)
        self._socket = found
        self._timeout_s = timeout_s
        self._received = bytearray()
        self._pid = pid

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; a second call does nothing."""
        self._socket.close()

    def ask(self, verb: str, *, fds: Sequence[int] = (), **fields: object) -> dict[str, object]:
        """Ask for something and wait for the answer (`control_verbs` has the verbs).

        Args:
            verb: What.
            fds: A descriptor to hand over; it stays open here.
            fields: The rest of the request; None leaves one out.

        Returns:
            The result.

        Raises:
            ControlFailed: The other tool says no, or does not answer.
        """
        request = {"verb": verb, **{k: v for k, v in fields.items() if v is not None}}
        line = _line_of(request)
        if len(line) > MOST_REQUEST_BYTES:
            raise ControlFailed(verb, "too much for one request", "ControlFailed")
        try:
            self._send(line, fds)
            answered = json.loads(self._line(verb))
        except TimeoutError:
            raise ControlFailed(
                verb, f"the textpoke that records pid {self._pid} is busy"
            ) from None
        except OSError as exc:
            why = errno.errorcode.get(exc.errno or 0, "")
            problem = f"the textpoke that records pid {self._pid} has hung up ({why})"
            raise ControlFailed(verb, problem) from exc
        except ValueError:
            raise ControlFailed(verb, "the answer is not JSON") from None
        return _result(verb, answered)

    def _require_running(self, verb: str) -> None:
        """A tool that was stopped (Ctrl-Z) answers when it goes on, which may be never."""
        tool = control_place.peer_pid(self._socket)
        if proc.is_stopped(tool):
            problem = (
                f"the textpoke that records pid {self._pid} is stopped, "
                f"let it go on: kill -CONT {tool}"
            )
            raise ControlFailed(verb, problem)

    def _send(self, line: bytes, fds: Sequence[int]) -> None:
        sent = 0
        if fds:
            sent = socket.send_fds(self._socket, [line], fds, socket.MSG_NOSIGNAL)
        self._socket.sendall(line[sent:], socket.MSG_NOSIGNAL)

    def _line(self, verb: str) -> bytes:
        deadline = time.monotonic() + self._timeout_s
        while b"\n" not in self._received:
            self._socket.settimeout(max(min(_SLICE_S, deadline - time.monotonic()), 0.001))
            try:
                data = self._socket.recv(_PIECE_BYTES)
            except TimeoutError:
                self._require_running(verb)
                if time.monotonic() >= deadline:
                    raise
                continue
            if not data:
                raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
            self._received += data
            if len(self._received) > _MOST_ANSWER_BYTES:
                raise ControlFailed(verb, "the answer has no end")
        line, _, rest = self._received.partition(b"\n")
        self._received = bytearray(rest)
        return bytes(line)


def _result(verb: str, answered: object) -> dict[str, object]:
    if isinstance(answered, dict):
        result, error = answered.get("result"), answered.get("error")
        if answered.get("ok") is True and isinstance(result, dict):
            return result
        if isinstance(error, dict):
            code = error.get("exit_code")
            code = code if type(code) is int and 0 < code < 128 else 1
            message, kind = str(error.get("message")), str(error.get("kind", ""))
            raise ControlFailed(verb, message, kind, code)
    raise ControlFailed(verb, "the answer makes no sense")
