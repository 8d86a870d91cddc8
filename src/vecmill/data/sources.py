"""What is read: files, folders, globs, standard input and URLs become a list of local files with digests."""

from __future__ import annotations

import glob
import hashlib
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa

from vecmill.core.errors import CorruptFileError, InputError, MissingExtraError, unknown_name
from vecmill.data.spool import COPY_BYTES, spool

FORMATS = ("csv", "tsv", "parquet", "json", "jsonl", "arrow", "txt")
SUFFIXES = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".arrow": "arrow",
    ".arrows": "arrow",
    ".feather": "arrow",
    ".txt": "txt",
}
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_BINARY = ("parquet", "arrow")
COMPANIONS = (".receipt.json", ".errors.jsonl", ".vecmill.json")
"""What stands beside a set NAME as NAME + this: no input of a folder or glob while NAME is there."""

Stamp = tuple[int, int, int]
"""Size, time of the last change in nanoseconds, inode: while they stay, the content is taken to stay."""


@dataclass(frozen=True, slots=True)
class Source:
    """One file to read.

    Attributes:
        name: The `file` column: path relative to the input argument with `/`; `-` for standard input.
        path: The local file; standard input and URLs are copied to the spool folder first.
        format: One of `FORMATS`.
        compression: "gzip", "zstd" or None, as `path` is packed.
        size_bytes: Size of the file as given (packed, if it was).
        digest: BLAKE2b-128 of those bytes, hexadecimal.
        stamp: Size, mtime_ns and inode of `path` when it was hashed; no part of the fingerprint.
        local_digest: Digest of the bytes at `path`: another than `digest` where it was unpacked.
    """

    name: str
    path: Path
    format: str
    compression: str | None
    size_bytes: int
    digest: str
    stamp: Stamp
    local_digest: str

    def ensure_unchanged(self) -> None:
        """Raise unless `path` still holds what was hashed; hashes it again only where its stamp differs.

        Raises:
            InputError: It holds something else, or is gone.
        """
        try:
            if _stamp(self.path.stat()) == self.stamp or _hashed(self.path).digest == self.local_digest:
                return
        except FileNotFoundError as error:
            raise InputError(
                f"{self.name} is gone; it existed when the inputs were listed: leave the files alone "
                "while the job runs, then run the same command again"
            ) from error
        except OSError as error:
            raise InputError(f"{self.name} cannot be read: {error.strerror or error}") from error
        raise _changed(self.name)


