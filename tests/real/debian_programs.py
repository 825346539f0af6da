# SPDX-License-Identifier: Apache-2.0
"""Debian's own packages as they are, started as their documentation says, under judged loads.

Everything is on loopback, with its data in a fresh directory of build/real/data. `SUBJECTS` has
them all: each makes a `Program` with two things more, `load()`, a context manager (`Load`) that
says which process is to be traced and counts what the program does meanwhile, and `finish()`, which
ends the program in order and looks at its complete result.
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import hashlib
import http.client
import itertools
import lzma
import os
import pwd
import random
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

import memcached_server
import redis_server
from processes import BUILT, LOGS, REPOSITORY, START_TIMEOUT_S, Program, free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

HERE = Path(__file__).parent
INSTALL_TIMEOUT_S = 900
ANSWER_TIMEOUT_S = 60
END_TIMEOUT_S = 120
BIG_ENOUGH_S = 3600
WARM_UP = 2  # rounds, blocks or answers before the load counts as begun
RIGHT_AFTER = 3  # rounds that must come, and be right, when all is over


@functools.cache
def install(*names: str) -> None:
    """Install packages with tools/install_real.sh, unless they are there."""
    script = REPOSITORY / "tools" / "install_real.sh"
    subprocess.run([str(script), *names], check=True, timeout=INSTALL_TIMEOUT_S)


def data_directory(name: str) -> Path:
    """A fresh directory that every user can reach: in build/real if that can be reached itself."""
    place = BUILT / "data"
    if not all(parent.stat().st_mode & 1 for parent in BUILT.parents):
        place = Path(tempfile.gettempdir()) / "textpoke-real-data"
    directory = place / name
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    return directory


def children(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        found += map(int, task.read_text().split())
    return sorted(found)


class Load:
    """What a program has to do while it is traced; the block's end waits for the last answer.

    Attributes:
        pid: The process to trace.
        count: What was done and found right, in `unit`s.
        failures: What was wrong; the first of them is enough.
    """

    unit = "requests"

    def __init__(self, program: Program) -> None:
        self.program = program
        self.pid = program.pid
        self.count = 0
        self.failures: list[str] = []

    def __enter__(self) -> Self:
        self.begin()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def begin(self) -> None: ...

    def end(self) -> None: ...

    def require_no_failure(self) -> None:
        assert not self.failures, self.failures[:3]
        assert self.count > 0


class Server(Program):
    """A daemon in the foreground, with its children; `QUIT` asks it to end."""

    QUIT = signal.SIGTERM

    def __exit__(self, *_: object) -> None:
        family = [self.pid, *children(self.pid)] if self.runs else []
        for pid in family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def wait_until_up(self) -> None: ...

    def finish(self) -> None:
        """Ask it to end, and see that it does so as it should."""
        self.process.send_signal(self.QUIT)
        code = self.process.wait(END_TIMEOUT_S)
        assert code == 0, f"ended with {code}: see {self.log}"
        assert not re.search(r"signal 5|PANIC|[Ss]egmentation|core dumped", self.said())

    def said(self) -> str:
        return self.log.read_text(errors="replace")


# Programs that print a line a round.


class Rounds(Program):
    """A program that prints the same line after each round of the same work."""

    def __init__(self, name: str, words: Sequence[object]) -> None:
        super().__init__(words, f"debian-{name}")

    def wait_until_up(self) -> None:
        self.wait_for(lambda: len(self.lines()) >= WARM_UP)

    def load(self) -> RoundsLoad:
        return RoundsLoad(self)

    def finish(self) -> None:
        """Its rounds have no end."""


class RoundsLoad(Load):
    """The line that it printed before it was traced is the right one."""

    unit = "rounds"

    def begin(self) -> None:
        self.right, *more = self.program.lines()
        assert set(more) == {self.right}
        self._before = len(more) + 1

    def end(self) -> None:
        if self.program.runs:
            self.program.wait_for_lines(RIGHT_AFTER, ANSWER_TIMEOUT_S)
        lines = self.program.lines()[self._before :]
        self.count = len(lines)
        self.failures = [f"line {n}: {line}" for n, line in enumerate(lines) if line != self.right]


def python() -> Rounds:
    return Rounds("python", ["/usr/bin/python3", "-I", HERE / "work.py"])


def perl() -> Rounds:
    return Rounds("perl", ["/usr/bin/perl", HERE / "work.pl"])


def lua() -> Rounds:
    return Rounds("lua", ["/usr/bin/lua5.4", HERE / "work.lua"])


def cmake() -> Rounds:
    return Rounds("cmake", ["/usr/bin/cmake", "-P", HERE / "work.cmake"])


# Programs that eat what they are given until it ends.

BLOCK_BYTES = 1 << 20
BLOCKS = 8


@functools.cache
def blocks() -> list[bytes]:
    """Text of words and numbers, always the same."""
    chooser = random.Random(4)
    letters = "etaoinshrdlu"
    words = ["".join(chooser.choices(letters, k=2 + i % 8)) for i in range(5000)]
    found = []
    for _ in range(BLOCKS):
        lines: list[str] = []
        size = 0
        while size < BLOCK_BYTES:
            lines.append(f"{len(lines)} {' '.join(chooser.choices(words, k=14))}\n")
            size += len(lines[-1])
        found.append("".join(lines).encode())
    return found


class Fed(Program):
    """A program that reads its standard input; what it writes is judged when that has ended."""

    warm_up = WARM_UP

    def __init__(self, name: str, words: Sequence[object], stdin: int = subprocess.PIPE) -> None:
        super().__init__(words, f"debian-{name}", stdin=stdin)
        self.fed = 0

    def __exit__(self, *_: object) -> None:
        if self.runs:
            self.process.kill()
        self.close()
        self.process.wait()

    def wait_until_up(self) -> None: ...

    def load(self) -> Feeder:
        return Feeder(self)

    def feed(self) -> None:
        """Give it one block more; returns when it has taken it."""
        assert self.process.stdin
        self.process.stdin.write(blocks()[self.fed % BLOCKS])
        self.process.stdin.flush()
        self.fed += 1

    def digest(self) -> str:
        """Of all that it was given."""
        digest = hashlib.sha256()
        for n in range(self.fed):
            digest.update(blocks()[n % BLOCKS])
        return digest.hexdigest()

    def close(self) -> None:
        if self.process.stdin:
            with contextlib.suppress(OSError):
                self.process.stdin.close()

    def finish(self) -> None:
        """End its input; it must end well, and its result must be right."""
        self.close()
        code = self.process.wait(END_TIMEOUT_S)
        assert code == 0, f"ended with {code}: see {self.log}"
        self.judge()

    def judge(self) -> None: ...


class Feeder(Load):
    """Feeds a program as fast as it eats."""

    unit = "blocks"

    def __init__(self, program: Fed) -> None:
        super().__init__(program)
        self.fed = program
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._feed_again_and_again)

    def begin(self) -> None:
        self._thread.start()
        self.program.wait_for(lambda: self.count >= self.fed.warm_up or self.failures)

    def end(self) -> None:
        self._stop.set()
        self._thread.join(ANSWER_TIMEOUT_S)
        if self._thread.is_alive():
            self.failures.append(f"it has not eaten for {ANSWER_TIMEOUT_S} s")

    def _feed_again_and_again(self) -> None:
        try:
            while not self._stop.is_set():
                self.fed.feed()
                self.count += 1
        except (OSError, AssertionError) as wrong:
            self.failures.append(repr(wrong))


class Xz(Fed):
    """xz in two threads; what it wrote must unpack to what it was given."""

    warm_up = 10  # the second thread begins with the second block of three MiB

    def __init__(self) -> None:
        super().__init__("xz", ["/usr/bin/xz", "-T2", "-1", "-c"])

    def judge(self) -> None:
        digest = hashlib.sha256()
        with lzma.open(self.log) as unpacked:
            while part := unpacked.read(BLOCK_BYTES):
                digest.update(part)
        assert digest.hexdigest() == self.digest()


class SevenZip(Fed):
    """7-Zip (C++) packs its input into an archive; the archive must hold it."""

    def __init__(self) -> None:
        self.archive = data_directory("sevenzip") / "packed.7z"
        words = ["/usr/bin/7zz", "a", "-siinput", "-mx=1", "-mmt=2", "-bd", self.archive]
        super().__init__("sevenzip", words)

    def judge(self) -> None:
        assert "Everything is Ok" in self.log.read_text()
        words = ["/usr/bin/7zz", "x", "-so", str(self.archive)]
        digest = hashlib.sha256()
        with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            assert process.stdout
            while part := process.stdout.read(BLOCK_BYTES):
                digest.update(part)
        assert (process.returncode, digest.hexdigest()) == (0, self.digest())


class Sqlite(Fed):
    """The command line tool of SQLite; the answers of every round are known."""

    END = "end of round"
    KNOWN = ("sum|200010000|2666866670000|100005000.0", "primes|303|277050", "residues|49")
    KNOWN += ("fibonacci|1779979416004714189", "collatz|54|112", "window|3", "ok")

    def __init__(self) -> None:
        self.right = self._untraced()
        database = data_directory("sqlite") / "test.db"
        super().__init__("sqlite", ["/usr/bin/sqlite3", "-batch", database])

    def _untraced(self) -> list[str]:
        """The answers of a run of its own, the ones that theory knows among them."""
        script = (HERE / "work.sql").read_text()
        words = ["/usr/bin/sqlite3", "-batch", ":memory:"]
        done = subprocess.run(words, input=script, capture_output=True, text=True, check=True)
        answers = done.stdout.splitlines()
        assert set(self.KNOWN) < set(answers)
        assert answers[-1] == self.END
        return answers

    def feed(self) -> None:
        """One round, and wait for its answers."""
        assert self.process.stdin
        there = len(self.lines())
        self.process.stdin.write((HERE / "work.sql").read_bytes())
        self.process.stdin.flush()
        deadline_s = time.monotonic() + ANSWER_TIMEOUT_S
        wanted = there + len(self.right)
        while self.runs and len(self.lines()) < wanted and time.monotonic() < deadline_s:
            time.sleep(0.002)
        answers = self.lines()[there:]
        assert answers == self.right, f"round {self.fed}: {answers}"
        self.fed += 1


class Ripgrep(Fed):
    """ripgrep (Rust) searches a tree of files many times, and a pipe that we feed.

    One of its two threads takes the pipe, the other all the files.
    """

    PATTERN = r"\b(t[a-m]+|o[n-z]*)\b.* (e|s)[oi]n?\b"
    DIRECTORIES, FILES, TIMES = 12, 20, 60

    def __init__(self) -> None:
        self.directory = data_directory("ripgrep")
        self._make_tree()
        pipe = self.directory / "pipe"
        os.mkfifo(pipe)
        self.right = self._untraced(self.directory / "tree")
        per_block = self.directory / "blocks"
        for n, block in enumerate(blocks()):
            (per_block / f"{n}").parent.mkdir(exist_ok=True)
            (per_block / f"{n}").write_bytes(block)
        counts = self._untraced(per_block)
        self.per_block = [int(counts[f"{per_block}/{n}"]) for n in range(BLOCKS)]
        words = self._words(pipe, *[self.directory / "tree"] * self.TIMES)
        super().__init__("ripgrep", words, subprocess.DEVNULL)
        self._pipe = pipe
        self._input: int | None = None

    def _words(self, *places: Path) -> list[str]:
        return ["/usr/bin/rg", "-j2", "--no-messages", "-c", self.PATTERN, *map(str, places)]

    def _make_tree(self) -> None:
        lines = b"".join(blocks()).splitlines(keepends=True)
        chooser = random.Random(5)
        for n in range(self.DIRECTORIES):
            for m in range(self.FILES):
                file = self.directory / "tree" / f"d{n}" / f"e{m % 4}" / f"f{m}.txt"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(b"".join(chooser.choices(lines, k=150 + 40 * m)))
            (self.directory / "tree" / f"d{n}" / ".ignore").write_text("f7.*\n!f17.txt\n")

    def _untraced(self, place: Path) -> dict[str, str]:
        done = subprocess.run(self._words(place), capture_output=True, text=True, check=True)
        return dict(line.rsplit(":", 1) for line in done.stdout.splitlines())

    def feed(self) -> None:
        if self._input is None:
            self._input = os.open(self._pipe, os.O_WRONLY)
        block = blocks()[self.fed % BLOCKS]
        while block:
            block = block[os.write(self._input, block) :]
        self.fed += 1

    def close(self) -> None:
        if self._input is not None:
            os.close(self._input)
            self._input = None

    def judge(self) -> None:
        lines = self.log.read_text().splitlines()
        rows = [line.rsplit(":", 1) for line in lines]
        fed = sum(self.per_block[n % BLOCKS] for n in range(self.fed))
        assert [count for name, count in rows if name == str(self._pipe)] == [str(fed)]
        found = sorted((name, count) for name, count in rows if name != str(self._pipe))
        assert found == sorted(list(self.right.items()) * self.TIMES)
        assert not any("f7.txt" in name for name in self.right)


# Servers.


class Redis(redis_server.Redis, Server):
    """redis-server under redis-benchmark, which counts every request."""

    def __init__(self) -> None:
        super().__init__(Path("/usr/bin"), "debian-redis")

    def load(self) -> RedisLoad:
        return RedisLoad(self)

    def finish(self) -> None:
        assert "BUG REPORT" not in self.said()
        super().finish()


class RedisLoad(redis_server.Load):
    """The load of the other tests on Redis, with what all loads here have."""

    unit = "requests"

    def __init__(self, redis: Redis) -> None:
        super().__init__(redis)
        self.pid = redis.pid

    @property
    def count(self) -> int:
        return 2 * self.requests * len(self.runs)


class Memcached(memcached_server.Memcached, Server):
    """memcached under clients that compare every value."""

    def __init__(self) -> None:
        super().__init__(Path("/usr/bin/memcached"), "debian-memcached")

    def wait_until_up(self) -> None:
        self.wait_for(self.listens)

    def load(self) -> MemcachedLoad:
        return MemcachedLoad(self)


class MemcachedLoad(Load):
    unit = "round trips"

    def begin(self) -> None:
        self._stop = threading.Event()
        self._clients = [
            memcached_server.Client(self.program, number, self._stop) for number in range(3)
        ]
        for client in self._clients:
            client.start()

    def end(self) -> None:
        self._stop.set()
        for client in self._clients:
            client.join()
            self.count += client.round_trips
            self.failures += [client.failure] * bool(client.failure)


class Web(Server):
    """A web server with some files; `worker` is the process that answers."""

    def __init__(self, name: str) -> None:
        self.port = free_port()
        self.directory = data_directory(name)
        self.files = {f"{i}.txt": blocks()[i][: 37 * 11**i] for i in range(6)}
        self.files["index.html"] = b"<html><body>It works</body></html>\n"
        pages = self.directory / "html"
        pages.mkdir()
        for name_of_file, content in self.files.items():
            (pages / name_of_file).write_bytes(content)
        super().__init__(self.configure(), f"debian-{name}")

    def configure(self) -> list[object]:
        """Write the configuration; returns the command line."""
        raise NotImplementedError

    @property
    def worker(self) -> int:
        return self.pid

    def answers(self) -> bool:
        try:
            return self.get("index.html")[0] == 200
        except OSError:
            return False

    def get(self, path: str, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=ANSWER_TIMEOUT_S)
        with contextlib.closing(connection):
            connection.request("GET", f"/{path}", headers=headers or {})
            answer = connection.getresponse()
            return answer.status, answer.read()

    def wait_until_up(self) -> None:
        self.wait_for(self.answers)

    def load(self) -> WebLoad:
        return WebLoad(self)


class Nginx(Web):
    """One master, one worker, as Debian's nginx.conf has them."""

    QUIT = signal.SIGQUIT

    def configure(self) -> list[object]:
        here = self.directory
        places = "\n".join(
            f"    {kind}_temp_path {here}/{kind};"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        (here / "nginx.conf").write_text(f"""
user www-data;
worker_processes 1;
daemon off;
pid {here}/nginx.pid;
error_log stderr notice;
events {{ worker_connections 256; }}
http {{
    include /etc/nginx/mime.types;
    sendfile on;
    tcp_nopush on;
    gzip on;
    gzip_types text/plain;
    access_log {here}/access.log;
{places}
    server {{
        listen 127.0.0.1:{self.port};
        root {here}/html;
        location ~ ^/twice/(.*)$ {{ proxy_pass http://127.0.0.1:{self.port}/$1; }}
        location = /status {{ stub_status; access_log off; }}
    }}
}}
""")
        return ["/usr/sbin/nginx", "-p", here, "-c", here / "nginx.conf", "-e", "stderr"]

    @property
    def worker(self) -> int:
        (worker,) = children(self.pid)
        return worker

    def finish(self) -> None:
        status = self.get("status")[1].decode()
        found = re.search(r"requests\s+(\d+) (\d+) (\d+)", status)
        assert found, status
        assert found[1] == found[2], f"connections accepted and handled: {status}"
        super().finish()
        codes = {line.split('" ')[1][:3] for line in self._access_log()}
        assert codes <= {"200", "499"}, codes  # 499: the client was gone before the answer

    def _access_log(self) -> list[str]:
        return (self.directory / "access.log").read_text().splitlines()


class Lighttpd(Web):
    """lighttpd, as its documentation's smallest configuration has it, with two modules."""

    QUIT = signal.SIGINT

    def configure(self) -> list[object]:
        here = self.directory
        cache = here / "cache"
        cache.mkdir()
        for place in (here, cache):
            os.chown(place, *pwd.getpwnam("www-data")[2:4])
        (here / "lighttpd.conf").write_text(f"""
server.modules = ( "mod_accesslog", "mod_deflate" )
server.document-root = "{here}/html"
server.bind = "127.0.0.1"
server.port = {self.port}
server.username = "www-data"
server.groupname = "www-data"
accesslog.filename = "{here}/access.log"
index-file.names = ( "index.html" )
mimetype.assign = ( ".html" => "text/html", ".txt" => "text/plain" )
deflate.mimetypes = ( "text/plain" )
deflate.allowed-encodings = ( "gzip" )
""")
        return ["/usr/sbin/lighttpd", "-D", "-f", here / "lighttpd.conf"]


class WebLoad(Load):
    """wrk, run after run, and a client of our own that compares every body."""

    WORDS = ("-t", "1", "-c", "8", "-d", "2s", "--timeout", "30s")

    def __init__(self, web: Web) -> None:
        super().__init__(web)
        self.web = web
        self.pid = web.worker
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._counted, args=(work,))
            for work in (self._stress, self._compare)
        ]
        self._lock = threading.Lock()

    def begin(self) -> None:
        for thread in self._threads:
            thread.start()
        self.program.wait_for(lambda: self.count >= len(self.web.files) or self.failures)

    def end(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _counted(self, work: Callable[[int], int]) -> None:
        try:
            for turn in itertools.count():
                done = work(turn)
                with self._lock:
                    self.count += done
                if self._stop.is_set():
                    return
        except (OSError, AssertionError, http.client.HTTPException) as wrong:
            self.failures.append(repr(wrong))

    def _stress(self, turn: int) -> int:
        name = list(self.web.files)[turn % 4]
        url = f"http://127.0.0.1:{self.web.port}/{name}"
        done = subprocess.run(
            ["/usr/bin/wrk", *self.WORDS, url],
            capture_output=True,
            text=True,
            timeout=ANSWER_TIMEOUT_S,
            check=False,
        )
        said = done.stdout + done.stderr
        assert done.returncode == 0, said
        assert "Socket errors" not in said, said
        assert "Non-2xx" not in said, said
        found = re.search(r"(\d+) requests in", said)
        assert found, said
        return int(found[1])

    def _compare(self, turn: int) -> int:
        twice = "twice/" if isinstance(self.web, Nginx) and turn % 3 == 0 else ""
        for name, content in self.web.files.items():
            status, body = self.web.get(f"{twice}{name}")
            assert (status, body) == (200, content), (name, status, body[:100])
            status, body = self.web.get(f"{twice}{name}", {"Accept-Encoding": "gzip"})
            body = gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body
            assert (status, body) == (200, content), (name, status, body[:100])
        time.sleep(0.02)
        return 2 * len(self.web.files)


class Postgres(Server):
    """One cluster of PostgreSQL, run by the user postgres; the target is one of its processes."""

    QUIT = signal.SIGINT  # fast shutdown
    USER = "postgres"
    SCALE = 2

    def __init__(self, target: str) -> None:
        self.target = target
        self.port = free_port()
        places = Path("/usr/lib/postgresql").glob("*/bin/postgres")
        self.programs = max(places, key=lambda path: int(path.parts[4])).parent
        self.directory = data_directory(f"postgres-{target}")
        os.chown(self.directory, *pwd.getpwnam(self.USER)[2:4])
        cluster = self.directory / "cluster"
        user = ["setpriv", "--reuid", self.USER, "--regid", self.USER, "--clear-groups"]
        make = [self.programs / "initdb", "--no-sync", "-A", "trust", "--locale=C.UTF-8", cluster]
        self._run([*user, *make])
        words = [self.programs / "postgres", "-D", cluster, "-p", self.port, "-h", "127.0.0.1"]
        words += ["-k", ""]
        super().__init__([*user, *words], f"debian-postgres-{target}")

    def _run(self, words: Sequence[object]) -> str:
        done = subprocess.run(
            [str(word) for word in words],
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=ANSWER_TIMEOUT_S,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    def client(self, program: str, *words: object) -> list[str]:
        """The command line of one of PostgreSQL's clients."""
        where = ["-h", "127.0.0.1", "-p", str(self.port), "-U", self.USER]
        return [str(self.programs / program), *where, *map(str, words)]

    def ask(self, query: str) -> str:
        return self._run(self.client("psql", "-XAtqc", query, "postgres")).strip()

    def wait_until_up(self) -> None:
        def is_ready() -> bool:
            words = self.client("pg_isready", "-q")
            return subprocess.run(words, check=False).returncode == 0

        self.wait_for(is_ready, 2 * START_TIMEOUT_S)
        self._run(self.client("pgbench", "-i", "-q", "-s", self.SCALE, "postgres"))

    def load(self) -> PostgresLoad:
        return PostgresLoad(self)

    def finish(self) -> None:
        super().finish()
        said = self.said().replace("FATAL:  the database system is starting up", "")
        assert not re.search(r"terminated by signal|FATAL|not properly shut down", said)


class PostgresLoad(Load):
    """pgbench twice: sessions that last, and a new one for every transaction."""

    unit = "transactions"

    def __init__(self, postgres: Postgres) -> None:
        super().__init__(postgres)
        self.postgres = postgres

    def begin(self) -> None:
        self._before = self._history()
        self._runs = [
            self._start("steady", "-c", 3),
            self._start("churn", "-c", 1, "-C", "-S"),
        ]
        self.program.wait_for(lambda: self._history() > self._before + 100)
        if self.postgres.target == "backend":
            active = "SELECT pid FROM pg_stat_activity WHERE application_name = 'steady'"
            self.pid = int(self.postgres.ask(f"{active} ORDER BY pid LIMIT 1"))

    def _start(self, name: str, *words: object) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.postgres.client("pgbench", "-n", "-T", BIG_ENOUGH_S, *words, "postgres"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PGAPPNAME": name},
        )

    def _history(self) -> int:
        return int(self.postgres.ask("SELECT count(*) FROM pgbench_history"))

    def end(self) -> None:
        done = []
        for run in self._runs:
            run.send_signal(signal.SIGALRM)  # what ends it after -T seconds, only earlier
        for run in self._runs:
            try:
                said, _ = run.communicate(timeout=ANSWER_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                run.kill()
                said = f"did not end\n{run.communicate()[0]}"
            done.append(self._judge(run.returncode, said))
        if not self.failures:
            self._compare(done[0])
        self.count = sum(done)

    def _judge(self, code: int, said: str) -> int:
        whole = re.search(r"number of transactions actually processed: (\d+)$", said, re.MULTILINE)
        none = re.search(r"^number of failed transactions: 0 \(0\.000%\)$", said, re.MULTILINE)
        if code or not whole or not none or re.search("aborted|error|did not end", said):
            self.failures.append(f"pgbench ended with {code}: {said}")
            return 0
        return int(whole[1])

    def _compare(self, steady: int) -> None:
        """Every transaction is in the database, whole."""
        found = self._history() - self._before
        if found != steady:
            self.failures.append(f"{found} rows of history for {steady} transactions")
        tables = (("accounts", "a"), ("tellers", "t"), ("branches", "b"))
        sums = [self.postgres.ask(f"SELECT sum({c}balance) FROM pgbench_{t}") for t, c in tables]
        sums.append(self.postgres.ask("SELECT sum(delta) FROM pgbench_history"))
        if len(set(sums)) != 1:
            self.failures.append(f"balances differ: {sums}")


class Mariadb(Server):
    """MariaDB (C++): a server of its own user, and clients that compare their answers."""

    USER = "nobody"

    def __init__(self) -> None:
        self.directory = data_directory("mariadb")
        self.socket = Path(tempfile.mkdtemp(prefix="textpoke-")) / "s"  # at most 107 characters
        number = pwd.getpwnam(self.USER)
        for place in (self.directory, self.socket.parent):
            os.chown(place, number.pw_uid, number.pw_gid)
        make = ["--no-defaults", f"--datadir={self.directory}/data", f"--user={self.USER}"]
        make += ["--auth-root-authentication-method=normal", "--skip-test-db"]
        with (LOGS / "debian-mariadb-install.log").open("wb") as log:
            subprocess.run(
                ["/usr/bin/mariadb-install-db", *make], check=True, stdout=log, stderr=log
            )
        words = ["/usr/sbin/mariadbd", "--no-defaults", f"--datadir={self.directory}/data"]
        words += [f"--user={self.USER}", f"--socket={self.socket}", "--skip-networking"]
        words += ["--innodb-buffer-pool-size=32M", "--innodb-log-file-size=16M"]
        super().__init__(words, "debian-mariadb")
        self.right = ""

    def __exit__(self, *words: object) -> None:
        super().__exit__(*words)
        shutil.rmtree(self.socket.parent, ignore_errors=True)

    def ask(self, script: str, database: str = "") -> str:
        words = ["/usr/bin/mariadb", "--no-defaults", f"--socket={self.socket}", "-uroot", "-N"]
        done = subprocess.run(
            [*words, *[database] * bool(database)],
            input=script,
            capture_output=True,
            text=True,
            timeout=ANSWER_TIMEOUT_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def answers(self) -> bool:
        with contextlib.suppress(AssertionError):
            return self.ask("SELECT 1") == "1\n"
        return False

    def wait_until_up(self) -> None:
        self.wait_for(self.answers)
        self.ask("CREATE DATABASE base; CREATE DATABASE work0; CREATE DATABASE work1")
        self.right = self.ask((HERE / "work_mariadb.sql").read_text(), "base")
        assert "primes\t303\t277050" in self.right

    def load(self) -> MariadbLoad:
        return MariadbLoad(self)

    def finish(self) -> None:
        super().finish()
        assert not re.search(r"\[ERROR\]|got signal", self.said())


class MariadbLoad(Load):
    """Two clients, each with a connection a script."""

    unit = "scripts"

    def begin(self) -> None:
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._ask_again_and_again, args=(f"work{n}",)) for n in range(2)
        ]
        for thread in self._threads:
            thread.start()
        self.program.wait_for(lambda: self.count >= WARM_UP or self.failures)

    def end(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask_again_and_again(self, database: str) -> None:
        script = (HERE / "work_mariadb.sql").read_text()
        try:
            while not self._stop.is_set():
                answer = self.program.ask(script, database)
                assert answer == self.program.right, answer
                self.count += 1
        except (OSError, AssertionError, subprocess.TimeoutExpired) as wrong:
            self.failures.append(repr(wrong))


class Subject:
    """One row of the table: how a program is started, and which of its code is patched.

    Args:
        package: Its name in tools/install_real.sh.
        start: Makes it.
        libraries: Patterns of modules besides the main program and libc.
        threads_vary: It starts and ends threads by itself.
    """

    def __init__(
        self,
        package: str,
        start: Callable[[], Program],
        libraries: tuple[str, ...] = (),
        *,
        threads_vary: bool = False,
    ) -> None:
        self.package, self.start, self.libraries = package, start, libraries
        self.threads_vary = threads_vary

    @contextlib.contextmanager
    def running(self):
        """Install it, start it, wait until it is up."""
        install(self.package)
        with self.start() as program:
            program.wait_until_up()
            yield program


SUBJECTS = {
    # What the requirement names.
    "redis-server": Subject("redis", Redis),
    "postgres-postmaster": Subject("postgres", functools.partial(Postgres, "postmaster")),
    "postgres-backend": Subject("postgres", functools.partial(Postgres, "backend")),
    "nginx": Subject("nginx", functools.partial(Nginx, "nginx")),
    "python3": Subject("python", python),
    "sqlite3": Subject("sqlite", Sqlite, ("libsqlite3",)),
    "ripgrep": Subject("ripgrep", Ripgrep),
    "7zip": Subject("sevenzip", SevenZip, ("libstdc++",)),
    # What it does not name.
    "cmake": Subject("cmake", cmake),
    "mariadbd": Subject("mariadb", Mariadb, threads_vary=True),
    "memcached": Subject("memcached", Memcached),
    "lighttpd": Subject("lighttpd", functools.partial(Lighttpd, "lighttpd")),
    "perl": Subject("perl", perl),
    "lua": Subject("lua", lua),
    "xz": Subject("xz", Xz, ("liblzma",)),
}
