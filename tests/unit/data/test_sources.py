"""Finding the input: names, order, digests, refusals."""

from __future__ import annotations

import errno
import gzip
import io
import os
import threading
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vecmill.core import durable
from vecmill.core.errors import (
    CorruptFileError,
    InputError,
    MissingExtraError,
    UnknownNameError,
    WriteError,
)
from vecmill.data.readers import batches, scan
from vecmill.data.sources import SUFFIXES, Sources, resolve


def write(folder: Path, *names: str, content: str = "text\nx\n") -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def names(sources: Sources) -> list[str]:
    return [file.name for file in sources.files]


@pytest.fixture
def spool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("spool")


def test_folder_is_read_recursively_by_name_and_skips_are_listed(tmp_path: Path, spool: Path) -> None:
    write(
        tmp_path,
        "b.csv",
        "a/z.CSV",
        "a/b.jsonl",
        "notes.md",
        ".hidden.csv",
        "_SUCCESS",
        "_x/y.csv",
        ".git/a.csv",
    )
    write(tmp_path, "out.parquet.vecmill/part.arrow")
    found = resolve([tmp_path], spool_dir=spool)
    assert names(found) == ["a/b.jsonl", "a/z.CSV", "b.csv"]
    assert found.skipped == ("notes.md",)
    assert [file.format for file in found.files] == ["jsonl", "csv", "csv"]


def test_arguments_keep_their_order(tmp_path: Path, spool: Path) -> None:
    write(tmp_path, "b.csv", "a.csv", "c/d.csv")
    found = resolve([tmp_path / "c", tmp_path / "b.csv", str(tmp_path / "a.csv")], spool_dir=spool)
    assert names(found) == ["d.csv", "b.csv", "a.csv"]


def test_globs_are_named_from_their_fixed_part(
    tmp_path: Path, spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "in/b.csv", "in/a/c.csv", "in/a/d/e.csv", "in/x.txt", "in/a/f.md")
    assert names(resolve([f"{tmp_path}/in/**/*.csv"], spool_dir=spool)) == ["a/c.csv", "a/d/e.csv", "b.csv"]
    monkeypatch.chdir(tmp_path)
    found = resolve(["in/*/*"], spool_dir=spool)
    assert (names(found), found.skipped) == (["a/c.csv"], ("a/f.md",))


def test_file_whose_name_looks_like_a_glob_is_a_file(tmp_path: Path, spool: Path) -> None:
    write(tmp_path, "a[1].csv")
    assert names(resolve([tmp_path / "a[1].csv"], spool_dir=spool)) == ["a[1].csv"]


def test_clashing_names_are_made_longer(tmp_path: Path, spool: Path) -> None:
    write(tmp_path, "x/2024/a.csv", "y/2024/a.csv", "b.csv")
    found = resolve(
        [tmp_path / "x/2024/a.csv", tmp_path / "y/2024/a.csv", tmp_path / "b.csv"], spool_dir=spool
    )
    assert names(found) == ["x/2024/a.csv", "y/2024/a.csv", "b.csv"]


def test_file_given_twice_is_refused(tmp_path: Path, spool: Path) -> None:
    write(tmp_path, "a.csv")
    with pytest.raises(InputError, match="given twice"):
        resolve([tmp_path, tmp_path / "a.csv"], spool_dir=spool)


@pytest.mark.parametrize("suffix", sorted(SUFFIXES))
@pytest.mark.parametrize(
    ("packing", "compression"), [("", None), (".gz", "gzip"), (".zst", "zstd"), (".GZ", "gzip")]
)
def test_suffixes_in_any_case_tell_format_and_packing(
    tmp_path: Path, spool: Path, suffix: str, packing: str, compression: str | None
) -> None:
    path = tmp_path / f"a{suffix.upper()}{packing}"
    with pa.output_stream(str(path), compression=compression) as out:
        out.write(b"content")
    (file,) = resolve([path], spool_dir=spool).files
    assert file.format == SUFFIXES[suffix]
    if file.format in ("parquet", "arrow"):
        assert (file.compression, file.path.read_bytes()) == (None, b"content")
    else:
        assert (file.compression, file.path) == (compression, path)
    assert file.size_bytes == path.stat().st_size


