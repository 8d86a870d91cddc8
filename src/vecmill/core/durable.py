"""The only place that writes files to stay: write beside, fsync, rename, fsync the folder; digests and locks.

Every file is either what it was or what it shall be, also after a power cut. A crash can leave a file named
`.NAME.<random>.vecmill-tmp` behind; the next write to NAME removes it, unless another process is writing it.

Everything that changes the disk passes through the few primitives at the end of this page. `watching` lets a
test see each one (`vecmill.testing.crash` replays them as a power cut would) or make it fail.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from vecmill.core.errors import StorageError, WriteError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

TEMP_SUFFIX = ".vecmill-tmp"
"""Ends the name of a file that is being written; readers of folders pass over such names."""

_WRITE_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO})
_LOCK_OFFSET = 1 << 30  # Windows locks bytes against reading too: lock one the pid does not stand on
_MAX_NAME = 150  # bytes of a target's name kept in the name beside it; file systems stop at 255


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a path to write; when the block ends, what was written stands at `path`, whole and on disk.

    The block writes the file (it exists, empty) by whatever means and closes it. Mode and, where allowed,
    owner of a replaced file are kept; a symbolic link stays one and its target is replaced.

    Yields:
        A path in the same folder.

    Raises:
        WriteError: The disk is full, read-only, or does not allow it; what was there before is intact.
            An exception of the block itself passes through, and `path` is untouched as well.
    """
    target = Path(os.path.realpath(path))
    existed = _ensure_replaceable(path, target)
    with _converting(path, existed=existed):
        remove_leftovers(target.parent, target.name)
        temp, descriptor = _create_beside(target)
    renamed = False
    try:
        with _converting(path, existed=existed):
            _copy_mode(target, temp)  # before the content, so that nobody sees more than he may
        try:
            yield temp
        except OSError as error:
            if error.errno in _WRITE_ERRNOS or _names(error, temp):
                raise _write_error(path, error, existed=existed) from error
            raise
        with _converting(path, existed=existed):
            sync_file(temp)
            _rename(temp, target)
            renamed = True
    finally:
        if not renamed:
            with suppress(OSError):
                _unlink(temp)
        os.close(descriptor)
    _confirm(path, target.parent)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a whole file, as `replacing` does.

    Raises:
        WriteError: It could not be written; what was there before is intact.
    """
    with replacing(path) as temp:
        temp.write_bytes(data)


def make_dir(path: Path) -> None:
    """Make a folder and those above it that are missing; each is on disk when this returns.

    Raises:
        WriteError: A name is taken by a file, or the disk does not allow it.
    """
    missing = []
    folder = path.absolute()
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    if not folder.is_dir():
        raise WriteError(f"{path} cannot be made: {folder} is a file")
    for folder in reversed(missing):
        with _converting(path, existed=False):
            _make_dir(folder)
            sync_dir(folder.parent)


def rename(source: Path, target: Path) -> None:
    """Rename a file or folder; on disk when this returns. A file at `target` is replaced.

    Raises:
        WriteError: It could not be renamed; nothing has changed.
    """
    with _converting(target, existed=target.exists()):
        _rename(source, target)
    for folder in dict.fromkeys((target.parent, source.parent)):
        _confirm(target, folder)


def remove(path: Path) -> None:
    """Remove a file; gone from the disk when this returns. A missing one is fine.

    Raises:
        WriteError: It could not be removed.
    """
    with _converting(path, existed=True, verb="removed"):
        try:
            _unlink(path)
        except FileNotFoundError:
            return
        sync_dir(path.parent)


def remove_tree(path: Path) -> None:
    """Remove a folder with all it holds: after a crash it is there whole or not at all. Missing is fine.

    Raises:
        WriteError: It could not be removed.
    """
    remove_leftovers(path.parent, path.name)
    if not path.is_dir():
        return
    aside = _beside(path)
    with _converting(path, existed=True, verb="removed"):
        try:
            _rename(path, aside)
        except PermissionError:  # Windows does not rename a folder in which a file is open
            aside = path
        else:
            sync_dir(path.parent)
        _remove_tree(aside)
        sync_dir(path.parent)


def remove_leftovers(folder: Path, name: str | None = None) -> None:
    """Remove what crashed writes to `name` (to any name: None) left in a folder, if nobody is writing it."""
    if not folder.is_dir():
        return
    start = r"\..+" if name is None else re.escape(f".{_shortened(name)}")
    ours = re.compile(rf"{start}\.[0-9a-f]+{re.escape(TEMP_SUFFIX)}", re.DOTALL)
    for entry in sorted(folder.iterdir()):
        if ours.fullmatch(entry.name):
            with suppress(OSError):  # not ours to remove; it harms nobody
                _remove_leftover(entry)


def is_leftover(path: Path) -> bool:
    """Say whether a file is one that a write in progress, or one that crashed, stands beside its target."""
    return path.name.startswith(".") and path.name.endswith(TEMP_SUFFIX)


def digest_bytes(data: bytes | memoryview) -> str:
    """Return the BLAKE2b-128 digest of some bytes, 32 hex digits."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def digest_file(path: Path) -> str:
    """Return the BLAKE2b-128 digest of a file's bytes, 32 hex digits.

    Raises:
        StorageError: The file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {_reason(error)}") from error


@contextmanager
def lock(path: Path, *, what: str) -> Iterator[None]:
    """Hold a lock that no second holder can take, in this process or another; a crash releases it.

    Args:
        path: The lock's file: made for it, removed with it, holds the holder's process id. A
            crash may leave it.
        what: Names what is locked, in the message.

    Raises:
        StorageError: Somebody else holds it; the message names the process.
        WriteError: The file could not be made.
    """
    descriptor = _locked(path, what)
    try:
        os.truncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode("ascii"))
        yield
    finally:
        with suppress(OSError):  # while it is held: who waits for it sees that the name is gone
            path.unlink()
        os.close(descriptor)  # closing lets go of the lock


def _locked(path: Path, what: str) -> int:
    """Open and lock the file that has the name now, not one that its last holder has just removed."""
    while True:
        with _converting(path, existed=path.exists()):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
        if not _try_lock(descriptor):
            pid = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip() if _HAS_PREAD else ""
            os.close(descriptor)
            who = f"process {pid}" if pid.isdigit() else "another process"
            raise StorageError(f"{what} is in use by {who} ({path}); wait until it ends, or stop it")
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        os.close(descriptor)


class Watcher(Protocol):
    """Sees every change of the disk. Operations: create, fsync, rename, unlink, mkdir, rmdir, fsync_dir."""

    def before(self, operation: str, path: Path) -> None:
        """See what is about to happen to `path`; an OSError raised here happens instead of it."""

    def after(self, operation: str, path: Path) -> None:
        """See that it has happened."""


_watchers: list[Watcher] = []


@contextmanager
def watching(watcher: Watcher) -> Iterator[None]:
    """Let a watcher see every operation of this process while the block runs. For tests."""
    _watchers.append(watcher)
    try:
        yield
    finally:
        _watchers.remove(watcher)


# Primitives: each one operation of the operating system, seen by the watchers.


def sync_file(path: Path) -> None:
    """Bring a file's content to disk."""
    _operate("fsync", path, lambda: _fsync(path))


