"""What is read: files, folders, globs, standard input and URLs become a list of local files with digests."""

from __future__ import annotations

import glob
import hashlib
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import urlsplit

import pyarrow as pa

from vecmill.core.errors import CorruptFileError, InputError, MissingExtraError, unknown_name

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
_CHUNK = 1 << 20


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
    """

    name: str
    path: Path
    format: str
    compression: str | None
    size_bytes: int
    digest: str


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


@dataclass(frozen=True, slots=True)
class _Found:
    """A file before it is hashed: its short name, where it lies, and what the caller calls it."""

    name: str
    path: Path
    origin: str  # how the caller would recognise it: the path or URL in full
    explicit: bool = True  # named itself, not met in a folder or by a glob
    format: str | None = None


def resolve(inputs: Sequence[str | Path], *, spool_dir: Path, format: str | None = None) -> Sources:  # noqa: A002 - the option's name
    """Find, copy where needed, and hash every file the inputs stand for.

    Reads every byte once (for the digests). Hidden files, those starting with `_` and `*.vecmill` folders are
    passed over; files of unknown suffix inside folders are listed in `skipped`.

    Args:
        inputs: Files, folders, globs (`**` too), `-` for standard input, or fsspec URLs.
        spool_dir: Where standard input, remote files and unpacked Parquet or Arrow files are put.
        format: Read every file as this format, whatever its suffix. Standard input needs it.

    Raises:
        InputError: Nothing there, an empty folder, a glob without match, an unknown suffix, one file twice.
        UnknownNameError: `format` is not one of `FORMATS`.
        MissingExtraError: A URL's scheme needs a package that is not installed.
        CorruptFileError: A packed Parquet or Arrow file cannot be unpacked.
    """
    if format is not None and format not in FORMATS:
        raise unknown_name("format", format, FORMATS)
    if not inputs:
        raise InputError("no input was given; name at least one file, folder, glob or URL")
    found: list[_Found] = []
    skipped: list[str] = []
    for argument in inputs:
        for item in _expand(argument, spool_dir, format):
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
    return Sources(tuple(_source(item, spool_dir, format) for item in named), tuple(skipped))


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


def _expand(argument: str | Path, spool_dir: Path, format: str | None) -> Iterator[_Found]:  # noqa: A002 - as above
    text = str(argument)
    if text == "-":
        yield _standard_input(spool_dir, format)
    elif "://" in text:
        yield from _remote(text, spool_dir, format)
    else:
        try:
            yield from _local(Path(argument).expanduser(), text, spool_dir)
        except OSError as error:
            raise InputError(f"{text[:200]} cannot be read: {error.strerror or error}") from error


def _local(path: Path, text: str, spool_dir: Path) -> Iterator[_Found]:
    if path.is_dir():
        yield from _folder(path)
    elif path.is_file():
        yield _Found(path.name, path, text)
    elif path.exists():  # a pipe, as the shell's <(command): it can be read once only
        local = spool_dir / f"pipe-{path.name}"
        with path.open("rb") as stream:
            _copy(stream, local)
        yield _Found(path.name, local, text)
    elif glob.has_magic(text):
        yield from _matches(text)
    else:
        raise InputError(f"no such file or folder: {text} (looked in {Path.cwd()})")


def _folder(root: Path) -> list[_Found]:
    names = sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file())
    kept = [name for name in names if not _passed_over(name)]
    if not kept:
        raise InputError(f"the folder {root} holds no file to read; known suffixes are {_known_suffixes()}")
    return [_Found(name, root / name, str(root / name), explicit=False) for name in kept]


def _passed_over(name: str) -> bool:
    *folders, file = name.split("/")
    hidden = any(part.startswith((".", "_")) for part in (*folders, file))
    return hidden or any(part.endswith(".vecmill") for part in folders)


def _matches(pattern: str) -> list[_Found]:
    expanded = Path(pattern).expanduser()
    fixed = Path(*_before_magic(expanded.parts))
    paths = [Path(p) for p in glob.glob(str(expanded), recursive=True)]  # noqa: PTH207 - Path.glob refuses absolute patterns
    names = sorted(p.relative_to(fixed).as_posix() for p in paths if p.is_file())
    kept = [name for name in names if not _passed_over(name)]
    if not kept:
        raise InputError(f"no file matches {pattern} (looked in {fixed.resolve()})")
    return [_Found(name, fixed / name, str(fixed / name), explicit=False) for name in kept]


def _before_magic(parts: Sequence[str]) -> Iterator[str]:
    for part in parts:
        if glob.has_magic(part):
            return
        yield part


def _standard_input(spool_dir: Path, format: str | None) -> _Found:  # noqa: A002 - as above
    if format is None:
        raise InputError(
            "standard input has no suffix: say what it is with --format (csv, tsv, jsonl, txt, …)"
        )
    path = spool_dir / "stdin"
    _copy(sys.stdin.buffer, path)
    return _Found("-", path, "-", format=format)


def _copy(stream: IO[bytes] | Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".part")
    with beside.open("wb") as out:
        while chunk := stream.read(_CHUNK):
            out.write(chunk)
    beside.replace(path)


def _remote(url: str, spool_dir: Path, format: str | None) -> list[_Found]:  # noqa: A002 - as above
    scheme, _, _ = url.partition("://")
    if scheme == "file":
        return list(_expand(url.removeprefix("file://"), spool_dir, format))
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
        if not explicit and _passed_over(name):
            continue
        local = (
            spool_dir
            / f"{hashlib.blake2b(f'{scheme}://{path}'.encode(), digest_size=6).hexdigest()}-{Path(name).name}"
        )
        if explicit or format is not None or _format_of(name)[0] is not None:  # others are skipped
            with system.open(path, "rb") as stream:
                _copy(stream, local)
        items.append(_Found(name, local, f"{scheme}://{path}", explicit))
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
        package = known[scheme]["class"].partition(".")[0]
        raise MissingExtraError(
            f"{scheme}:// needs the package {package!r}, which is not installed: pip install {package}"
        ) from error
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


def _source(item: _Found, spool_dir: Path, format: str | None) -> Source:  # noqa: A002 - as above
    by_suffix, compression = _format_of(item.name)
    kind = format or item.format or by_suffix
    if kind is None:
        raise InputError(
            f"{item.origin}: the suffix {Path(item.name).suffix or '(none)'} is not known; known are "
            f"{_known_suffixes()}; or name the format with --format"
        )
    if not item.name.isprintable() and item.name != item.name.encode("utf-8", "replace").decode():
        raise InputError(f"{item.name!r}: the file's name is not UTF-8; rename it")
    digest = hashlib.blake2b(digest_size=16)
    size = 0
    path = item.path
    try:
        with path.open("rb") as stream:
            head = stream.read(4)
            stream.seek(0)
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
                size += len(chunk)
    except OSError as error:
        raise InputError(f"{item.origin} cannot be read: {error.strerror or error}") from error
    if compression is None and kind not in _BINARY:
        compression = next((name for magic, name in _MAGIC.items() if head.startswith(magic)), None)
    if compression is not None and kind in _BINARY:
        path, compression = _unpacked(item, compression, digest.hexdigest(), spool_dir), None
    return Source(item.name, path, kind, compression, size, digest.hexdigest())


def _unpacked(item: _Found, compression: str, digest: str, spool_dir: Path) -> Path:
    """Unpack a Parquet or Arrow file: these are read at positions, which a packed stream does not allow."""
    path = spool_dir / f"{digest}-{Path(item.name).stem}"
    try:
        with pa.input_stream(str(item.path), compression=compression) as stream:
            _copy(stream, path)
    except OSError as error:
        raise CorruptFileError(
            f"{item.origin} cannot be unpacked as {compression} ({error}); fetch or write it again"
        ) from error
    return path
