# SPDX-License-Identifier: Apache-2.0
"""The capture file (`.tptrace`): written block by block, read back with every length checked.

`docs/formats.md` describes the format. EVENTS blocks are written by the native ring reader
straight to `CaptureWriter.fd`; everything else in the file is JSON and written here.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import stat
import zlib
from typing import TYPE_CHECKING

from textpoke._capture_format import (
    FILE_HEADER,
    FILE_HEADER_BYTES,
    FILE_MAGIC,
    FILE_VERSION,
    HEADER_BYTES,
    POKES_FAILED,
    POKES_HEADER,
    READABLE_VERSIONS,
    WITH_EVENTS,
    Block,
    BlockType,
    first_bad_check,
    scan,
)
from textpoke._capture_json import JsonBlock, load_end, load_meta
from textpoke._errors import CaptureExists, CaptureFormat, CaptureWrite

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType
    from typing import Self

    from textpoke._capture_json import ClockPoint, End, Meta


class Capture:
    """A capture opened for reading; a context manager.

    Opening reads every block header and all JSON, never an event.

    Attributes:
        path: The file.
        meta: What was traced, and the names of all sites.
        threads: Thread id to name.
        clocks: Clock points after the one in `meta`, in file order, END's included.
        end: Totals and outcomes; None when the capture was cut off.
        events: The EVENTS and PACKED blocks in file order.
        pokes: The POKES blocks in file order; `pokes.read` gives their content.
        notes: The JSON of META, SITES and END blocks in file order, for what others put there.
        cut_off: None for a whole capture, else one line that says where it stops.

    Raises:
        CaptureFormat: not a capture, damaged, or of another version.
        OSError: the file cannot be opened or read.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self.threads: dict[int, str] = {}
        self.clocks: list[ClockPoint] = []
        self.end: End | None = None
        self.events: list[Block] = []
        self.pokes: list[Block] = []
        self.cut_off: str | None = None
        # Non-blocking, so that a FIFO is refused instead of waited for.
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            self._check_file()
            blocks = self._scan()
            self.meta: Meta = load_meta(self._json(self._first(blocks)))
            self.notes: list[dict[str, object]] = [self.meta.raw]
            self._load(blocks[1:])
        except BaseException:
            self.close()
            raise

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
        """Close the file; a second call does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` (of bytes) from a file offset.

        Raises:
            CaptureFormat: the file has become shorter since it was opened.
        """
        done = 0
        while done < len(buffer):
            got = os.preadv(self._fd, [buffer[done:]], offset + done)
            if got == 0:
                raise self._bad(offset + done, "the file became shorter while it was read")
            done += got

    def _bad(self, offset: int, problem: str) -> CaptureFormat:
        return CaptureFormat(self.path, offset, problem)

    def _check_file(self) -> None:
        if not stat.S_ISREG(os.fstat(self._fd).st_mode):
            raise self._bad(0, "is not a textpoke capture (not even a regular file)")
        head = os.pread(self._fd, FILE_HEADER_BYTES, 0)
        if not head:
            raise self._bad(0, "is not a textpoke capture (it is empty)")
        if not head.startswith(FILE_MAGIC[: len(head)]):
            raise self._bad(0, f"is not a textpoke capture (starts with {head[:8]!r})")
        if len(head) < FILE_HEADER_BYTES:
            raise self._bad(len(head), "is cut off within the file header: nothing to read")
        _, version, zero = FILE_HEADER.unpack(head)
        if version not in READABLE_VERSIONS:
            known = " and ".join(map(str, READABLE_VERSIONS))
            text = f"is a capture of format version {version}, this textpoke reads {known}"
            raise self._bad(len(FILE_MAGIC), text)
        if zero:
            raise self._bad(FILE_HEADER_BYTES - 4, f"a damaged file header ({zero:#x}, not 0)")

    def _scan(self) -> list[Block]:
        # A wrong check comes first: what it covers is what every other complaint rests on.
        is_open = _is_written(self._fd)  # before its size: what is whole then stays so
        found = scan(self._fd, os.fstat(self._fd).st_size)
        problem = first_bad_check(found.heads) or found.problem
        if problem:
            raise self._bad(*problem)
        self.cut_off = found.cut_off
        if not found.cut_off and (not found.blocks or found.blocks[-1].type is not BlockType.END):
            self.cut_off = f"cut off after {found.whole_bytes} bytes: it has no END"
        if self.cut_off and is_open:
            self.cut_off = f"still being written, {found.whole_bytes} bytes so far"
        return found.blocks

    def _first(self, blocks: list[Block]) -> Block:
        if not blocks:
            raise self._bad(FILE_HEADER_BYTES, "is cut off before its META block: nothing to read")
        if blocks[0].type is not BlockType.META:
            raise self._bad(FILE_HEADER_BYTES, f"starts with {blocks[0].type.name}, not META")
        return blocks[0]

    def _load(self, blocks: list[Block]) -> None:
        for block in blocks:
            if self.end is not None:
                raise self._bad(block.offset - HEADER_BYTES, "there is a block after END")
            if block.type in WITH_EVENTS:
                self.events.append(block)
            elif block.type is BlockType.POKES:
                self.pokes.append(block)
            else:
                self._load_json(block)

    def _load_json(self, block: Block) -> None:
        data = self._json(block)
        if block.type is BlockType.THREADS:
            self.threads.update(data.thread_names())
        elif block.type is BlockType.CLOCK:
            self.clocks.append(data.clock(data.data))
        elif block.type is BlockType.SITES:
            self.meta.sites.extend(data.sites())
            self.meta.layouts.update(data.layouts())
            self.meta.enums.update(data.enums())
            self.notes.append(data.data)
        elif block.type is BlockType.END:
            self.end = load_end(data)
            self.clocks.append(self.end.clock)
            self.notes.append(data.data)
        else:
            raise self._bad(block.offset - HEADER_BYTES, "a second META block")

    def _json(self, block: Block) -> JsonBlock:
        data = bytearray(block.payload_bytes)
        self.read_into(block.offset, memoryview(data))
        return JsonBlock(self.path, block.offset, data)


