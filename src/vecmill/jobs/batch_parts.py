"""What a job sent through the Batch API keeps on disk: one small folder, three files a part.

A part is what one batch holds. `part-NAME.json` says how far it is and is replaced whole at each step;
`part-NAME.keys` lists the cache keys of each line and never a text; `part-NAME.requests` is what is uploaded:
it holds the texts, only its owner may read it, and it is removed when the part is done. A part exists from
the moment its `part-NAME.json` does, which is written last.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, Self, TypeAlias

import orjson

from vecmill.core import durable
from vecmill.core.errors import CorruptFileError

Step: TypeAlias = Literal[
    "written", "uploading", "uploaded", "creating", "created", "ended", "merged", "splitting", "done"
]
"""How far a part is. "uploading" and "creating" are noted before they are tried, so that after a crash the
provider is asked whether it worked. "splitting": it is too large at once and is cut into parts of its own."""

_PLANNED = "planned.json"


@dataclass(frozen=True, slots=True)
class Part:
    """One batch's worth of lines. Lines are counted from 0.

    Attributes:
        name: "00004"; "00004-r" holds lines of it that failed, "00004-s1" a piece of it.
        job: The job it was made for. space: the space of its vectors.
        step: How far it is.
        round: 1, or more for lines that failed before.
        digest, size_bytes: Of the request file. keys_digest: of the file of keys ("": not noted).
        lines, texts, tokens: What it holds.
        started: When it was written, seconds since the epoch.
        file_id, batch_id, output_file, error_file: Names at the provider.
        completed: Lines the provider says it answered, once the batch has ended.
        split_tokens: Tokens a piece may have, once it is to be cut.
        bought_texts, bought_tokens: What has vectors, and what the provider counted for it.
        retry: Lines to send again. given_up: lines left to ordinary requests.
        batches: 1 once a batch was run for it.
    """

    name: str
    job: str
    space: str
    step: Step
    round: int
    digest: str
    size_bytes: int
    lines: int
    texts: int
    tokens: int
    started: float
    file_id: str | None = None
    batch_id: str | None = None
    output_file: str | None = None
    error_file: str | None = None
    completed: int = 0
    split_tokens: int = 0
    bought_texts: int = 0
    bought_tokens: int = 0
    retry: tuple[int, ...] = ()
    given_up: tuple[int, ...] = ()
    batches: int = 0
    keys_digest: str = ""

    @property
    def is_whole(self) -> bool:
        """Whether it was made from texts, not from lines of another part."""
        return "-" not in self.name

    @property
    def is_paid(self) -> bool:
        """Whether the provider may have been asked to work on it."""
        return self.step in ("creating", "created", "ended", "merged")


@dataclass(frozen=True, slots=True)
class LineKeys:
    """What is kept of a line beside its texts: their cache keys, in order, and their tokens together."""

    keys: tuple[bytes, ...]
    tokens: int


@dataclass(frozen=True, slots=True)
class PartLimits:
    """What one line and one part may hold.

    A line fails as a whole, so 500 texts keep small what is sent again; its answer, 4 to 8 MB, is all of a
    batch that is in memory at once; and a hundred such lines make the 50,000 texts of a full part.

    Attributes:
        line_texts, line_tokens: Of one request.
        texts, lines, size_bytes: Of one part. Source: the provider's limits, 50,000 inputs over all lines,
            50,000 lines, 200 MB.
    """

    line_texts: int = 500
    line_tokens: int = 100_000
    texts: int = 50_000
    lines: int = 50_000
    size_bytes: int = 190_000_000


@dataclass(frozen=True, slots=True)
class PartStore:
    """The folder of a job's parts. `url` is what a line calls the embeddings."""

    folder: Path
    url: str = "/v1/embeddings"

    def open(self) -> dict[str, Part]:
        """Make the folder, clear away what a crash left half made, and return the parts by name.

        Raises:
            CorruptFileError: A part's file is damaged.
            WriteError: The disk does not take it.
        """
        durable.make_dir(self.folder)
        self.folder.chmod(0o700)
        durable.remove_leftovers(self.folder)
        files = [path for path in sorted(self.folder.iterdir()) if path.name.startswith("part-")]
        parts = [self._read(path) for path in files if path.suffix == ".json"]
        known = {part.name for part in parts}
        for path in files:
            if _name(path) not in known:
                durable.remove(path)
        return {part.name: part for part in parts}

    def save(self, part: Part) -> Part:
        """Note how far a part is; on disk when this returns."""
        text = json.dumps({"version": 1, **asdict(part)}, indent=1)
        durable.write_bytes(self._path(part.name, "json"), text.encode() + b"\n")
        return part

    def forget(self, part: Part) -> None:
        """Remove a part with all its files."""
        for suffix in ("json", "requests", "keys", "output", "errors"):
            durable.remove(self._path(part.name, suffix))

    def remove_texts(self, part: Part) -> None:
        """Remove what is not needed once a part's vectors are kept."""
        for suffix in ("requests", "output", "errors"):
            durable.remove(self._path(part.name, suffix))

    def planned(self) -> str | None:
        """Return the job whose texts have all been written to parts, or None."""
        try:
            return str(orjson.loads((self.folder / _PLANNED).read_bytes())["job"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def set_planned(self, job: str | None) -> None:
        """Note that all texts of a job have been written to parts, or (None) that they have not."""
        if job is None:
            durable.remove(self.folder / _PLANNED)
        else:
            durable.write_bytes(self.folder / _PLANNED, json.dumps({"job": job}).encode() + b"\n")

    def requests(self, part: Part) -> Path:
        """Return the file that is uploaded."""
        return self._path(part.name, "requests")

    def check(self, part: Part) -> None:
        """Refuse a request file that is not as it was written: its vectors would be taken for other texts'.

        Raises:
            CorruptFileError: It is another one, or gone.
        """
        path = self.requests(part)
        if not path.is_file() or durable.digest_file(path) != part.digest:
            raise self._damaged(path, "it is not as it was written")

    def output(self, part: Part) -> Path:
        """Return where the answered lines are downloaded to."""
        return self._path(part.name, "output")

    def errors(self, part: Part) -> Path:
        """Return where the failed lines are downloaded to."""
        return self._path(part.name, "errors")

    def keys(self, part: Part) -> list[LineKeys]:
        """Return the cache keys of each line.

        Raises:
            CorruptFileError: The file is damaged.
        """
        path = self._path(part.name, "keys")
        try:
            raw = path.read_bytes()
            if part.keys_digest and durable.digest_bytes(raw) != part.keys_digest:
                raise ValueError("it is not as it was written")
            lines = orjson.loads(raw)["lines"]
            found = [LineKeys(tuple(map(bytes.fromhex, line["keys"])), line["tokens"]) for line in lines]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise self._damaged(path, error) from error
        if len(found) != part.lines:
            raise self._damaged(path, f"{len(found)} lines, not {part.lines}")
        return found

    def writer(self, name: str, **facts: Any) -> PartWriter:
        """Begin a part of this name; `facts` are job, space, started and round."""
        return PartWriter(self, name, **facts)

    def derive(self, parent: Part, pieces: Mapping[str, Sequence[int]], *, round: int) -> list[Part]:  # noqa: A002  # the field's name
        """Write lines of a part as parts of their own; those that are there already are kept.

        Args:
            parent: The part, whose request file is there.
            pieces: The ending of each new part's name, and its lines.
            round: Of the new parts.
        """
        keys = self.keys(parent)
        children = []
        for ending, numbers in pieces.items():
            path = self._path(f"{parent.name}-{ending}", "json")
            if path.is_file():
                children.append(self._read(path))
                continue
            facts = {"job": parent.job, "space": parent.space, "started": parent.started, "round": round}
            with self.writer(_name(path), **facts) as writer:
                for number, body in self._bodies(parent, set(numbers)):
                    writer.add(body, keys[number])
            children.append(writer.finish())
        return children

    def _bodies(self, part: Part, wanted: set[int]) -> Iterator[tuple[int, bytes]]:
        with self.requests(part).open("rb") as file:
            for number, raw in enumerate(file):
                if number in wanted:
                    yield number, orjson.dumps(orjson.loads(raw)["body"])

    def texts(self, part: Part) -> Iterator[str]:
        """Yield the texts of a part that is not cleared yet."""
        with self.requests(part).open("rb") as file:
            for raw in file:
                yield from orjson.loads(raw)["body"]["input"]

    def _read(self, path: Path) -> Part:
        try:
            values = orjson.loads(path.read_bytes())
            if values.pop("version") != 1:
                raise ValueError("another version wrote it")
            facts: dict[str, Any] = {
                name: tuple(v) if isinstance(v, list) else v for name, v in values.items()
            }
            return Part(**facts)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise self._damaged(path, error) from error

    def _damaged(self, path: Path, why: object) -> CorruptFileError:
        return CorruptFileError(
            f"{path} is damaged ({why}); removing the folder {self.folder} begins anew, and batches that are "
            f"under way at the provider are then paid in vain"
        )

    def _path(self, name: str, suffix: str) -> Path:
        return self.folder / f"part-{name}.{suffix}"


@dataclass(slots=True)
class PartWriter:
    """Writes a part's request file, line by line. As a context it leaves nothing behind when it fails."""

    store: PartStore
    name: str
    job: str
    space: str
    started: float
    round: int = 1
    texts: int = 0
    tokens: int = 0
    size_bytes: int = 0
    keys: list[LineKeys] = field(default_factory=list)
    _stack: ExitStack = field(default_factory=ExitStack)
    _file: IO[bytes] | None = None

    def __enter__(self) -> Self:
        path = self.store._path(self.name, "requests")
        temp = self._stack.enter_context(durable.replacing(path))
        temp.chmod(0o600)
        self._file = self._stack.enter_context(temp.open("wb"))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, traceback)

    def has_room(self, texts: int, size_bytes: int, limits: PartLimits) -> bool:
        """Say whether a line of so many texts and bytes still fits."""
        return (
            len(self.keys) < limits.lines
            and self.texts + texts <= limits.texts
            and self.size_bytes + size_bytes + 200 <= limits.size_bytes
        )

    def add(self, body: bytes, keys: LineKeys) -> None:
        """Add a line: the body as an ordinary request would send it."""
        head = orjson.dumps(
            {"custom_id": custom_id(self.name, len(self.keys)), "method": "POST", "url": self.store.url}
        )
        raw = head[:-1] + b',"body":' + body + b"}\n"
        if self._file is None:
            raise RuntimeError("the part is not open")
        self._file.write(raw)
        self.keys.append(keys)
        self.texts += len(keys.keys)
        self.tokens += keys.tokens
        self.size_bytes += len(raw)

    def finish(self) -> Part:
        """Write the keys and, last, the part itself; the context must have been left in good order."""
        lines = [{"keys": [key.hex() for key in line.keys], "tokens": line.tokens} for line in self.keys]
        raw = orjson.dumps({"lines": lines})
        durable.write_bytes(self.store._path(self.name, "keys"), raw)
        part = Part(
            self.name,
            self.job,
            self.space,
            "written",
            self.round,
            durable.digest_file(self.store._path(self.name, "requests")),
            self.size_bytes,
            len(self.keys),
            self.texts,
            self.tokens,
            self.started,
            keys_digest=durable.digest_bytes(raw),
        )
        return self.store.save(part)


def custom_id(part: str, line: int) -> str:
    """Return the name of a line within its batch."""
    return f"part-{part}-line-{line}"


def line_number(part: Part, name: object) -> int | None:
    """Return the line a custom_id names, or None where it is no line of this part."""
    start = custom_id(part.name, 0)[:-1]
    if not isinstance(name, str) or not name.startswith(start):
        return None
    digits = name[len(start) :]
    number = int(digits) if digits.isdecimal() and len(digits) <= len(str(part.lines)) else -1
    return number if 0 <= number < part.lines and custom_id(part.name, number) == name else None


def pieces_of(keys: Sequence[LineKeys], tokens: int) -> list[list[int]]:
    """Group lines, in order, into pieces of at most so many tokens; a larger line stands alone."""
    pieces: list[list[int]] = []
    held = 0
    for number, line in enumerate(keys):
        if not pieces or held + line.tokens > tokens:
            pieces.append([])
            held = 0
        pieces[-1].append(number)
        held += line.tokens
    return pieces


def _name(path: Path) -> str:
    return path.name.removeprefix("part-").partition(".")[0]
