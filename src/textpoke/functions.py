# SPDX-License-Identifier: Apache-2.0
"""Every function of an unmodified module, and how its entry can be patched.

Names and places come from all that a file keeps: symbol tables (its own, or those that strip has
put elsewhere), unwind entries, PLT slots. The survey decodes all code once and says of each entry
whether its first five bytes can give way to a jump. A large library has hundreds of thousands of
functions, so they stay in columns; a `Site` is made of those that were chosen.
"""

from __future__ import annotations

import bisect
import collections
import errno
import struct
from typing import TYPE_CHECKING

from textpoke import _survey_cache, elf
from textpoke._errors import BadElf
from textpoke._function_tables import FunctionTables
from textpoke._native import ffi, lib
from textpoke.demangle import demangle
from textpoke.model import SiteKind, make_site

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from textpoke._function_tables import Piece, SymbolTable
    from textpoke._native import Pointer
    from textpoke.model import Module, Site

REASONS: dict[int, str] = {
    lib.TP_REFUSE_COLD: "it is a part of a function that is jumped to, not an entry",
    lib.TP_REFUSE_SIGRETURN: "it is the way back from signal handlers, known by its bytes",
    lib.TP_REFUSE_GO: "it is Go code, whose stacks are small and move",
    lib.TP_REFUSE_SHORT: "it ends before five bytes, and no padding follows",
    lib.TP_REFUSE_CALL: "a call in its first five bytes is not their last instruction",
    lib.TP_REFUSE_SYSCALL: "a system call is in its first five bytes",
    lib.TP_REFUSE_TRAP: "an instruction that traps is in its first five bytes",
    lib.TP_REFUSE_BRANCH: "a branch of the module goes into its first five bytes",
    lib.TP_REFUSE_TABLE: "a jump table, pointer or landing pad goes into its first five bytes",
    lib.TP_REFUSE_ENTRY: "another function begins in its first five bytes",
    lib.TP_REFUSE_DECODE: "its first bytes are no instructions that we know",
    lib.TP_REFUSE_OUTSIDE: "its address is not in the module's code",
    lib.TP_REFUSE_MOVE: "an instruction in its first five bytes works in no other place",
}
"""Why a function's entry cannot be displaced, by enum tp_refusal: a clause for people."""

_SITE_BYTES = 5
_LEAST_SHARE = 8
_LONGEST_NAME = 16 * 1024
_MOST_NAME_BYTES = 256 << 20
_WHY_NOT_MAPPED = "its address is not in the module's code as it is mapped"
_WORTH_KEEPING_BYTES = 1 << 18  # less code is surveyed faster than its survey is read
# struct tp_function: vaddr, bytes, flags, at, window, heads, reason, first, alone.
_ROW = struct.Struct("<QIBBBBBBB5x")
_LABEL_BYTES = 8
_AT, _REASON = (
    ffi.offsetof("struct tp_function", "at"),
    ffi.offsetof("struct tp_function", "reason"),
)


def find_functions(image: elf.Image, module: Module) -> Functions:
    """Return every function of one module, by address.

    A survey of the same bytes that was made before is taken from the cache (`_survey_cache`).

    Args:
        image: The module's file; it may be closed afterwards.
        module: Gives the runtime addresses (`bias`), the name, and the path for debug files.

    Raises:
        BadElf: A table in the file points outside of it, or has more rows than a program has.
    """
    tables = FunctionTables(image, module.path)
    code_bytes = sum(len(content) for _, content in tables.code)
    if code_bytes < _WORTH_KEEPING_BYTES or not _survey_cache.is_on():
        rows, labels = _survey(image, tables)
    else:
        rows, labels = _kept_survey(image, tables)
    return Functions(module, tables.symbols, tables.code, rows, labels)