def test_packed_parquet_is_read(tmp_path: Path, spool: Path) -> None:
    pq.write_table(pa.table({"text": ["a", "b"]}), tmp_path / "a.parquet")
    (tmp_path / "a.parquet.gz").write_bytes(gzip.compress((tmp_path / "a.parquet").read_bytes()))
    found = resolve([tmp_path / "a.parquet.gz"], spool_dir=spool)
    assert scan(found).rows == (2,)
    (tmp_path / "a.parquet.gz").write_bytes((tmp_path / "a.parquet.gz").read_bytes()[:-20])
    with pytest.raises(CorruptFileError, match=r"a\.parquet\.gz cannot be unpacked"):
        resolve([tmp_path / "a.parquet.gz"], spool_dir=spool)


def test_packed_text_under_a_plain_name_is_recognised(tmp_path: Path, spool: Path) -> None:
    (tmp_path / "a.csv").write_bytes(gzip.compress(b"text\nx\n"))
    assert scan(resolve([tmp_path / "a.csv"], spool_dir=spool)).rows == (1,)


def test_fingerprint_follows_names_formats_and_contents_only(tmp_path: Path, spool: Path) -> None:
    write(tmp_path, "x/a.csv", "y/a.csv", "y/b.csv")

    def of(*paths: str, **options: str) -> str:
        return resolve([tmp_path / path for path in paths], spool_dir=spool, **options).fingerprint

    first = of("x/a.csv")
    assert first == of("y/a.csv")
    os.utime(tmp_path / "x/a.csv", (1, 1))
    assert first == of("x/a.csv")
    assert len({first, of("y/b.csv"), of("x/a.csv", "y/b.csv"), of("x/a.csv", format="tsv")}) == 4
    write(tmp_path, "x/a.csv", content="text\ny\n")
    assert first != of("x/a.csv")


def test_standard_input_is_spooled_and_hashed(
    tmp_path: Path, spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "a.csv")

    class Stdin:
        buffer = io.BytesIO(gzip.compress(b"text\nx\n"))

    monkeypatch.setattr("sys.stdin", Stdin)
    found = resolve(["-"], spool_dir=spool / "new", format="csv")
    assert names(found) == ["-"]
    assert [batch.file for batch in batches(found, scan(found))] == ["-"]


def test_changed_file_is_found_and_one_only_touched_is_not(tmp_path: Path, spool: Path) -> None:
    write(tmp_path, "a.csv", "b.csv", content="text\nx\n")
    found = resolve([tmp_path], spool_dir=spool)
    was = (tmp_path / "b.csv").stat()
    assert found.files[1].stamp == (was.st_size, was.st_mtime_ns, was.st_ino)
    found.ensure_unchanged()
    os.utime(tmp_path / "b.csv", (1, 1))
    (tmp_path / "b.csv").replace(tmp_path / "moved")
    write(tmp_path, "b.csv", content="text\nx\n")
    found.ensure_unchanged()
    write(tmp_path, "b.csv", content="text\ny\n")
    os.utime(tmp_path / "b.csv", (1, 1))
    with pytest.raises(InputError, match=r"^b\.csv changed while the job ran: leave the files alone"):
        found.ensure_unchanged()
    (tmp_path / "b.csv").unlink()
    with pytest.raises(InputError, match=r"^b\.csv is gone"):
        found.ensure_unchanged()


def test_stamp_is_no_part_of_the_fingerprint(tmp_path: Path, spool: Path) -> None:
    write(tmp_path, "a.csv")
    first = resolve([tmp_path], spool_dir=spool)
    os.utime(tmp_path / "a.csv", (1, 1))
    second = resolve([tmp_path], spool_dir=spool)
    assert first.files[0].stamp != second.files[0].stamp
    assert first.fingerprint == second.fingerprint


def test_unpacked_copy_is_watched_too(tmp_path: Path, spool: Path) -> None:
    pq.write_table(pa.table({"text": ["a", "b"]}), tmp_path / "a.parquet")
    (tmp_path / "a.parquet.gz").write_bytes(gzip.compress((tmp_path / "a.parquet").read_bytes()))
    found = resolve([tmp_path / "a.parquet.gz"], spool_dir=spool)
    copy = found.files[0].path
    os.utime(copy, (1, 1))
    found.ensure_unchanged()
    copy.write_bytes(b"other")
    with pytest.raises(InputError, match="changed"):
        found.ensure_unchanged()


