# SPDX-License-Identifier: Apache-2.0
"""What a module's file says of its functions: every table that `functions` needs, as bytes.

A file is read once. What lies in loaded segments is taken from there, by address, as the loader and
the unwinder would find it, so that nothing can change between two looks, and the digest of what was
read is the digest of what is used.
"""

from __future__ import annotations

import bisect
import functools
import hashlib
import struct
import threading
from typing import TYPE_CHECKING

from textpoke import _debug_files, elf
from textpoke._errors import BadElf

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    Piece = tuple[int, bytes | memoryview]
    """ELF virtual address, bytes."""
    Range = tuple[int, int]
    """ELF virtual addresses: first, end."""

_PT_DYNAMIC = 2
_SHN_RELA_BYTES = 24
_SYMBOL_BYTES = 24
_RELR_BYTES = 8
_DYNAMIC = struct.Struct("<qQ")
_MOST_DYNAMIC = 4096
_DT_PLTRELSZ, _DT_HASH, _DT_STRTAB, _DT_SYMTAB, _DT_RELA, _DT_RELASZ = 2, 4, 5, 6, 7, 8
_DT_STRSZ, _DT_JMPREL, _DT_RELRSZ, _DT_RELR, _DT_GNU_HASH = 10, 23, 35, 36, 0x6FFF_FEF5
_HIGHEST = 1 << 63
_MOST_STUB_SECTIONS = 16  # linkers make four
_DIGEST_BYTES = 32
_DIGESTED_BYTES = 4 << 20
_FEW_PIECES = 8
_GO_MAGIC = b"\xff Go buildinf:"
# .eh_frame_hdr: version, three encodings, a pointer, a count.
_HEADER_BYTES = 20
_OMITTED = 0xFF
# How all programs with the C library's start-up code begin their .eh_frame: length, CIE, version,
# augmentation, alignments, return address register, encoding.
_FIRST_FRAME = b"\x14\0\0\0\0\0\0\0\x01zR\0\x01\x78\x10\x01\x1b"
_PCREL, _DATAREL = 0x10, 0x30
_POINTER_FORMATS = {
    0x0: struct.Struct("<Q"),
    0x2: struct.Struct("<H"),
    0x3: struct.Struct("<I"),
    0x4: struct.Struct("<Q"),
    0xA: struct.Struct("<h"),
    0xB: struct.Struct("<i"),
    0xC: struct.Struct("<q"),
}
_RANGE = struct.Struct("<QQ")
_GNU_HASH = struct.Struct("<4I")


class SymbolTable:
    """One symbol table with its strings; they may be unpacked only when somebody asks.

    Attributes:
        source: "symtab", "debugfile", "dynsym" or "debugdata".
        digested: The bytes that it is made of, as the file has them.
    """

    def __init__(
        self,
        source: str,
        digested: Sequence[bytes | memoryview],
        load: Callable[[], tuple[bytes | memoryview, bytes, bytes]],
    ) -> None:
        self.source = source
        self.digested = digested
        self._load = load

    @functools.cached_property
    def _parts(self) -> tuple[bytes | memoryview, bytes, bytes]:
        return self._load()

    @property
    def rows(self) -> bytes | memoryview:
        """Elf64_Sym, whole ones."""
        return self._parts[0]

    @property
    def strings(self) -> bytes:
        """The names, each zero-terminated."""
        return self._parts[1]

    @property
    def ranges(self) -> bytes:
        """First and end address of each section that holds code, zeros for the others."""
        return self._parts[2]


