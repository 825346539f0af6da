# SPDX-License-Identifier: Apache-2.0
"""The functions of libc on which blk, wakeup_rt and irqsoff stand, and what to record of a call.

Pure tables: `TRACERS` says what the agent writes, `find` where that is in an image, `known` which
of a capture's sites is which. glibc and musl; `docs/tracing.md` says what they do not see.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from textpoke import elf
from textpoke.payload import CALLER, Field, Layout

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from textpoke._capture_json import SiteName

PATH_KIND: Final = "str:16"
"""128 bytes of a path; what is longer is cut, a snapshot of the open files has all of it."""
SYS_FUTEX: Final = 202

_SYMBOL = struct.Struct("<IBBHQQ")
_SHT_GNU_VERSYM = 0x6FFFFFFF
_VERSION_HIDDEN = 0x8000
_FUNCTION_TYPES = (2, 10)
_LONGEST_NAME = 256


@dataclass(frozen=True, slots=True)
class Word:
    """One value to record.

    Attributes:
        name: As the reports know it.
        kind: As in a layout.
        source: "caller" (return address), "arg1" to "arg6" (the text there, for a `str:` kind),
            "*arg2" (the eight bytes it points to; 0 where that cannot be read), or "result".
    """

    name: str
    kind: str
    source: str


@dataclass(frozen=True, slots=True)
class Function:
    """A function of libc.

    Attributes:
        name: What reports call it.
        family: Functions of one family work on one kind of object: "io", "mutex", "cond", ...
        role: What a call of it does: "read", "acquire", "wait", "wake", ...
        symbols: All names that it may have; several functions may share one name.
        entry: What to record when it is entered.
        exit: What to record when it returns.
    """

    name: str
    family: str
    role: str
    symbols: tuple[str, ...]
    entry: tuple[Word, ...]
    exit: tuple[Word, ...]

    @property
    def layout(self) -> Layout:
        """The words as a capture's `layouts` name them."""
        return Layout(*(tuple(Field(w.name, w.kind) for w in ws) for ws in (self.entry, self.exit)))


_CALLER = Word("caller", CALLER, "caller")
_INT = (Word("result", "i32", "result"),)
_LONG = (Word("result", "i64", "result"),)
_COUNT = Word("count", "u64", "arg3")
_OBJECT = Word("object", "ptr", "arg1")


def _fd(number: int = 1, name: str = "fd") -> Word:
    return Word(name, "i32", f"arg{number}")


def _io(names: str, role: str, *words: Word, result: tuple[Word, ...] = _LONG) -> Function:
    name, *aliases = names.split()
    return Function(name, "io", role, (name, *aliases), (_CALLER, *words), result)


def _of(family: str, role: str, names: str, *more: Word) -> Function:
    name, *aliases = names.split()
    return Function(name, family, role, (name, *aliases), (_CALLER, _OBJECT, *more), _INT)


IO: Final = (
    _io("open open64 __open_nocancel __open64_nocancel", "open",
        Word("path", PATH_KIND, "arg1"), Word("flags", "i32", "arg2"), result=_INT),
    _io("openat openat64 __openat_nocancel __openat64_nocancel", "open",
        _fd(1, "directory"), Word("path", PATH_KIND, "arg2"), Word("flags", "i32", "arg3"),
        result=_INT),
    _io("creat creat64", "open", Word("path", PATH_KIND, "arg1"), result=_INT),
    _io("close __close_nocancel", "close", _fd(), result=_INT),
    _io("read __read_nocancel", "read", _fd(), _COUNT),
    _io("pread pread64 __pread64_nocancel", "read", _fd(), _COUNT, Word("offset", "i64", "arg4")),
    _io("readv", "read", _fd()),
    _io("preadv preadv64", "read", _fd(), Word("offset", "i64", "arg4")),
    _io("preadv2 preadv64v2", "read", _fd(), Word("offset", "i64", "arg4")),
    _io("recv", "read", _fd(), _COUNT),
    _io("recvfrom", "read", _fd(), _COUNT),
    _io("recvmsg", "read", _fd()),
    _io("recvmmsg", "messages", _fd(), result=_INT),
    _io("write __write_nocancel", "write", _fd(), _COUNT),
    _io("pwrite pwrite64 __pwrite64_nocancel", "write", _fd(), _COUNT,
        Word("offset", "i64", "arg4")),
    _io("writev", "write", _fd()),
    _io("pwritev pwritev64", "write", _fd(), Word("offset", "i64", "arg4")),
    _io("pwritev2 pwritev64v2", "write", _fd(), Word("offset", "i64", "arg4")),
    _io("send", "write", _fd(), _COUNT),
    _io("sendto", "write", _fd(), _COUNT),
    _io("sendmsg", "write", _fd()),
    _io("sendmmsg", "messages", _fd(), result=_INT),
    _io("sendfile sendfile64", "copy", _fd(), _fd(2, "from"), Word("count", "u64", "arg4")),
    _io("copy_file_range", "copy", _fd(3), _fd(1, "from"), Word("count", "u64", "arg5")),
    _io("splice", "copy", _fd(3), _fd(1, "from"), Word("count", "u64", "arg5")),
    _io("socket", "socket", Word("domain", "i32", "arg1"), Word("type", "i32", "arg2"),
        result=_INT),
    _io("accept", "accept", _fd(), result=_INT),
    _io("accept4", "accept", _fd(), result=_INT),
    _io("connect", "connect", _fd(), result=_INT),
    _io("dup", "dup", _fd(), result=_INT),
    _io("dup2", "dup", _fd(), _fd(2, "new"), result=_INT),
    _io("dup3", "dup", _fd(), _fd(2, "new"), result=_INT),
    _io("fsync", "sync", _fd(), result=_INT),
    _io("fdatasync", "sync", _fd(), result=_INT),
    _io("sync_file_range", "sync", _fd(), result=_INT),
    _io("ftruncate ftruncate64", "truncate", _fd(), Word("length", "i64", "arg2"), result=_INT),
    _io("lseek lseek64 llseek", "seek", _fd(), Word("offset", "i64", "arg2")),
)  # fmt: skip