class Functions:
    """The functions of one module by ELF virtual address; one is spoken of by its index.

    Args:
        module: What they belong to.
        symbols: The tables that labels speak of.
        code: Executable segments: ELF address, bytes.
        rows: Array of struct tp_function, sorted by address.
        labels: Array of struct tp_label, one for each function.
    """

    def __init__(
        self,
        module: Module,
        symbols: Sequence[SymbolTable],
        code: Sequence[Piece],
        rows: bytes,
        labels: bytes,
    ) -> None:
        self._module = module
        self._symbols = symbols
        self._code = code
        self._firsts = [vaddr for vaddr, _ in code]
        self._last: Piece = (0, b"")  # the segment that was looked at last
        self._rows = rows
        # One word each: text in the low half, then table and flags, a byte each.
        self._labels = memoryview(labels).cast("Q")
        self._vaddrs = memoryview(rows).cast("Q")[:: _ROW.size // 8]
        self._reasons = rows[_REASON :: _ROW.size]

    def __len__(self) -> int:
        return len(self._labels)

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self)))

    @property
    def found(self) -> int:
        """How many functions there are."""
        return len(self)

    @property
    def displaceable(self) -> int:
        """How many can be patched at their entry."""
        return self._reasons.count(lib.TP_REFUSE_NOTHING)

    @property
    def by_reason(self) -> dict[str, int]:
        """How many cannot, by reason, the most frequent one first."""
        counts = collections.Counter(self._reasons)
        counts.pop(lib.TP_REFUSE_NOTHING, None)
        return {REASONS[reason]: count for reason, count in counts.most_common()}

    def displaceable_indexes(self) -> list[int]:
        """Return the indexes of those that can be patched at their entry."""
        return [i for i, reason in enumerate(self._reasons) if not reason]

    def index_of(self, vaddr: int) -> int:
        """Return the index of the function that begins at an ELF virtual address, else -1."""
        index = bisect.bisect_left(self._vaddrs, vaddr)
        return index if index < len(self) and self._vaddrs[index] == vaddr else -1

    def last_before(self, vaddr: int) -> int:
        """Return the index of the last function that begins at or before an address, or -1."""
        return bisect.bisect_right(self._vaddrs, vaddr) - 1

    def vaddr(self, index: int) -> int:
        """Return the ELF virtual address of the function's first byte."""
        return self._vaddrs[index]

    def entry(self, index: int) -> int:
        """Return the runtime address of the function's first byte."""
        return self._vaddrs[index] + self._module.bias

    def site(self, index: int) -> int:
        """Return the runtime address of the first byte that changes: behind an endbr64."""
        return self.entry(index) + self._rows[index * _ROW.size + _AT]

    def window(self, index: int) -> int:
        """Return how many bytes go elsewhere, from the site on: 0 for a refused one."""
        return self._row(index)[4]

    def heads(self, index: int) -> int:
        """Return where instructions begin in the window: bit i stands for i bytes (1 to 4)."""
        return self._row(index)[5]

    def first(self, index: int) -> int:
        """Return the bytes of a refused one's first instruction if that alone could be displaced.

        It could by a JMP of one changed byte (struct tp_function); 0 where that is impossible.
        """
        return self._row(index)[7]

    def alone(self, index: int) -> int:
        """Return the bytes of a refused one's first instruction if an int3 could stand for it.

        0 where it cannot be done elsewhere, or nothing may be known of the function.
        """
        return self._row(index)[8]

    def flags(self, index: int) -> int:
        """Return bits of enum tp_function_flags."""
        return self._row(index)[2]

    def reason(self, index: int) -> str | None:
        """Return why the entry cannot be displaced, None when it can."""
        refusal = self._reasons[index]
        return REASONS[refusal] if refusal else None

    def displaced(self, index: int) -> bytes:
        """Return the bytes of the window."""
        vaddr, _, _, at, window, *_ = self._row(index)
        return self.code_at(vaddr + at, window)

    def source(self, index: int) -> str:
        """Return what named it: see `Site.source`."""
        return self._sources([index])[0]

    def is_resolver(self, index: int) -> bool:
        """Tell whether it only picks an implementation: the loader calls it, nobody else."""
        return bool(self._labels[index] >> 40 & lib.TP_LABEL_RESOLVER)

    def name(self, index: int) -> str:
        """Return the raw name.

        It is the symbol's, with "@plt" for a PLT slot; "function+0x12" for a part of a function;
        "module+0x1234" where nothing has a name. Numbers are as in `Symbols.name`.
        """
        return self.names([index])[0]

    def names(self, indexes: Iterable[int]) -> list[str]:
        """Return the raw names of many functions; see `name`.

        Raises:
            BadElf: They are too long: symbols may share a string of a gigabyte.
        """
        stems, endings = self._stems(list(indexes))
        return list(map(str.__add__, stems, endings))

    def readable_names(self, indexes: Iterable[int]) -> list[str]:
        """Return the names of many functions, demangled.

        Raises:
            BadElf: As for `names`.
        """
        stems, endings = self._stems(list(indexes))
        return list(map(str.__add__, demangle(stems), endings))

    def sites(self, indexes: Iterable[int], *, traps: bool = False) -> list[Site]:
        """Return one site for each of the functions, refused ones too.

        Args:
            indexes: The functions.
            traps: Where nothing else helps, an int3 may stay for good (`SiteKind.TRAP`).

        Raises:
            BadElf: As for `names`.
        """
        chosen = list(indexes)
        stems, endings = self._stems(chosen)
        bias, module = self._module.bias, self._module.name
        is_mapped, bytes_at = mapped(self._module), self.code_at
        rows, row_at, row_bytes = self._rows, _ROW.unpack_from, _ROW.size
        sites: list[Site] = []
        for index, stem, ending, readable, source in zip(
            chosen, stems, endings, demangle(stems), self._sources(chosen), strict=True
        ):
            entry, _, _, at, window, heads, refusal, first, alone = row_at(rows, index * row_bytes)
            vaddr = entry + at
            kind = SiteKind.PUN if first else SiteKind.ENTRY
            if refusal and not first and traps and alone:
                kind, first = SiteKind.TRAP, alone
            content = bytes_at(vaddr, max(window, first, _SITE_BYTES))
            old = content[: 1 if kind is SiteKind.TRAP else _SITE_BYTES]
            reason = REASONS[refusal] if refusal and not first else None
            if reason is None and not is_mapped(vaddr + bias, len(old)):
                reason = _WHY_NOT_MAPPED
            good = reason is None
            sites.append(
                make_site(
                    vaddr + bias,
                    len(old),
                    kind if good else None,
                    module,
                    readable + ending,
                    stem + ending,
                    vaddr,
                    old,
                    source,
                    reason,
                    entry + bias,
                    content[: first or window] if good else b"",
                    heads if good else 0,
                )
            )
        return sites

    def _row(self, index: int) -> tuple[int, ...]:
        return _ROW.unpack_from(self._rows, index * _ROW.size)

    def code_at(self, vaddr: int, size: int) -> bytes:
        """Return the module's code from an ELF virtual address on; fewer bytes at its end."""
        first, content = self._last
        if not first <= vaddr < first + len(content):
            index = bisect.bisect_right(self._firsts, vaddr) - 1
            if index < 0:
                return b""
            first, content = self._last = self._code[index]
        return bytes(content[vaddr - first : vaddr - first + size])

    def _sources(self, indexes: Iterable[int]) -> list[str]:
        kinds = [table.source for table in self._symbols]
        kinds += ["frame"] * (lib.TP_NO_TABLE + 1 - len(kinds))
        labels, plt = self._labels, lib.TP_LABEL_PLT << 40
        return [
            "plt" if labels[index] & plt else kinds[labels[index] >> 32 & 0xFF] for index in indexes
        ]

    def _stems(self, indexes: Sequence[int]) -> tuple[list[str], list[str]]:
        """Return what can be demangled of each name, and what stands behind that."""
        strings = [table.strings for table in self._symbols]
        labels, plt, nameless = self._labels, lib.TP_LABEL_PLT << 40, lib.TP_NO_TABLE
        left = _MOST_NAME_BYTES
        stems: list[str] = []
        endings: list[str] = []
        for index in indexes:
            label = labels[index]
            ending = ""
            if label & plt:
                ending = "@plt"
            elif label >> 32 & 0xFF == nameless and label & 0xFFFF_FFFF:
                owner = (label & 0xFFFF_FFFF) - 1
                ending = f"+{self._vaddrs[index] - self._vaddrs[owner]:#x}"
                label = labels[owner]
            table = label >> 32 & 0xFF
            if table == nameless:
                stems.append(f"{self._module.name}+{self._vaddrs[index]:#x}")
                endings.append("")
                continue
            start = label & 0xFFFF_FFFF
            end = strings[table].find(b"\0", start, start + _LONGEST_NAME)
            content = strings[table][start : end if end >= 0 else start + _LONGEST_NAME]
            left -= len(content)
            if left < 0:
                raise BadElf(self._module.path, 0, f"more than {_MOST_NAME_BYTES} bytes of names")
            # A symbol version ("read@@GLIBC_2.2.5") is not part of the name.
            stems.append(content.partition(b"@")[0].decode("utf-8", "backslashreplace"))
            endings.append(ending)
        return stems, endings


