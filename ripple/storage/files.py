"""Files that are complete or absent: atomic replacement, and reading that notices changes.

A file is committed by a temporary beside it (`O_EXCL`, `O_NOFOLLOW`), fsync, rename, fsync of the directory.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import mmap
import os
import secrets
import stat
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ripple.errors import IntegrityError, WriteError

#: What to do about a damaged file.
REDO = "restore it from a copy, or remove the directory and run again"
#: How names of files begin that are not complete yet.
TEMPORARY = ".tmp-"
_BLOCK = 1 << 20  # bytes hashed at a time
_FULL = (errno.ENOSPC, errno.EDQUOT)  # disk full, or the user's quota
#: Chunks in memory that wait to be written, so that the disk is busy while the next planes are decoded.
AHEAD = 64
# Bytes after which the disk is told to begin, so that little is left to wait for at the end.
_FLUSH = 1 << 26


@dataclass(frozen=True, slots=True)
class Staged:
    """Bytes on disk under a temporary name, fsynced: what a worker hands to `ArtefactWriter.commit`.

    `write_seconds` were spent on hashing and writing, in parallel with making the bytes; `sync_seconds` on
    waiting for the disk after the last of them.
    """

    temporary: str
    bytes: int
    sha256: str
    write_seconds: float = 0.0
    sync_seconds: float = 0.0


def write_atomic(path: Path, data: bytes | memoryview) -> None:
    """Replace `path` by `data` so that a reader, or a crash, sees the old file or the new one.

    Raises
    ------
    WriteError
        Disk full (names the bytes needed), no permission, I/O error. Nothing is left behind.
    """
    publish(path, stage(path.parent, path.name, data))


def write_single(path: Path, data: bytes | memoryview) -> None:
    """`write_atomic` in any directory of the user, which has no lock file; cleans up after killed writers.

    The directory itself is locked, shared by those who write; whoever gets it alone removes what was left.
    """
    try:
        handle = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as err:
        raise write_error(path, err, len(data)) from None
    try:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove_temporaries(path.parent, f"{TEMPORARY}{path.name}-")
        with suppress(OSError):  # the user may hold it: `flock DIR ripple ...`
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        write_atomic(path, data)
    finally:
        os.close(handle)


def is_full(err: BaseException | None) -> bool:
    """Whether a full disk is the cause of an error, of whatever library."""
    # Libraries wrap the OSError, or only repeat its text.
    while err is not None:
        text = str(err)
        if isinstance(err, OSError) and err.errno in _FULL:
            return True
        if "disk is full" in text or "No space left on device" in text:  # SQLite; a worker's message
            return True
        err = err.__cause__ or err.__context__
    return False


def stage(directory: Path, name: str, data: bytes | memoryview) -> Staged:
    """Write `data` to a temporary beside `directory/name` and fsync it; runs in workers.

    Raises
    ------
    WriteError
        As in `write_atomic`; the temporary is removed.
    """
    return stage_chunks(directory, name, (data,), len(data))


def stage_chunks(directory: Path, name: str, chunks: Iterable[Any], size: int) -> Staged:
    """Write buffers one after another to a temporary beside `directory/name` and fsync it.

    Parameters
    ----------
    directory, name
        Where the file will be published.
    chunks
        Buffers; an error of their iterator is raised here, after the temporary is removed.
    size
        Total bytes, for the message when they do not fit on the disk.

    Raises
    ------
    WriteError
        As in `write_atomic`; the temporary is removed.
    """
    # Beside the final name, since a rename is atomic only within a file system. The random part keeps writers
    # on different machines apart, whose process ids may be equal.
    temporary = directory / f"{TEMPORARY}{name}-{os.getpid()}-{secrets.token_hex(8)}"
    try:
        handle = os.open(
            temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644
        )
    except OSError as err:
        raise write_error(directory / name, err, size) from None
    with _removed_unless_whole(temporary):
        try:
            output = _write_all(handle, chunks)
        except OSError as err:
            raise write_error(directory / name, err, size) from None
    return Staged(temporary.name, output.bytes, output.sha256.hexdigest(), output.seconds, output.waited)


@dataclass(slots=True)
class _Output:
    """An open file, what was written to it so far, and how long that took."""

    handle: int
    sha256: Any = field(default_factory=hashlib.sha256)
    bytes: int = 0
    seconds: float = 0.0
    waited: float = 0.0

    def append(self, chunk: Any) -> None:
        """Hash and write a buffer."""
        start, view, done = time.perf_counter(), memoryview(chunk).cast("B"), 0
        self.sha256.update(view)
        # Linux writes at most 2 GiB in one call.
        while done < len(view):
            done += os.write(self.handle, view[done : done + (1 << 30)])
        self.bytes += done
        self.seconds += time.perf_counter() - start


def _write_all(handle: int, chunks: Iterable[Any]) -> _Output:
    """Write, fsync, close. A failed fsync is final: the kernel may drop the pages it could not write.

    One thread hashes and writes while the next chunks are made, another tells the disk to store what is
    written; both release the interpreter lock.
    """
    output, flushed = _Output(handle), 0
    with ExitStack() as stack:
        stack.callback(_close_quietly, handle)
        with ThreadPoolExecutor(1) as writer, ThreadPoolExecutor(1) as flusher:
            pending: deque[Future[None]] = deque()
            flush: Future[None] = Future()
            flush.set_result(None)
            for chunk in chunks:
                # Bounds the memory: when the disk is slower than the readers, they wait here.
                if len(pending) >= AHEAD:
                    pending.popleft().result()
                pending.append(writer.submit(output.append, chunk))
                if output.bytes - flushed >= _FLUSH and flush.done():
                    flush.result()  # raises what the last one met
                    flush, flushed = flusher.submit(os.fdatasync, handle), output.bytes
            for append in pending:
                append.result()
            start = time.perf_counter()
            flush.result()
        os.fsync(handle)
        output.waited = time.perf_counter() - start
        stack.pop_all()
    os.close(handle)  # not quietly: some file systems report a full disk only here
    return output


def _close_quietly(handle: int) -> None:
    with suppress(OSError):
        os.close(handle)


@contextmanager
def _removed_unless_whole(temporary: Path) -> Iterator[None]:
    """Remove a file when the block does not reach its end, whatever stopped it."""
    with ExitStack() as stack:
        stack.callback(_unlink_quietly, temporary)
        yield
        stack.pop_all()


def _unlink_quietly(path: Path) -> None:
    with suppress(OSError):
        path.unlink()


def publish(path: Path, staged: Staged) -> None:
    """Give a staged file its name; a `WriteError` leaves neither."""
    temporary = path.parent / staged.temporary
    with _removed_unless_whole(temporary):
        try:
            temporary.rename(path)
            sync_directory(path.parent)  # else a crash may undo the rename
        except OSError as err:
            raise write_error(path, err, staged.bytes) from None


def make_directory(directory: Path) -> None:
    """Make a directory and those above it, where they are missing.

    Raises
    ------
    WriteError
        There is a file of that name, or no permission.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise write_error(directory, err, 0) from None


