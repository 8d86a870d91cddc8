"""Finding the input: names, order, digests, refusals."""

from __future__ import annotations

import gzip
import io
import os
import threading
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vecmill.core.errors import CorruptFileError, InputError, MissingExtraError, UnknownNameError
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
    assert scan(found).rows == (1,) * len(expected)


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