@pytest.mark.parametrize("as_glob", [False, True])
def test_output_and_what_stands_beside_it_are_no_input(tmp_path: Path, spool: Path, as_glob: bool) -> None:
    write(tmp_path, "a.csv", "deep/b.csv", "notes.errors.jsonl", "deep/x.receipt.json")
    ours = ["out.jsonl", "out.jsonl.receipt.json", "out.jsonl.errors.jsonl", "out.jsonl.vecmill.json"]
    others = ["deep/old.npy.vecmill.json", "deep/old.npy", "deep/set.receipt.json", "deep/set/part.parquet"]
    write(tmp_path, *ours, *others)
    named = f"{tmp_path}/**" if as_glob else tmp_path
    found = resolve([named], spool_dir=spool, exclude=tmp_path / "out.jsonl")
    wanted = ["a.csv", "deep/b.csv", "deep/set/part.parquet", "deep/x.receipt.json", "notes.errors.jsonl"]
    assert (names(found), found.skipped) == (wanted, ("deep/old.npy",))
    (tmp_path / "out.jsonl").unlink()  # its companions are still no input
    assert names(resolve([named], spool_dir=spool, exclude=tmp_path / "out.jsonl")) == wanted


def test_output_that_is_a_folder_is_no_input(tmp_path: Path, spool: Path) -> None:
    write(tmp_path, "a.csv", "out/part-1.parquet", "out/deep/x.csv", "outside.csv", "out.receipt.json")
    (tmp_path / "link").symlink_to(tmp_path)
    found = resolve([tmp_path / "link"], spool_dir=spool, exclude=tmp_path / "out")
    assert (names(found), found.skipped) == (["a.csv", "outside.csv"], ())


@pytest.mark.parametrize(
    "named", ["out.jsonl", "link.jsonl", "out.jsonl.errors.jsonl", "set", "set/a.parquet"]
)
def test_output_named_as_input_is_refused(tmp_path: Path, spool: Path, named: str) -> None:
    write(tmp_path, "out.jsonl", "out.jsonl.errors.jsonl", "set/a.parquet")
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "out.jsonl")
    output = tmp_path / ("set" if named.startswith("set") else "out.jsonl")
    with pytest.raises(InputError, match="the output is one of the inputs; choose another -o"):
        resolve([tmp_path / named], spool_dir=spool, exclude=output)


def test_spool_folder_is_made_only_for_what_is_spooled(tmp_path: Path) -> None:
    write(tmp_path, "in/a.csv")
    resolve([tmp_path / "in"], spool_dir=tmp_path / "spool")
    assert not (tmp_path / "spool").exists()


class Stdin:
    """Standard input that gives some bytes and then fails."""

    def __init__(self, *pieces: bytes | BaseException) -> None:
        self.buffer = self
        self._pieces = list(pieces)

    def read(self, _: int) -> bytes:
        piece = self._pieces.pop(0) if self._pieces else b""
        if isinstance(piece, BaseException):
            raise piece
        return piece


def test_spool_that_cannot_be_written_is_a_write_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "file")
    monkeypatch.setattr("sys.stdin", Stdin(b"text\n"))
    with pytest.raises(WriteError, match=r"input cannot be copied: .* is a file"):
        resolve(["-"], spool_dir=tmp_path / "file" / "input", format="csv")

    class Full:
        def before(self, operation: str, path: Path) -> None:
            if operation == "fsync":
                raise OSError(errno.ENOSPC, "No space left on device", str(path))

        def after(self, operation: str, path: Path) -> None:
            pass

    monkeypatch.setattr("sys.stdin", Stdin(b"text\n"))
    with pytest.raises(WriteError, match="No space left"), durable.watching(Full()):
        resolve(["-"], spool_dir=tmp_path / "spool", format="csv")
    assert list((tmp_path / "spool").iterdir()) == []


def test_standard_input_that_fails_is_an_input_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", Stdin(b"text\n", OSError(errno.EIO, "Input/output error")))
    with pytest.raises(InputError, match="standard input cannot be read: Input/output error"):
        resolve(["-"], spool_dir=tmp_path / "spool", format="csv")
    assert list((tmp_path / "spool").iterdir()) == []


def test_interrupt_while_standard_input_is_read_passes_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", Stdin(b"text\n", KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        resolve(["-"], spool_dir=tmp_path / "spool", format="csv")
    assert list((tmp_path / "spool").iterdir()) == []