@dataclass(frozen=True, slots=True)
class Sources:
    """The files of a job in their fixed order: arguments as given, inside a folder or glob by name.

    `skipped` names the files of folders and globs whose suffix is not known; they are not read.
    """

    files: tuple[Source, ...]
    skipped: tuple[str, ...]

    @property
    def fingerprint(self) -> str:
        """Return a digest over names, formats and contents: equal for equal input wherever it lies."""
        digest = hashlib.blake2b(digest_size=16)
        for file in self.files:
            digest.update(f"{file.name}\0{file.format}\0{file.digest}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()

    def ensure_unchanged(self) -> None:
        """Raise unless every file still holds what was hashed. Costs one stat a file that nobody touched.

        Raises:
            InputError: A file holds something else, or is gone.
        """
        for file in self.files:
            file.ensure_unchanged()


@dataclass(frozen=True, slots=True)
class _Found:
    """A file before it is hashed: its short name, where it lies, and what the caller calls it."""

    name: str
    path: Path
    origin: str  # how the caller would recognise it: the path or URL in full
    explicit: bool = True  # named itself, not met in a folder or by a glob
    format: str | None = None


@dataclass(frozen=True, slots=True)
class _Request:
    """What holds for every input of a call."""

    spool_dir: Path
    format: str | None
    exclude: Path | None  # resolved

    def is_output(self, path: Path) -> bool:
        """Whether a path is the excluded one, inside it, or stands beside it by its name."""
        if self.exclude is None:
            return False
        real = path.resolve()
        beside = [self.exclude.with_name(self.exclude.name + suffix) for suffix in COMPANIONS]
        return real.is_relative_to(self.exclude) or real in beside

    def kept(self, root: Path, names: Iterable[str]) -> list[str]:
        """Return the names below a folder that are input, sorted."""
        kept = (n for n in names if not _passed_over(n, lambda other: (root / other).exists()))
        return sorted(name for name in kept if not self.is_output(root / name))


def resolve(
    inputs: Sequence[str | Path],
    *,
    spool_dir: Path,
    format: str | None = None,  # noqa: A002 - the option's name
    exclude: Path | None = None,
) -> Sources:
    """Find, copy where needed, and hash every file the inputs stand for.

    Reads every byte once (for the digests). In folders and globs hidden files, those starting with `_`,
    `*.vecmill` folders and what stands beside a vector set (`COMPANIONS`) are passed over; files of unknown
    suffix are listed in `skipped`.

    Args:
        inputs: Files, folders, globs (`**` too), `-` for standard input, or fsspec URLs.
        spool_dir: Where standard input, remote files and unpacked Parquet or Arrow files are put; made when
            the first of them comes.
        format: Read every file as this format, whatever its suffix. Standard input needs it.
        exclude: The output: it, all inside it and its companions are passed over in folders and globs.

    Raises:
        InputError: Nothing there, an empty folder, a glob without match, an unknown suffix, one file twice,
            or the output itself is named as an input.
        UnknownNameError: `format` is not one of `FORMATS`.
        MissingExtraError: A URL's scheme needs a package that is not installed.
        CorruptFileError: A packed Parquet or Arrow file cannot be unpacked.
        WriteError: A copy cannot be written into `spool_dir`.
    """
    if format is not None and format not in FORMATS:
        raise unknown_name("format", format, FORMATS)
    if not inputs:
        raise InputError("no input was given; name at least one file, folder, glob or URL")
    request = _Request(spool_dir, format, None if exclude is None else exclude.resolve())
    found: list[_Found] = []
    skipped: list[str] = []
    for argument in inputs:
        for item in _expand(argument, request):
            if item.explicit or format is not None or _format_of(item.name)[0] is not None:
                found.append(item)
            else:
                skipped.append(item.name)
    if not found:
        raise InputError(
            f"no file to read in {_listed(str(i) for i in inputs)}: {len(skipped)} files have other suffixes "
            f"({_listed(skipped)}); known are {_known_suffixes()}; or name the format with --format"
        )
    named = _distinct(found)
    return Sources(tuple(_source(item, request) for item in named), tuple(skipped))


def _listed(names: Iterable[str], limit: int = 5) -> str:
    names = list(names)
    return ", ".join(names[:limit]) + (", …" if len(names) > limit else "")


def _known_suffixes() -> str:
    return f"{' '.join(SUFFIXES)}, each also with {' or '.join(COMPRESSIONS)}"


def _format_of(name: str) -> tuple[str | None, str | None]:
    """Return (format, compression) by suffix, in any case of letters; None where unknown."""
    path = PurePosixPath(name.lower())
    compression = COMPRESSIONS.get(path.suffix)
    if compression is not None:
        path = path.with_suffix("")
    return SUFFIXES.get(path.suffix), compression


def _expand(argument: str | Path, request: _Request) -> Iterator[_Found]:
    text = str(argument)
    try:
        if text == "-":
            yield _standard_input(request)
        elif "://" in text:
            yield from _remote(text, request)
        else:
            yield from _local(Path(argument).expanduser(), text, request)
    except OSError as error:
        raise _unreadable(text[:200], error) from error


def _unreadable(origin: str, error: OSError) -> InputError:
    return InputError(f"{origin} cannot be read: {error.strerror or error}")


def _local(path: Path, text: str, request: _Request) -> Iterator[_Found]:
    if path.exists() and request.is_output(path):
        raise InputError(f"{text}: the output is one of the inputs; choose another -o")
    if path.is_dir():
        yield from _folder(path, request)
    elif path.is_file():
        yield _Found(path.name, path, text)
    elif path.exists():  # a pipe, as the shell's <(command): it can be read once only
        local = request.spool_dir / f"pipe-{path.name}"
        with path.open("rb") as stream:
            spool(stream, local, lambda error: _unreadable(text, error))
        yield _Found(path.name, local, text)
    elif glob.has_magic(text):
        yield from _matches(text, request)
    else:
        raise InputError(f"no such file or folder: {text} (looked in {Path.cwd()})")


def _folder(root: Path, request: _Request) -> list[_Found]:
    kept = request.kept(root, (p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()))
    if not kept:
        raise InputError(f"the folder {root} holds no file to read; known suffixes are {_known_suffixes()}")
    return [_Found(name, root / name, str(root / name), explicit=False) for name in kept]


def _passed_over(name: str, exists: Callable[[str], bool]) -> bool:
    """Whether a file met in a folder is no input, whatever the output is."""
    *folders, file = name.split("/")
    if any(part.startswith((".", "_")) for part in (*folders, file)):
        return True
    if any(part.endswith(".vecmill") for part in folders):
        return True
    return any(file.endswith(suffix) and exists(name.removesuffix(suffix)) for suffix in COMPANIONS)


def _matches(pattern: str, request: _Request) -> list[_Found]:
    expanded = Path(pattern).expanduser()
    fixed = Path(*_before_magic(expanded.parts))
    paths = [Path(p) for p in glob.glob(str(expanded), recursive=True)]  # noqa: PTH207 - Path.glob refuses absolute patterns
    kept = request.kept(fixed, (p.relative_to(fixed).as_posix() for p in paths if p.is_file()))
    if not kept:
        raise InputError(f"no file matches {pattern} (looked in {fixed.resolve()})")
    return [_Found(name, fixed / name, str(fixed / name), explicit=False) for name in kept]


def _before_magic(parts: Sequence[str]) -> Iterator[str]:
    for part in parts:
        if glob.has_magic(part):
            return
        yield part


def _standard_input(request: _Request) -> _Found:
    if request.format is None:
        raise InputError(
            "standard input has no suffix: say what it is with --format (csv, tsv, jsonl, txt, …)"
        )
    path = request.spool_dir / "stdin"
    spool(sys.stdin.buffer, path, lambda error: _unreadable("standard input", error))
    return _Found("-", path, "-", format=request.format)


def _remote(url: str, request: _Request) -> list[_Found]:
    scheme, _, _ = url.partition("://")
    if scheme == "file":
        return list(_expand(url.removeprefix("file://"), request))
    system, root = file_system(url)
    if glob.has_magic(root) and not system.exists(root):
        fixed = "/".join(_before_magic(root.split("/")))
        paths, explicit = sorted(p for p in system.glob(root) if not system.isdir(p)), False
    elif system.isdir(root):
        fixed, explicit = root, False
        paths = sorted(system.find(root))
    elif system.exists(root):
        fixed, _, _ = root.rpartition("/")
        paths, explicit = [root], True
    else:
        raise InputError(f"nothing at {url}")
    items = []
    for path in paths:
        name = path.removeprefix(fixed).lstrip("/")
        start = path.removesuffix(name)
        if not explicit and _passed_over(name, lambda other, start=start: system.exists(start + other)):  # type: ignore[misc]  # the default binds the loop's variable
            continue
        origin = f"{scheme}://{path}"
        tag = hashlib.blake2b(origin.encode(), digest_size=6).hexdigest()
        local = request.spool_dir / f"{tag}-{Path(name).name}"
        if explicit or request.format is not None or _format_of(name)[0] is not None:  # others are skipped
            with system.open(path, "rb") as stream:
                spool(stream, local, lambda error, origin=origin: _unreadable(origin, error))  # type: ignore[misc]  # as above
        items.append(_Found(name, local, origin, explicit))
    if not items:
        raise InputError(f"no file to read at {url}; known suffixes are {_known_suffixes()}")
    return items


def file_system(url: str) -> tuple[Any, str]:
    """Open the file system of a URL; `wasbs://container@account.…/path` is Azure's `az://container/path`."""
    from fsspec.core import url_to_fs
    from fsspec.registry import known_implementations as known
    from fsspec.registry import registry

    options: dict[str, Any] = {}
    parts = urlsplit(url)
    if parts.scheme in ("wasb", "wasbs"):
        if parts.username is None:
            raise InputError(
                f"{parts.scheme}:// needs container@account, as in "
                "wasbs://data@account.blob.core.windows.net/x"
            )
        options["account_name"] = (parts.hostname or "").partition(".")[0]
        url = f"az://{parts.username}{parts.path}"
    scheme = url.partition("://")[0]
    if scheme not in known and scheme not in registry:
        raise unknown_name("URL scheme", scheme, known)
    try:
        system, root = url_to_fs(url, **options)
    except ImportError as error:
        needs = known.get(scheme, {}).get("err") or f"it needs the package {error.name!r}"
        raise MissingExtraError(f"{scheme}:// cannot be read here: {needs}") from error
    return system, root


def _distinct(found: list[_Found]) -> list[_Found]:
    """Make clashing names longer by the folders above them; one file given twice is refused."""
    seen: dict[str, _Found] = {}
    for item in found:
        key = item.origin if "://" in item.origin or item.name == "-" else str(item.path.resolve())
        if key in seen:
            raise InputError(f"{item.origin} is given twice (first as {seen[key].origin}); name it once")
        seen[key] = item
    names = [item.name for item in found]
    depth = 1
    while len(set(names)) < len(names):
        clashing = {name for name, times in Counter(names).items() if times > 1}
        names = [
            _longer(item, depth) if name in clashing else name
            for item, name in zip(found, names, strict=True)
        ]
        depth += 1
        if depth > 64:
            pair = [item.origin for item, name in zip(found, names, strict=True) if name in clashing]
            raise InputError(f"{pair[0]} and {pair[1]} would get the same name; read them in two runs")
    return [replace(item, name=name) for item, name in zip(found, names, strict=True)]


def _longer(item: _Found, depth: int) -> str:
    """Return the item's name with `depth` more of the folders that lead to it."""
    full = item.origin.partition("://")[2] if "://" in item.origin else item.path.resolve().as_posix()
    parts = [part for part in full.split("/") if part]
    return "/".join(parts[-(len(item.name.split("/")) + depth) :])


def _source(item: _Found, request: _Request) -> Source:
    by_suffix, compression = _format_of(item.name)
    kind = request.format or item.format or by_suffix
    if kind is None:
        raise InputError(
            f"{item.origin}: the suffix {Path(item.name).suffix or '(none)'} is not known; known are "
            f"{_known_suffixes()}; or name the format with --format"
        )
    if not item.name.isprintable() and item.name != item.name.encode("utf-8", "replace").decode():
        raise InputError(f"{item.name!r}: the file's name is not UTF-8; rename it")
    try:
        given = local = _hashed(item.path)
    except OSError as error:
        raise _unreadable(item.origin, error) from error
    path = item.path
    if compression is None and kind not in _BINARY:
        compression = next((name for magic, name in _MAGIC.items() if given.head.startswith(magic)), None)
    if compression is not None and kind in _BINARY:
        path = _unpacked(item, compression, given, request)
        local, compression = _hashed(path), None
    size = given.stamp[0]
    return Source(item.name, path, kind, compression, size, given.digest, local.stamp, local.digest)


@dataclass(frozen=True, slots=True)
class _Hashed:
    digest: str
    stamp: Stamp
    head: bytes


def _hashed(path: Path) -> _Hashed:
    """Hash a file; it must not change meanwhile."""
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as stream:
        before = _stamp(os.fstat(stream.fileno()))
        head = stream.read(4)
        digest.update(head)
        while chunk := stream.read(COPY_BYTES):
            digest.update(chunk)
        if _stamp(os.fstat(stream.fileno())) != before:
            raise _changed(path.name)
    return _Hashed(digest.hexdigest(), before, head)


def _stamp(found: os.stat_result) -> Stamp:
    return found.st_size, found.st_mtime_ns, found.st_ino


def _changed(name: str) -> InputError:
    return InputError(
        f"{name} changed while the job ran: leave the files alone until it ends, and run the same command "
        "again"
    )


def _unpacked(item: _Found, compression: str, given: _Hashed, request: _Request) -> Path:
    """Unpack a Parquet or Arrow file: these are read at positions, which a packed stream does not allow."""
    path = request.spool_dir / f"{given.digest}-{Path(item.name).stem}"

    def damaged(error: OSError) -> CorruptFileError:
        return CorruptFileError(
            f"{item.origin} cannot be unpacked as {compression} ({error}); fetch or write it again"
        )

    try:
        with pa.input_stream(str(item.path), compression=compression) as stream:
            spool(stream, path, damaged)
    except OSError as error:
        raise damaged(error) from error
    if _stamp(item.path.stat()) != given.stamp:
        raise _changed(item.name)
    return path