_MUTEX = (
    _of("mutex", "acquire", "pthread_mutex_lock"),
    _of("mutex", "acquire", "pthread_mutex_timedlock"),
    _of("mutex", "acquire", "pthread_mutex_clocklock"),
    _of("mutex", "try", "pthread_mutex_trylock"),
    _of("mutex", "release", "pthread_mutex_unlock"),
)
_RWLOCK = (
    _of("rwlock", "acquire", "pthread_rwlock_wrlock"),
    _of("rwlock", "acquire", "pthread_rwlock_timedwrlock"),
    _of("rwlock", "acquire", "pthread_rwlock_clockwrlock"),
    _of("rwlock", "try", "pthread_rwlock_trywrlock"),
    _of("rwlock", "share", "pthread_rwlock_rdlock"),
    _of("rwlock", "share", "pthread_rwlock_timedrdlock"),
    _of("rwlock", "share", "pthread_rwlock_clockrdlock"),
    _of("rwlock", "tryshare", "pthread_rwlock_tryrdlock"),
    _of("rwlock", "release", "pthread_rwlock_unlock"),
)
_LOCK_OF_WAIT = Word("mutex", "ptr", "arg2")
_CONDITION_WAITS = (
    _of("cond", "wait", "pthread_cond_wait", _LOCK_OF_WAIT),
    _of("cond", "wait", "pthread_cond_timedwait", _LOCK_OF_WAIT),
    _of("cond", "wait", "pthread_cond_clockwait", _LOCK_OF_WAIT),
)
_WAKES = (
    _of("cond", "wake", "pthread_cond_signal"),
    _of("cond", "wakeall", "pthread_cond_broadcast"),
    _of("sem", "wake", "sem_post"),
    _of("sem", "wait", "sem_wait"),
    _of("sem", "wait", "sem_timedwait"),
    _of("sem", "wait", "sem_clockwait"),
    _of("sem", "try", "sem_trywait"),
    _of("barrier", "wait", "pthread_barrier_wait"),
    Function(
        "syscall", "futex", "futex", ("syscall",),
        (
            _CALLER,
            Word("number", "i64", "arg1"),
            Word("object", "ptr", "arg2"),
            Word("operation", "i32", "arg3"),
        ),
        _LONG,
    ),
)  # fmt: skip
_SPIN = (
    _of("spin", "acquire", "pthread_spin_lock"),
    _of("spin", "try", "pthread_spin_trylock"),
    # glibc has both names at one address: to release what nobody holds does nothing here.
    _of("spin", "release", "pthread_spin_unlock pthread_spin_init"),
)
_MASK_WORDS = (
    _CALLER,
    Word("how", "i32", "arg1"),
    Word("given", "ptr", "arg2"),
    Word("set", "u64", "*arg2"),
)
_MASKS = tuple(
    Function(name, "mask", "mask", (name,), _MASK_WORDS, _INT)
    for name in ("pthread_sigmask", "sigprocmask")
)

TRACERS: Final[Mapping[str, tuple[Function, ...]]] = {
    "blk": IO,
    "wakeup_rt": (*_MUTEX, *_RWLOCK, *_CONDITION_WAITS, *_WAKES),
    "irqsoff": (*_MUTEX, *_RWLOCK, *_CONDITION_WAITS, *_SPIN, *_MASKS),
}
"""What each of the three tracers records."""