class CaptureWriter:
    """A capture being written; a context manager that closes it. One thread at a time.

    Attributes:
        path: The file, readable by its owner only.
        fd: Where the ring reader appends EVENTS blocks; report its failures to `failed`.

    Raises:
        CaptureExists: the file is there and `force` was not given.
        CaptureWrite: the file cannot be created; from the methods: it cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], *, force: bool = False) -> None:
        self.path = os.fspath(path)
        self.fd = -1
        try:
            if force:
                _remove(self.path)
            self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            _lock(self.fd)
            _write_all(self.fd, FILE_HEADER.pack(FILE_MAGIC, FILE_VERSION, 0))
        except FileExistsError:
            raise CaptureExists(self.path) from None
        except OSError as exc:
            self._discard()
            raise CaptureWrite(self.path, exc.errno or 0) from exc

    @classmethod
    def of(cls, fd: int) -> Self:
        """A writer for a file that somebody else has made, open behind its header."""
        writer = cls.__new__(cls)
        writer.path, writer.fd = f"/proc/self/fd/{fd}", fd
        with contextlib.suppress(OSError):
            writer.path = os.readlink(writer.path)
        return writer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def meta(self, data: Mapping[str, object]) -> None:
        """Write META, the first block."""
        self._block(BlockType.META, data)

    def threads(self, names: Mapping[int, str]) -> None:
        """Write names of threads; a later block adds to, or corrects, an earlier one."""
        self._block(BlockType.THREADS, {str(tid): name for tid, name in names.items()})

    def clock(self, point: Mapping[str, int]) -> None:
        """Write a clock point, so that a capture that is cut off still has a time scale."""
        self._block(BlockType.CLOCK, point)

    def sites(
        self,
        rows: Sequence[Sequence[object]],
        notes: Mapping[str, object] | None = None,
    ) -> None:
        """Write names of return addresses, besides those of META, and what else is to be told."""
        self._block(BlockType.SITES, {"sites": rows, **(notes or {})})

    def pokes(self, ticks: tuple[int, int], rows: bytes, count: int, *, failed: bool) -> None:
        """Write what a batch has poked.

        Args:
            ticks: Before it, and behind it.
            rows: Its pokes in the engine's own form (`poke.RECORD`).
            count: How many.
            failed: Some of them may have been written, or none.
        """
        head = POKES_HEADER.pack(*ticks, count, POKES_FAILED * failed)
        self._write(BlockType.POKES, head + zlib.compress(rows, 1))

    def end(self, data: Mapping[str, object]) -> None:
        """Write END, the last block."""
        self._block(BlockType.END, data)

    def failed(self, code: int) -> CaptureWrite:
        """Cut the file back to its last whole block after a write failed with this errno (> 0).

        Returns:
            The error to raise.
        """
        with contextlib.suppress(OSError):
            whole_bytes = scan(self.fd, os.fstat(self.fd).st_size).whole_bytes
            os.ftruncate(self.fd, whole_bytes)
            os.lseek(self.fd, whole_bytes, os.SEEK_SET)
        return CaptureWrite(self.path, code)

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            try:
                os.close(fd)
            except OSError as exc:
                raise CaptureWrite(self.path, exc.errno or 0) from exc

    def _block(self, block_type: BlockType, data: Mapping[str, object]) -> None:
        payload = json.dumps(data, separators=(",", ":"), allow_nan=False).encode("ascii")
        self._write(block_type, payload)

    def _write(self, block_type: BlockType, payload: bytes) -> None:
        try:
            _write_all(self.fd, Block(block_type, 0, len(payload)).header() + payload)
        except OSError as exc:
            raise self.failed(exc.errno or 0) from exc

    def _discard(self) -> None:
        # Only a file that we made and that holds nothing yet.
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
            with contextlib.suppress(OSError):
                os.unlink(self.path)


def _lock(fd: int) -> None:
    # Told from a capture whose writer was killed: the kernel takes the lock from the dead.
    with contextlib.suppress(OSError):  # not every file system has locks
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _is_written(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no locks there: nothing is known
        return False
    fcntl.flock(fd, fcntl.LOCK_UN)
    return False


def _remove(path: str) -> None:
    # A new file, not the old one made shorter: a link is never followed, and a report that
    # still reads the old file is left in peace. Devices and the like are not ours to remove.
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    os.unlink(path)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