def mapped(module: Module) -> Callable[[int, int], bool]:
    """Return a function that tells whether bytes lie in the module's code as it is mapped."""
    if not module.mappings:  # of no process: anywhere will do
        return lambda _address, _size: True
    spans = sorted((m.start, m.end) for m in module.mappings if "x" in m.perms)
    starts = [start for start, _ in spans]

    def is_mapped(address: int, size: int) -> bool:
        index = bisect.bisect_right(starts, address) - 1
        return index >= 0 and address + size <= spans[index][1]

    return is_mapped


def _kept_survey(image: elf.Image, tables: FunctionTables) -> tuple[bytes, bytes]:
    key = _survey_cache.key_of(tables.digest())
    parts = _survey_cache.load(tables.build_id, key)
    if parts is not None and len(parts) == 2:
        rows, labels = parts
        if len(rows) == len(labels) // _LABEL_BYTES * _ROW.size:
            return rows, labels
    rows, labels = _survey(image, tables)
    _survey_cache.store(tables.build_id, key, (rows, labels))
    return rows, labels


class _Native:
    """The tables as the native side takes them; what it points to lives as long as it does."""

    def __init__(self, tables: FunctionTables) -> None:
        self._kept: list[object] = []
        self.code, self.code_count = self.pieces(tables.code)
        self.data, self.data_count = self.pieces(tables.data)
        self.loaded, self.loaded_count = self.pieces(tables.loaded)
        self.frames, _ = self.pieces([tables.frames])
        self.tables = self._keep(ffi.new("struct tp_tables *"))
        self.tables.symbols = self._symbols(tables.symbols)
        self.tables.symbol_table_count = len(tables.symbols)
        self.tables.dynamic = tables.dynamic
        self.tables.code, self.tables.code_count = self.code, self.code_count
        self.tables.data, self.tables.data_count = self.data, self.data_count
        self.tables.rela, self.tables.rela_count = self.pieces(tables.rela)
        self.tables.relr, self.tables.relr_count = self.pieces(tables.relr)
        self.tables.stubs = self._keep(ffi.new("struct tp_range[]", tables.stubs))
        self.tables.stub_count = len(tables.stubs)
        self.tables.go = tables.go

    def pieces(self, pieces: Sequence[Piece]) -> tuple[Pointer, int]:
        """Return an array of struct tp_piece and its length."""
        rows = [
            (vaddr, self._keep(ffi.from_buffer("uint8_t[]", content)), len(content))
            for vaddr, content in pieces
        ]
        return self._keep(ffi.new("struct tp_piece[]", rows)), len(rows)

    def _symbols(self, symbols: Sequence[SymbolTable]) -> Pointer:
        array = self._keep(ffi.new("struct tp_symbol_table[]", len(symbols)))
        for i, table in enumerate(symbols):
            array[i].rows = self._keep(ffi.from_buffer("uint8_t[]", table.rows))
            array[i].row_count = len(table.rows) // 24
            array[i].strings = self._keep(ffi.from_buffer("uint8_t[]", table.strings))
            array[i].string_bytes = len(table.strings)
            ranges = self._keep(ffi.from_buffer("uint8_t[]", table.ranges))
            array[i].sections = ffi.cast("struct tp_range *", ranges)
            array[i].section_count = len(table.ranges) // ffi.sizeof("struct tp_range")
        return array

    def _keep(self, pointer: Pointer) -> Pointer:
        self._kept.append(pointer)
        return pointer