def sync_directory(directory: Path) -> None:
    """Have the disk store the names in a directory."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_new(path: Path, data: bytes | memoryview) -> None:
    """Write a file of a directory that nobody reads before it is complete (`directory.py`).

    Raises
    ------
    WriteError
        As in `write_atomic`, or the file exists already; a part of it may stay.
    """
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        with io.FileIO(handle, "w") as file, io.BufferedWriter(file) as out:
            out.write(data)
    except OSError as err:
        raise write_error(path, err, len(data)) from None


def settle(path: Path) -> tuple[int, str]:
    """Have the disk store a file that any library wrote; returns its size and SHA-256.

    Raises
    ------
    WriteError
        The disk could not store it, which is known only now.
    IntegrityError
        It is not a regular file, or not readable.
    """
    with opened(path) as file:
        try:
            os.fsync(file.fileno())
        except OSError as err:
            raise write_error(path, err, os.fstat(file.fileno()).st_size) from None
    return hash_file(path)


def write_error(path: Path, err: OSError, needed: int = 0) -> WriteError:
    """The `WriteError` for an `OSError`; `needed` is the least number of bytes, 0 when not known."""
    if err.errno in _FULL:
        size = f", at least {needed} bytes needed" if needed else ""
        return WriteError(
            f"{path}: disk full{size}{_free(path.parent)}",
            hint="free space and run the same command again; committed files are kept",
        )
    return WriteError(f"{path}: {err.strerror or err}", hint="check permissions and the file system")


def _free(directory: Path) -> str:
    """The free bytes as the end of a message."""
    try:
        room = os.statvfs(directory)
    except OSError:
        return ""
    return f", {room.f_bavail * room.f_frsize} free"


def write_sealed(path: Path, data: bytes | memoryview) -> None:
    """As `write_atomic`, with a first line that seals the file: the SHA-256 of its name and `data`.

    For files that no manifest lists, such as the state of an unfinished run.
    """
    publish(path, stage_chunks(path.parent, path.name, (_seal(path, data), data), _SEAL + len(data)))


def read_sealed(path: Path, limit: int) -> bytes:
    """The data that `write_sealed` wrote under this name.

    Raises
    ------
    IntegrityError
        The file is missing, damaged, larger than `limit` bytes, or was written under another name.
    """
    with opened(path) as file:
        if os.fstat(file.fileno()).st_size > limit:
            raise IntegrityError(f"{path} has more than {limit} bytes")
        seal, data = file.read(_SEAL), file.read()
    if seal != _seal(path, data):
        raise IntegrityError(f"{path}: damaged")
    return data


_SEAL = 65  # bytes of the seal: 64 digits and a newline


def _seal(path: Path, data: bytes | memoryview) -> bytes:
    digest = hashlib.sha256(path.name.encode() + b"\0")
    digest.update(data)
    return digest.hexdigest().encode() + b"\n"


def read_whole(path: Path) -> bytes:
    """The bytes of a regular file.

    Raises
    ------
    IntegrityError
        The file is missing, a symbolic link, not a regular file, or not readable.
    """
    with opened(path) as file:
        return file.read()


def read_large(path: Path) -> memoryview:
    """The bytes of a regular file, read-only; raises as `read_whole`.

    Into an array: numpy asks the system for large pages, which halves the cost of fresh memory.
    """
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        data, count = np.empty(size + 1, np.uint8), 0  # a byte more shows that the file has grown
        while got := file.readinto(memoryview(data)[count:]):
            count += got
    return memoryview(data)[:count].toreadonly()


@dataclass(frozen=True, slots=True)
class Pin:
    """A file as it was when it was hashed, for readers that cannot decode from bytes in memory.

    The checksum is taken before the file is opened and again after it was read; inode, size and times reveal
    changes in between. Symbolic links are followed.
    """

    path: Path
    sha256: str
    mark: tuple[int, ...]

    @classmethod
    def of(cls, path: Path) -> Self:
        """Hash a file.

        Raises
        ------
        IntegrityError
            The file is missing, not a regular file, or not readable.
        """
        try:
            # Not blocking, so that a pipe is reported instead of waited for.
            handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            with io.FileIO(handle, "r") as stream:
                status = os.fstat(handle)
                if not stat.S_ISREG(status.st_mode):
                    raise IntegrityError(f"{path} is not a regular file")
                return cls(path, hashlib.file_digest(stream, "sha256").hexdigest(), _mark(status))
        except OSError as err:
            raise IntegrityError(f"{path}: {err.strerror or err}") from None

    @property
    def size(self) -> int:
        """Bytes."""
        return self.mark[2]

    def check(self, *, rehash: bool = True) -> None:
        """Check that the file has not changed; without `rehash`, only by inode, size and times.

        Raises
        ------
        IntegrityError
            It was changed, replaced or removed.
        """
        try:
            same = _mark(self.path.stat()) == self.mark
        except OSError:
            same = False
        if not same or (rehash and Pin.of(self.path) != self):
            raise IntegrityError(
                f"{self.path} changed while it was read", hint="run again once nothing writes to it"
            )


def _mark(status: os.stat_result) -> tuple[int, ...]:
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def parse_parquet(data: bytes) -> pa.Table:
    """A table from the bytes of a Parquet file."""
    # With `pyarrow.parquet.read_table`, a thread of Arrow may release `data` last; when that happens while
    # Python ends, the process aborts after all its work is done.
    return pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)


@contextmanager
def opened(path: Path) -> Iterator[io.FileIO]:
    """A regular file, open for reading; `IntegrityError` when that is not what the path leads to."""
    # No links: a directory that comes from elsewhere could otherwise point to any file of the user.
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with io.FileIO(handle, "r") as file:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise IntegrityError(f"{path} is not a regular file")
            yield file
    except OSError as err:
        what = "is a symbolic link" if err.errno == errno.ELOOP else err.strerror or str(err)
        raise IntegrityError(f"{path}: {what}") from None


def hash_file(path: Path, advance: Callable[[int], None] | None = None) -> tuple[int, str]:
    """Size and SHA-256 of a file, read in blocks; `advance` gets the bytes of each."""
    digest, size = hashlib.sha256(), 0
    block = memoryview(bytearray(_BLOCK))
    with opened(path) as file:
        while count := file.readinto(block):
            digest.update(block[:count])
            size += count
            if advance is not None:
                advance(count)
    return size, digest.hexdigest()


def release_pages(part: NDArray[Any]) -> None:
    """Give back the memory of a contiguous part of a map.

    That of a file is read again where it is used again; that of no file is zero from then on.
    """
    base: Any = part
    while isinstance(base.base, np.ndarray):
        base = base.base
    mapped = base.base.obj if isinstance(base.base, memoryview) else base.base
    if not isinstance(mapped, mmap.mmap) or not part.size:
        return
    start = part.ctypes.data - np.frombuffer(mapped, np.uint8).ctypes.data
    first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE  # pages that are this part's alone
    size = (start + part.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE - first
    if size > 0:
        mapped.madvise(mmap.MADV_DONTNEED, first, size)


def remove_temporaries(directory: Path, start: str = TEMPORARY) -> None:
    """Remove what killed writers left; the caller holds the lock, so that nobody is writing."""
    for entry in sorted(os.scandir(directory), key=lambda e: e.name):
        if entry.name.startswith(start):
            with suppress(OSError):
                Path(entry.path).unlink()