def sync_dir(path: Path) -> None:
    """Bring a folder's names to disk: what was made, renamed or removed in it."""
    _operate("fsync_dir", path, lambda: _fsync_dir(path))


def _rename(source: Path, target: Path) -> None:
    _operate("rename", target, lambda: source.replace(target))


def _unlink(path: Path) -> None:
    _operate("unlink", path, path.unlink)


def _make_dir(path: Path) -> None:
    _operate("mkdir", path, lambda: path.mkdir(exist_ok=True))


def _remove_dir(path: Path) -> None:
    _operate("rmdir", path, path.rmdir)


def _operate(operation: str, path: Path, action: Callable[[], object]) -> None:
    for watcher in _watchers:
        watcher.before(operation, path)
    action()
    for watcher in _watchers:
        watcher.after(operation, path)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR | getattr(os, "O_BINARY", 0))
    try:
        if sys.platform == "darwin":
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)  # plain fsync stops at the drive's own cache there
        else:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _fsync_dir(path: Path) -> None:
    if sys.platform == "win32":
        return  # folders cannot be opened there; NTFS journals names by itself
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems know no such thing
            raise
    finally:
        os.close(descriptor)


# Helpers.

_HAS_PREAD = hasattr(os, "pread")


def _ensure_replaceable(path: Path, target: Path) -> bool:
    """Refuse what cannot be replaced, before anything is written. Say whether a file is there."""
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        if not target.parent.is_dir():
            raise WriteError(f"{path} cannot be written: the folder {target.parent} does not exist") from None
        return False
    except OSError as error:
        raise _write_error(path, error, existed=True) from error
    if stat.S_ISDIR(mode):
        raise WriteError(f"{path} cannot be written: it is a folder; name a file")
    if not stat.S_ISREG(mode):
        raise WriteError(f"{path} cannot be written: it is not a regular file; name one")
    if not os.access(target, os.W_OK):
        raise WriteError(
            f"{path} cannot be written: it is write-protected; allow writing or name another file"
        )
    return True