class Survey:
    """What `tp_survey` needs of a module: all functions by address, and what points to code.

    Args:
        image: The module's file.
        tables: Its tables.

    Attributes:
        count: How many functions there are.
        raw: struct tp_survey; what it points to lives as long as this object.

    Raises:
        BadElf: A table makes no sense, or has more rows than a program has.
    """

    def __init__(self, image: elf.Image, tables: FunctionTables) -> None:
        native = _Native(tables)
        frames, frame_count = _frames(image, tables, native)
        found, functions, labels, named = _find(image, native)
        self.count = int(found.count)
        self._functions, self._labels = functions, labels
        others = b"".join(
            ffi.buffer(array, count * 8)
            for array, count in (
                *_targets(image, native, frames, frame_count),
                (named, found.target_count),
            )
        )
        kept = ffi.from_buffer("uint8_t[]", others)
        self.raw = ffi.new("struct tp_survey *")
        self.raw.code, self.raw.code_count = native.code, native.code_count
        self.raw.data, self.raw.data_count = native.data, native.data_count
        self.raw.targets = ffi.cast("uint64_t *", kept)
        self.raw.target_count = len(others) // 8
        self.raw.functions, self.raw.function_count = functions, found.count
        self._kept = (native, kept)
        self._frames, self._frame_count = frames, frame_count
        self._has_frames = _speak_of(tables, (frames, frame_count))

    def without_frames(self, vaddrs: Iterable[int]) -> set[int]:
        """Return those of some functions that have no unwind entry, in a module built with them."""
        if not self._has_frames:
            return set()
        spans = sorted(
            (self._frames[i].vaddr, self._frames[i].vaddr + self._frames[i].bytes)
            for i in range(self._frame_count)
        )
        starts = [start for start, _ in spans]

        def is_in_one(vaddr: int) -> bool:
            at = bisect.bisect_right(starts, vaddr) - 1
            return at >= 0 and vaddr < spans[at][1]

        return {vaddr for vaddr in vaddrs if not is_in_one(vaddr)}

    @property
    def rows(self) -> bytes:
        """Array of struct tp_function."""
        return bytes(ffi.buffer(self._functions, self.count * _ROW.size))

    @property
    def labels(self) -> bytes:
        """Array of struct tp_label."""
        return bytes(ffi.buffer(self._labels, self.count * _LABEL_BYTES))