class FunctionTables:
    """The tables of one module.

    Args:
        image: Its file; it may be closed afterwards.
        path: Where the module lies, as the target sees it.

    Raises:
        BadElf: A table points outside of the file.
    """

    def __init__(self, image: elf.Image, path: str) -> None:
        self._image = image
        self.build_id = elf.build_id(image)
        self.code = _disjoint(image.code)
        self.data = _disjoint(_data_of(image))
        self.loaded = _disjoint([*self.code, *self.data])
        self._firsts = [vaddr for vaddr, _ in self.loaded]
        self._dynamic = self._read_dynamic()
        self.frames, self.most_frames = self._find_frames()
        self.stubs = self._find_stubs()
        self.rela = self._relocations(
            elf.SHT_RELA, _SHN_RELA_BYTES, ((_DT_RELA, _DT_RELASZ), (_DT_JMPREL, _DT_PLTRELSZ))
        )
        self.relr = self._relocations(elf.SHT_RELR, _RELR_BYTES, ((_DT_RELR, _DT_RELRSZ),))
        self.go = self._has_go()
        self.symbols = self._find_symbols(path)
        sources = [table.source for table in self.symbols]
        self.dynamic = sources.index("dynsym") if "dynsym" in sources else len(sources)
        del self._image

    def digest(self) -> bytes:
        """Return a hash of all bytes that the functions and their survey depend on."""
        whole = hashlib.blake2b(digest_size=_DIGEST_BYTES)
        facts = (
            [(vaddr, len(content)) for vaddr, content in self.code],
            [(vaddr, len(content)) for vaddr, content in self.data],
            (self.frames[0], len(self.frames[1]), self.most_frames),
            [(vaddr, len(content)) for vaddr, content in (*self.rela, *self.relr)],
            (len(self.rela), self.stubs, self.go, self.dynamic, self._dynamic),
            [(table.source, list(map(len, table.digested))) for table in self.symbols],
        )
        whole.update(repr(facts).encode())
        contents = [content for _, content in (*self.code, *self.data)]
        contents += [content for table in self.symbols for content in table.digested]
        for part in _digests(contents):
            whole.update(part)
        return whole.digest()

    def at(self, vaddr: int, size: int) -> memoryview:
        """Return bytes of the loaded segments, none when they are not all there."""
        index = bisect.bisect_right(self._firsts, vaddr) - 1
        if index >= 0 and size > 0:
            first, content = self.loaded[index]
            if vaddr + size <= first + len(content):
                return memoryview(content)[vaddr - first : vaddr - first + size]
        return memoryview(b"")

    def _rest(self, vaddr: int) -> memoryview:
        """Return all bytes from an address to the end of its segment."""
        index = bisect.bisect_right(self._firsts, vaddr) - 1
        if index < 0:
            return memoryview(b"")
        first, content = self.loaded[index]
        return memoryview(content)[vaddr - first :]

    def _contents(self, section: elf.Section) -> bytes | memoryview:
        if section.flags & elf.SHF_ALLOC:
            return self.at(section.vaddr, section.size)
        return self._image.contents(section)

    def _read_dynamic(self) -> dict[int, int]:
        """Return what the loader goes by; of two entries with one tag the last one counts."""
        for segment in self._image.segments:
            if segment.type == _PT_DYNAMIC:
                size = min(segment.file_size, _MOST_DYNAMIC * _DYNAMIC.size)
                content = self.at(segment.vaddr, size // _DYNAMIC.size * _DYNAMIC.size)
                rows = list(_DYNAMIC.iter_unpack(content))
                end = next((i for i, row in enumerate(rows) if not row[0]), len(rows))
                return dict(rows[:end])
        return {}

    def _find_frames(self) -> tuple[Piece, int]:
        """Return .eh_frame, and how many entries it has at most."""
        section = next(
            (s for s in self._image.sections if s.name == ".eh_frame" and s.flags & elf.SHF_ALLOC),
            None,
        )
        start, count = self._frame_header()
        if not start and not self._image.sections:
            start, count = self._first_frame(), elf.MOST_ROWS
        if section and start in (0, section.vaddr):
            return (section.vaddr, self.at(section.vaddr, section.size)), elf.MOST_ROWS
        return (start, self._rest(start)), count

    def _frame_header(self) -> tuple[int, int]:
        """Return where .eh_frame_hdr puts .eh_frame, and how many entries it counts."""
        for segment in self._image.segments:
            if segment.type != elf.PT_GNU_EH_FRAME:
                continue
            header = bytes(self.at(segment.vaddr, min(_HEADER_BYTES, segment.file_size)))
            if len(header) < 4 or header[0] != 1:
                continue
            start, behind = _pointer(header, 4, header[1], segment.vaddr)
            count, _ = _pointer(header, behind, header[2], segment.vaddr)
            # Without a table nobody has counted them.
            return start, count if header[2] != _OMITTED else elf.MOST_ROWS
        return 0, 0

    def _first_frame(self) -> int:
        """Return where .eh_frame begins in a static program without any header, by its look."""
        for vaddr, content in self.loaded:
            offset = bytes(content).find(_FIRST_FRAME)
            if offset >= 0:
                return vaddr + offset
        return 0

    def _find_stubs(self) -> list[Range]:
        stubs: list[Range] = []
        for section in sorted(self._image.sections, key=lambda s: s.vaddr):
            if (
                len(stubs) < _MOST_STUB_SECTIONS
                and (section.name in (".plt", ".iplt") or section.name.startswith(".plt."))
                and section.flags & elf.SHF_ALLOC
                and section.flags & elf.SHF_EXECINSTR
                and len(self.at(section.vaddr, section.size))
                and (not stubs or section.vaddr >= stubs[-1][1])
            ):
                stubs.append((section.vaddr, section.vaddr + section.size))
        return stubs

    def _relocations(
        self, kind: int, row_bytes: int, tags: Iterable[tuple[int, int]]
    ) -> list[Piece]:
        places = [
            (section.vaddr, section.size)
            for section in self._image.sections
            if section.type == kind and section.flags & elf.SHF_ALLOC
        ]
        for where, size in tags:
            if where in self._dynamic and size in self._dynamic:
                places.append((self._dynamic[where], self._dynamic[size]))
        found: list[Piece] = []
        end = rows = 0
        # Section headers and the loader's tags speak of the same bytes: the longest piece counts.
        for vaddr, size in sorted(places, key=lambda place: (place[0], -place[1])):
            content = self.at(vaddr, size)
            if vaddr >= end and len(content):
                found.append((vaddr, content))
                end = vaddr + size
                rows += size // row_bytes
        elf.require_rows(self._image, rows, "relocations")
        return found

    def _has_go(self) -> bool:
        sections = self._image.sections
        if not sections:
            return any(_GO_MAGIC in bytes(content) for _, content in self.data)
        return any(
            section.name == ".go.buildinfo" or section.name.endswith(".gopclntab")
            for section in sections
        )

    def _find_symbols(self, path: str) -> list[SymbolTable]:
        image = self._image
        tables = _tables_of(image, self._contents)
        full, dynamic = tables.get(elf.SHT_SYMTAB), tables.get(elf.SHT_DYNSYM)
        if dynamic is None:
            dynamic = self._dynamic_symbols()
        found: list[SymbolTable] = []
        if full and full[0]:
            found.append(_ready("symtab", full))
        else:
            found += self._separate_symbols(path)
        if dynamic:
            found.append(_ready("dynsym", dynamic))
        if not full:
            found += self._packed_symbols()
        return found

    def _separate_symbols(self, path: str) -> list[SymbolTable]:
        other = _debug_files.debug_file(self._image, path, self.build_id)
        if other is None:
            return []
        with other:
            try:
                full = _tables_of(other, other.contents).get(elf.SHT_SYMTAB)
            except BadElf:
                return []
        return [_ready("debugfile", full)] if full else []

    def _packed_symbols(self) -> list[SymbolTable]:
        for section in self._image.sections:
            if section.name == ".gnu_debugdata" and section.size:
                packed = self._image.contents(section)

                def unpack(packed: bytes = packed) -> tuple[bytes | memoryview, bytes, bytes]:
                    image = _debug_files.debug_data(packed)
                    try:
                        full = image and _tables_of(image, image.contents).get(elf.SHT_SYMTAB)
                    except BadElf:
                        full = None
                    return full or (b"", b"", b"")

                return [SymbolTable("debugdata", [packed], unpack)]
        return []

    def _dynamic_symbols(self) -> tuple[bytes | memoryview, bytes, bytes] | None:
        """Return .dynsym as the loader finds it, for a file without section headers."""
        tags = self._dynamic
        if _DT_SYMTAB not in tags or _DT_STRTAB not in tags:
            return None
        strings = bytes(self.at(tags[_DT_STRTAB], tags.get(_DT_STRSZ, 0)))
        count = self._count_dynamic()
        elf.require_rows(self._image, count, "symbols")
        rows = self.at(tags[_DT_SYMTAB], count * _SYMBOL_BYTES)
        return (rows, strings, b"") if len(rows) and strings else None

    def _count_dynamic(self) -> int:
        """Return how many symbols the loader's hash table knows; nothing else counts them."""
        tags = self._dynamic
        if _DT_HASH in tags:
            return int.from_bytes(self.at(tags[_DT_HASH] + 4, 4), "little")
        table = tags.get(_DT_GNU_HASH, 0)
        head = self.at(table, _GNU_HASH.size)
        if not len(head):
            return 0
        bucket_count, first, bloom_count, _ = _GNU_HASH.unpack(head)
        chains: int = table + 16 + 8 * bloom_count + 4 * bucket_count
        if bucket_count > elf.MOST_ROWS:
            return 0
        buckets = self.at(chains - 4 * bucket_count, 4 * bucket_count)
        last: int = max(buckets.cast("I"), default=0)
        if last < first:
            return int(first)
        # The last chain ends where a hash is odd.
        hashes = bytes(self._rest(chains + 4 * (last - first))[: 4 * elf.MOST_ROWS : 4])
        return last + 1 + next((i for i, low in enumerate(hashes) if low & 1), len(hashes))


def _digests(contents: Iterable[bytes | memoryview]) -> list[bytes]:
    """Return the hashes of all pieces of `contents`, made by two threads where that pays."""
    pieces = [
        memoryview(content)[offset : offset + _DIGESTED_BYTES]
        for content in contents
        for offset in range(0, len(content), _DIGESTED_BYTES)
    ]
    found = [b""] * len(pieces)

    def digest(first: int, step: int) -> None:
        # A hash of more than 2 KiB does not hold the interpreter's lock.
        for i in range(first, len(pieces), step):
            found[i] = hashlib.blake2b(pieces[i], digest_size=_DIGEST_BYTES).digest()

    if len(pieces) <= _FEW_PIECES:
        digest(0, 1)
        return found
    other = threading.Thread(target=digest, args=(1, 2))
    other.start()
    digest(0, 2)
    other.join()
    return found


def _data_of(image: elf.Image) -> list[Piece]:
    return [
        (load.vaddr, image.bytes_at(load.offset, min(load.file_size, image.size - load.offset)))
        for load in image.loads
        if not load.flags & elf.PF_X and load.offset < image.size
    ]


def _disjoint(pieces: Iterable[Piece]) -> list[Piece]:
    """Sort pieces by address; where they overlap, which no linker does, the first one counts."""
    found: list[Piece] = []
    end = 0
    for vaddr, content in sorted(pieces, key=lambda piece: piece[0]):
        if vaddr >= end and len(content) and vaddr + len(content) < _HIGHEST:
            found.append((vaddr, content))
            end = vaddr + len(content)
    return found


def _pointer(content: bytes, offset: int, encoding: int, base: int) -> tuple[int, int]:
    """Return a pointer of .eh_frame_hdr (0 for none) and the offset behind it."""
    form = _POINTER_FORMATS.get(encoding & 0x0F)
    relative = encoding & 0xF0
    if encoding == _OMITTED or form is None or offset + form.size > len(content):
        return 0, offset
    value = form.unpack_from(content, offset)[0]
    if relative == _PCREL:
        value += base + offset
    elif relative == _DATAREL:
        value += base
    elif relative:
        return 0, offset
    return value if 0 <= value < _HIGHEST else 0, offset + form.size


def _tables_of(
    image: elf.Image, contents: Callable[[elf.Section], bytes | memoryview]
) -> dict[int, tuple[bytes | memoryview, bytes, bytes]]:
    """Return the first symbol table of each kind: rows, strings, ranges of code."""
    found: dict[int, tuple[bytes | memoryview, bytes, bytes]] = {}
    sections = image.sections
    for table in sections:
        if table.type not in (elf.SHT_SYMTAB, elf.SHT_DYNSYM) or table.type in found:
            continue
        if table.link >= len(sections):
            continue
        rows = contents(table)
        elf.require_rows(image, len(rows) // _SYMBOL_BYTES, "symbols")
        whole = rows[: len(rows) // _SYMBOL_BYTES * _SYMBOL_BYTES]
        found[table.type] = whole, bytes(contents(sections[table.link])), _ranges(sections)
    return found


def _ranges(sections: Iterable[elf.Section]) -> bytes:
    return b"".join(
        _RANGE.pack(section.vaddr, min(section.vaddr + section.size, _HIGHEST))
        if section.flags & elf.SHF_EXECINSTR
        else bytes(_RANGE.size)
        for section in sections
    )


def _ready(source: str, parts: tuple[bytes | memoryview, bytes, bytes]) -> SymbolTable:
    return SymbolTable(source, parts, lambda: parts)
