# SPDX-License-Identifier: Apache-2.0
"""memcached on loopback, and clients that compare what they get with what they have set."""

from __future__ import annotations

import itertools
import os
import socket
import threading
from typing import TYPE_CHECKING

from processes import Program, free_port

if TYPE_CHECKING:
    from pathlib import Path


class Memcached(Program):
    """memcached with four threads, which gives up root before it serves."""

    def __init__(self, program: Path, log: str = "memcached") -> None:
        self.port = free_port()
        words = [program, "-u", "nobody", "-l", "127.0.0.1"]
        super().__init__([*words, "-p", self.port, "-U", 0, "-t", 4, "-m", 64], log)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)

    def listens(self) -> bool:
        try:
            self.connect().close()
        except OSError:
            return False
        return True


class Client(threading.Thread):
    """Sets values and gets them back, compares each, counts."""

    def __init__(self, server: Memcached, number: int, stop: threading.Event) -> None:
        super().__init__()
        self.server, self.number, self.stop = server, number, stop
        self.round_trips = 0
        self.failure = "did not come to its end"

    def run(self) -> None:
        with self.server.connect() as connection, connection.makefile("rb") as answers:
            for turn in itertools.count():
                value = os.urandom(1 + turn * 37 % 4000).hex()
                key, size = f"{self.number}-{turn % 500}", len(value)
                connection.sendall(f"set {key} 0 0 {size}\r\n{value}\r\nget {key}\r\n".encode())
                wanted = f"STORED\r\nVALUE {key} 0 {size}\r\n{value}\r\nEND\r\n"
                answer = b"".join(answers.readline() for _ in range(4))
                if answer != wanted.encode():
                    self.failure = f"turn {turn}: {answer[:200]!r}"
                    return
                self.round_trips += 1
                if self.stop.is_set():
                    self.failure = ""
                    return