def _create_beside(target: Path) -> tuple[Path, int]:
    """Make an empty file beside the target and hold its lock, so that nobody takes it for a leftover."""
    while True:
        temp = _beside(target)
        descriptors: list[int] = []
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
        _operate("create", temp, lambda t=temp, f=flags, d=descriptors: d.append(os.open(t, f, 0o666)))  # type: ignore[misc]  # defaults bind the loop's variables
        descriptor = descriptors[0]
        if sys.platform == "win32":
            return temp, descriptor  # an open file cannot be removed there
        with suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if temp.exists():
            return temp, descriptor
        os.close(descriptor)  # taken for a leftover in the moment before it was locked


def _beside(target: Path) -> Path:
    return target.with_name(f".{_shortened(target.name)}.{secrets.token_hex(6)}{TEMP_SUFFIX}")


def _shortened(name: str) -> str:
    raw = os.fsencode(name)
    if len(raw) <= _MAX_NAME:
        return name
    kept = raw[:_MAX_NAME].decode("utf-8", "ignore")
    return f"{kept}-{hashlib.blake2b(raw, digest_size=4).hexdigest()}"


def _remove_leftover(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        _remove_tree(path)
        return
    if sys.platform == "win32":
        _unlink(path)
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if _try_lock(descriptor):
            _unlink(path)
    finally:
        os.close(descriptor)


def _remove_tree(path: Path) -> None:
    for entry in sorted(path.iterdir()):
        if entry.is_dir() and not entry.is_symlink():
            _remove_tree(entry)
        else:
            _unlink(entry)
    _remove_dir(path)


def _try_lock(descriptor: int) -> bool:
    try:
        if sys.platform == "win32":
            os.lseek(descriptor, _LOCK_OFFSET, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
            os.lseek(descriptor, 0, os.SEEK_SET)
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _copy_mode(target: Path, temp: Path) -> None:
    try:
        was = target.stat()
    except FileNotFoundError:
        return
    made = temp.stat()
    if sys.platform != "win32" and (was.st_uid, was.st_gid) != (made.st_uid, made.st_gid):
        with suppress(PermissionError):  # only root may give files away
            os.chown(temp, was.st_uid, was.st_gid)
    temp.chmod(stat.S_IMODE(was.st_mode))


def _confirm(path: Path, folder: Path) -> None:
    try:
        sync_dir(folder)
    except OSError as error:
        raise WriteError(
            f"{path} is written, but the disk did not confirm it: {_reason(error)}; check the disk"
        ) from error


@contextmanager
def _converting(path: Path, *, existed: bool, verb: str = "written") -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _write_error(path, error, existed=existed, verb=verb) from error


def _write_error(path: Path, error: OSError, *, existed: bool, verb: str = "written") -> WriteError:
    kept = "what was there before is intact" if existed else "nothing is left behind"
    return WriteError(f"{path} cannot be {verb}: {_reason(error)}; {kept}")


def _reason(error: OSError) -> str:
    if error.errno is None:
        return str(error)
    hints = {
        errno.ENOSPC: " (free some space and run again)",
        errno.EDQUOT: " (your quota is used up)",
        errno.EFBIG: " (the file would be larger than allowed)",
        errno.EACCES: " (you may not write there)",
    }
    return os.strerror(error.errno) + hints.get(error.errno, "")


def _names(error: OSError, temp: Path) -> bool:
    return error.filename is not None and os.fspath(error.filename) == os.fspath(temp)
