from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from vecmill.core import durable
from vecmill.core.errors import StorageError, WriteError


class Failing:
    """Raise an errno in place of one kind of operation."""

    def __init__(self, operation: str, number: int) -> None:
        self.operation, self.number = operation, number

    def before(self, operation: str, path: Path) -> None:
        if operation == self.operation:
            raise OSError(self.number, os.strerror(self.number), str(path))

    def after(self, operation: str, path: Path) -> None:
        pass


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_write_replaces_whole_content(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    durable.write_bytes(path, b"old and long")
    durable.write_bytes(path, b"new")
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["a.bin"]


def fail_halfway(temp: Path) -> None:
    temp.write_bytes(b"half")
    raise ZeroDivisionError


def test_error_in_the_block_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), durable.replacing(path) as temp:
        fail_halfway(temp)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a.bin"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("operation", ["create", "fsync", "rename"])
def test_failing_disk_is_a_write_error_and_the_old_file_is_intact(
    tmp_path: Path, operation: str, number: int
) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(WriteError, match="intact") as caught, durable.watching(Failing(operation, number)):
        durable.write_bytes(path, b"new")
    assert str(path) in str(caught.value)
    assert os.strerror(number) in str(caught.value)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a.bin"]


def test_failing_folder_sync_is_not_called_intact(tmp_path: Path) -> None:
    with (
        pytest.raises(WriteError, match="did not confirm"),
        durable.watching(Failing("fsync_dir", errno.EIO)),
    ):
        durable.write_bytes(tmp_path / "a.bin", b"new")


def test_full_disk_while_writing_is_a_write_error(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(WriteError, match="No space left"), durable.replacing(path):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert path.read_bytes() == b"old"


def test_foreign_error_of_the_block_passes_through(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), durable.replacing(tmp_path / "a.bin"):
        (tmp_path / "absent").read_bytes()
    with pytest.raises(ConnectionResetError), durable.replacing(tmp_path / "a.bin"):
        raise ConnectionResetError(errno.ECONNRESET, "reset")
    assert names(tmp_path) == []


_LIMITED = """
import resource, signal, sys
from pathlib import Path
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
from vecmill.core import durable
from vecmill.core.errors import WriteError
try:
    durable.write_bytes(Path(sys.argv[1]), bytes(5000))
except WriteError as error:
    print(error)
    sys.exit(7)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX limits")
def test_a_real_limit_on_file_size_is_a_write_error(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", _LIMITED, str(path)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 7, done.stderr
    assert "larger than allowed" in done.stdout
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a.bin"]


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX modes")
def test_mode_of_a_replaced_file_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    path.chmod(0o640)
    with durable.replacing(path) as temp:
        assert stat.S_IMODE(temp.stat().st_mode) == 0o640
        temp.write_bytes(b"new")
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX modes")
def test_a_new_file_has_the_mode_the_umask_allows(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        durable.write_bytes(tmp_path / "a.bin", b"new")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.bin").stat().st_mode) == 0o640


def test_a_symbolic_link_stays_one(tmp_path: Path) -> None:
    real, link = tmp_path / "real.bin", tmp_path / "link.bin"
    real.write_bytes(b"old")
    link.symlink_to(real)
    durable.write_bytes(link, b"new")
    assert link.is_symlink()
    assert real.read_bytes() == b"new"


def test_unwritable_targets_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(WriteError, match="is a folder"):
        durable.write_bytes(tmp_path, b"")
    with pytest.raises(WriteError, match="does not exist"):
        durable.write_bytes(tmp_path / "absent" / "a.bin", b"")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(WriteError, match="is a file"):
        durable.make_dir(tmp_path / "file" / "folder")


def test_leftovers_of_a_crash_go_with_the_next_write_to_the_same_name(tmp_path: Path) -> None:
    left, other = tmp_path / ".a.bin.00ff.vecmill-tmp", tmp_path / ".a.bin.gz.00ff.vecmill-tmp"
    left.write_bytes(b"half")
    other.write_bytes(b"half")
    durable.write_bytes(tmp_path / "a.bin", b"new")
    assert names(tmp_path) == [other.name, "a.bin"]
    durable.remove_leftovers(tmp_path)
    assert names(tmp_path) == ["a.bin"]
    assert durable.is_leftover(other)
    assert not durable.is_leftover(tmp_path / "a.bin")


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX locks")
def test_a_file_that_is_being_written_is_no_leftover(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    with durable.replacing(path) as first:
        first.write_bytes(b"first")
        durable.write_bytes(path, b"second")
        assert first.exists()
    assert path.read_bytes() == b"first"


def test_a_very_long_name_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / ("ä" * 120 + ".parquet")
    durable.write_bytes(path, b"new")
    assert path.read_bytes() == b"new"


def test_folders_trees_and_renames(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b" / "c"
    durable.make_dir(folder)
    durable.make_dir(folder)
    durable.write_bytes(folder / "x", b"x")
    durable.rename(folder / "x", tmp_path / "a" / "x")
    assert (tmp_path / "a" / "x").read_bytes() == b"x"
    durable.remove(tmp_path / "a" / "x")
    durable.remove(tmp_path / "a" / "x")
    durable.write_bytes(folder / "y", b"y")
    durable.remove_tree(tmp_path / "a")
    durable.remove_tree(tmp_path / "a")
    assert names(tmp_path) == []


def test_rename_of_a_missing_file_is_a_write_error(tmp_path: Path) -> None:
    with pytest.raises(WriteError, match="No such file"):
        durable.rename(tmp_path / "absent", tmp_path / "a")


def test_digest_names_content(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"one")
    (tmp_path / "b").write_bytes(b"one")
    assert durable.digest_file(tmp_path / "a") == durable.digest_file(tmp_path / "b")
    assert len(durable.digest_file(tmp_path / "a")) == 32
    (tmp_path / "b").write_bytes(b"two")
    assert durable.digest_file(tmp_path / "a") != durable.digest_file(tmp_path / "b")
    with pytest.raises(StorageError, match="cannot be read"):
        durable.digest_file(tmp_path / "absent")


def test_a_lock_is_held_once_and_names_its_holder(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with durable.lock(path, what="out.parquet"):
        with pytest.raises(StorageError, match=rf"out.parquet is in use by process {os.getpid()}"):
            durable.lock(path, what="out.parquet").__enter__()
        code = "import sys; from pathlib import Path; from vecmill.core import durable\n"
        code += "durable.lock(Path(sys.argv[1]), what='it').__enter__()"
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(
            [sys.executable, "-c", code, str(path)], capture_output=True, text=True, env=environment
        )
        assert "StorageError" in done.stderr
    assert not path.exists()
    with durable.lock(path, what="out.parquet"):
        pass


def test_a_lock_whose_file_was_removed_by_its_last_holder_is_taken_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, real, removed = tmp_path / "lock", durable._try_lock, []

    def after_the_holder_left(descriptor: int) -> bool:
        if not removed:
            path.unlink()  # between our open and our lock
            removed.append(True)
        return real(descriptor)

    monkeypatch.setattr(durable, "_try_lock", after_the_holder_left)
    with durable.lock(path, what="it"):
        monkeypatch.undo()
        with pytest.raises(StorageError, match="in use"):
            durable.lock(path, what="it").__enter__()