def _survey(image: elf.Image, tables: FunctionTables) -> tuple[bytes, bytes]:
    """Find all functions, decide about each; return arrays of struct tp_function and tp_label."""
    survey = Survey(image, tables)
    if survey.count:
        require_native(image, lib.tp_survey(survey.raw, ffi.new("struct tp_surveyed *")))
    return survey.rows, survey.labels


def callers(image: elf.Image, path: str) -> list[tuple[int, int]]:
    """[start, end) of the code of a module whose calls' returns may be redirected.

    Not the code of runtimes that walk its frames by themselves: without unwind entries, or with
    tables of its return addresses (native/code/callers.c). In ELF addresses, ascending; of a module
    that was built without unwind entries all code.

    Raises:
        BadElf: A table points outside of the file.
    """
    tables = FunctionTables(image, path)
    native = _Native(tables)
    frames = _frames(image, tables, native)
    targets, target_count = _relocated(image, native)
    absolute = image.type == elf.ET_EXEC
    rows, count = _all(
        image,
        "stretches of code",
        "struct tp_range[]",
        lambda rows, room, count: lib.tp_find_callers(
            native.tables, targets, target_count, absolute, rows, room, count
        ),
    )
    if not _speak_of(tables, frames):
        return [(vaddr, vaddr + len(content)) for vaddr, content in tables.code]
    return [(rows[i].start, rows[i].end) for i in range(count)]