_WRAPPERS: Final = frozenset(
    [
        ("creat", "open"),
        ("recv", "recvfrom"),
        ("send", "sendto"),
        ("preadv2", "preadv"),
        ("pwritev2", "pwritev"),
        ("dup2", "dup3"),
        ("accept", "accept4"),
        ("sigprocmask", "pthread_sigmask"),
    ]
)
_INNER_FAMILIES: Final = frozenset(
    [("mutex", "mutex"), ("rwlock", "rwlock"), ("cond", "cond"), ("cond", "mutex")]
)


def is_inner(outer: Function, inner: Function) -> bool:
    """Whether a call of `inner` made directly by `outer` is a part of the outer call.

    musl builds its functions of one another, by the names that programs use too; a handler of a
    signal that comes while `outer` waits is not meant.
    """
    if outer.family == inner.family == "sem":
        return outer.role == "wait" and inner.role in ("wait", "try")
    pair = (outer.family, inner.family)
    return pair in _INNER_FAMILIES or (outer.name, inner.name) in _WRAPPERS


def find(image: elf.Image, functions: Iterable[Function]) -> dict[int, Function]:
    """Where the functions are in a libc (or a static program): ELF virtual address to function.

    Names at one address are one entry. Of several versions of a symbol only the default one
    counts: glibc's `pthread_cond_*@GLIBC_2.2.5`, for programs of before 2003, end in it.

    Raises:
        BadElf: A table points outside of the file.
    """
    wanted = {symbol: function for function in functions for symbol in _spellings(function)}
    found: dict[int, Function] = {}
    for name, vaddr in _exported(image, wanted):
        found.setdefault(vaddr, wanted[name])
    return found


def function_names(found: Mapping[int, Function]) -> dict[str, str]:
    """The field `functions` of META: what each return address is, whatever its symbol says."""
    return {str(address): function.name for address, function in found.items()}


def known(
    sites: Sequence[SiteName], notes: Iterable[Mapping[str, object]], tracer: str
) -> list[Function]:
    """The function of each site of a capture; `OTHER` for those that are in no table.

    Args:
        sites: Of the capture.
        notes: The JSON of its blocks: `functions` there wins over the sites' own names.
        tracer: Whose table.
    """
    table = TRACERS.get(tracer, ())
    by_name = {function.name: function for function in table}
    by_symbol = {symbol: function for function in table for symbol in _spellings(function)}
    given: dict[object, object] = {}
    for note in notes:
        names = note.get("functions")
        given.update(names if isinstance(names, dict) else {})
    found: list[Function] = []
    for site in sites:
        name = given.get(str(site.address))
        if isinstance(name, str):
            found.append(by_name.get(name, OTHER))
        elif not given and is_libc(site.module):
            found.append(by_symbol.get(site.function, OTHER))
        else:
            found.append(OTHER)
    return found


OTHER: Final = Function("", "", "", (), (), ())
"""Stands for every function that is in no table."""


def is_libc(module: str) -> bool:
    """Whether a module's functions of these names are meant: libc, libpthread, musl's loader."""
    return module.startswith(("libc.so", "libc-", "libpthread", "ld-musl", "libc.musl"))


def _spellings(function: Function) -> Iterator[str]:
    for symbol in function.symbols:
        yield symbol
        yield f"__{symbol}"
        yield f"__libc_{symbol}"


def _exported(image: elf.Image, wanted: Collection[str]) -> Iterator[tuple[str, int]]:
    sections = image.sections
    tables = [s for s in sections if s.type == elf.SHT_DYNSYM] or [
        s for s in sections if s.type == elf.SHT_SYMTAB
    ]
    for table in tables:
        if table.link >= len(sections):
            continue
        strings = image.contents(sections[table.link])
        content = image.contents(table)
        rows = len(content) // _SYMBOL.size
        elf.require_rows(image, rows, "symbols")
        hidden = _hidden(image, rows) if table.type == elf.SHT_DYNSYM else ()
        for index, row in enumerate(_SYMBOL.iter_unpack(content[: rows * _SYMBOL.size])):
            if row[1] & 15 not in _FUNCTION_TYPES or not row[3] or index in hidden:
                continue
            name = elf.string_at(strings, row[0], _LONGEST_NAME)
            if name in wanted:
                yield name, row[4]


def _hidden(image: elf.Image, rows: int) -> frozenset[int]:
    # Symbols that a program gets only if it was linked against an old version.
    for section in image.sections:
        if section.type == _SHT_GNU_VERSYM:
            content = image.contents(section)
            count = min(rows, len(content) // 2)
            versions = struct.unpack_from(f"<{count}H", content)
            return frozenset(i for i, version in enumerate(versions) if version & _VERSION_HIDDEN)
    return frozenset()