def test_standard_input_needs_a_format(spool: Path) -> None:
    with pytest.raises(InputError, match="--format"):
        resolve(["-"], spool_dir=spool)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("nowhere.csv", "no such file or folder: .*nowhere.csv"),
        ("*.csv", "no file matches"),
        ("empty", "holds no file"),
        ("only_md", r"1 files have other suffixes \(a\.md\)"),
        ("only_md/a.md", r"suffix \.md is not known.*\.csv.*--format"),
        ("bare", r"suffix \(none\) is not known"),
    ],
)
def test_nothing_to_read_says_what_would_be_right(
    tmp_path: Path, spool: Path, argument: str, message: str
) -> None:
    (tmp_path / "empty").mkdir()
    write(tmp_path, "only_md/a.md", "bare")
    with pytest.raises(InputError, match=message):
        resolve([str(tmp_path / argument)], spool_dir=spool)


def test_path_no_file_can_have_is_an_input_error(spool: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        resolve(["long" * 2000], spool_dir=spool)


def test_pipe_is_spooled(tmp_path: Path, spool: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_text("text\nx\n"))
    writer.start()
    found = resolve([pipe], spool_dir=spool, format="csv")
    writer.join()
    assert names(found) == ["pipe"]
    assert scan(found).rows == (1,)


def test_name_that_is_no_utf8_is_refused(tmp_path: Path, spool: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.csv")).write_text("text\nx\n")
    with pytest.raises(InputError, match="rename"):
        resolve([tmp_path], spool_dir=spool)


def test_no_input_and_unknown_format_are_refused(tmp_path: Path, spool: Path) -> None:
    with pytest.raises(InputError, match="no input"):
        resolve([], spool_dir=spool)
    with pytest.raises(UnknownNameError, match="did you mean 'parquet'"):
        resolve([tmp_path], spool_dir=spool, format="parket")


def test_named_format_wins_over_the_suffix(tmp_path: Path, spool: Path) -> None:
    write(tmp_path, "a.log")
    assert resolve([tmp_path / "a.log"], spool_dir=spool, format="csv").files[0].format == "csv"


@pytest.fixture
def memory() -> fsspec.AbstractFileSystem:
    system = fsspec.filesystem("memory")
    system.store.clear()
    for name in ("/bucket/a.csv", "/bucket/deep/b.csv.gz", "/bucket/_x.csv", "/bucket/c.md"):
        content = b"text\nx\n"
        system.pipe(name, gzip.compress(content) if name.endswith("gz") else content)
    return system


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("memory://bucket/a.csv", ["a.csv"]),
        ("memory://bucket", ["a.csv", "deep/b.csv.gz"]),
        ("memory://bucket/*.csv", ["a.csv"]),
        ("memory://bucket/**/*.gz", ["deep/b.csv.gz"]),
    ],
)
def test_urls_are_copied_to_the_spool_folder(
    memory: fsspec.AbstractFileSystem, spool: Path, url: str, expected: list[str]
) -> None:
    found = resolve([url], spool_dir=spool)
    assert names(found) == expected
    assert found.skipped == (("c.md",) if url == "memory://bucket" else ())
    assert all(file.path.parent == spool for file in found.files)
    found.ensure_unchanged()
    assert scan(found).rows == (1,) * len(expected)


def test_companions_of_a_remote_set_are_no_input(memory: fsspec.AbstractFileSystem, spool: Path) -> None:
    for name in ("a.csv.receipt.json", "other.receipt.json", "deep.errors.jsonl"):
        memory.pipe(f"/bucket/{name}", b"{}")
    found = resolve(["memory://bucket"], spool_dir=spool)
    assert names(found) == ["a.csv", "deep/b.csv.gz", "other.receipt.json"]


@pytest.mark.parametrize("url", ["memory://bucket/nothing.csv", "memory://bucket/*.parquet"])
def test_url_without_a_file_is_an_input_error(
    memory: fsspec.AbstractFileSystem, spool: Path, url: str
) -> None:
    with pytest.raises(InputError, match="at memory://"):
        resolve([url], spool_dir=spool)


@pytest.mark.parametrize(
    ("url", "package"),
    [("s3://bucket/a.csv", "s3fs"), ("wasbs://data@account.blob.core.windows.net/a.csv", "adlfs")],
)
def test_missing_file_system_names_its_package(
    spool: Path, url: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(MissingExtraError, match=package):
        resolve([url], spool_dir=spool)


def test_unknown_scheme_is_named(spool: Path) -> None:
    with pytest.raises(UnknownNameError, match="s3"):
        resolve(["s33://bucket/a.csv"], spool_dir=spool)