def _speak_of(tables: FunctionTables, frames: tuple[Pointer, int]) -> bool:
    """Tell whether unwind entries speak of a module's own code, not only of what linkers bring."""
    rows, count = frames
    slots = sum(end - start for start, end in tables.stubs)
    covered = sum(int(rows[i].bytes) for i in range(count)) - slots
    size = sum(len(content) for _, content in tables.code) - slots
    return covered * _LEAST_SHARE >= size


def _frames(image: elf.Image, tables: FunctionTables, native: _Native) -> tuple[Pointer, int]:
    frames, frame_count = _all(
        image,
        "unwind entries",
        "struct tp_frame[]",
        lambda rows, room, count: lib.tp_read_frames(native.frames, rows, room, count),
        tables.most_frames,
    )
    native.tables.frames, native.tables.frame_count = frames, frame_count
    return frames, frame_count


def _relocated(image: elf.Image, native: _Native) -> tuple[Pointer, int]:
    """Addresses of code that the loader puts into data."""
    return _all(
        image,
        "relocations",
        "uint64_t[]",
        lambda rows, room, count: lib.tp_read_targets(native.tables, rows, room, count),
    )


def _targets(
    image: elf.Image, native: _Native, frames: Pointer, frame_count: int
) -> list[tuple[Pointer, int]]:
    """Addresses of code that the loader puts into data, and landing pads."""
    pads = _all(
        image,
        "landing pads",
        "uint64_t[]",
        lambda rows, room, count: lib.tp_read_landing_pads(
            frames, frame_count, native.loaded, native.loaded_count, rows, room, count
        ),
    )
    return [_relocated(image, native), pads]


def _find(image: elf.Image, native: _Native) -> tuple[Pointer, Pointer, Pointer, Pointer]:
    """Return struct tp_found, and the three arrays that it points to."""
    most = lib.tp_most_functions(native.tables)
    elf.require_rows(image, most, "functions")
    functions = ffi.new("struct tp_function[]", most)
    labels = ffi.new("struct tp_label[]", most)
    named = ffi.new("uint64_t[]", most)
    found = ffi.new("struct tp_found *", (functions, labels, named))
    require_native(image, lib.tp_find_functions(native.tables, found), "names of functions")
    return found, functions, labels, named


def _all(
    image: elf.Image,
    what: str,
    ctype: str,
    read: Callable[[Pointer, int, Pointer], int],
    most: int | None = None,
) -> tuple[Pointer, int]:
    """Return all rows that `read` gives, or the first `most`, and how many there are."""
    count = ffi.new("uint64_t *")
    require_native(image, read(ffi.NULL, 0, count), what)
    room = count[0] if most is None else min(count[0], most)
    elf.require_rows(image, room, what)
    rows = ffi.new(ctype, room)
    require_native(image, read(rows, room, count), what)
    return rows, room


def require_native(image: elf.Image, result: int, what: str = "segments") -> None:
    """Raise what a negative code of the native side means for a file: MemoryError, BadElf."""
    if result == -errno.ENOMEM:
        raise MemoryError
    if result < 0:
        problem = "are more than a program has" if result == -errno.E2BIG else "make no sense"
        raise BadElf(image.path, 0, f"its {what} {problem}")
