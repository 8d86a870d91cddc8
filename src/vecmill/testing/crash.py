"""What a disk may show after a power cut: record every change of a folder, then replay each moment.

SIGKILL cannot find a missing fsync, because the kernel still writes what a killed process left. This can:
`recording` notes what a block of code does to a folder, and `crash_states` lists, for the moment after every
single operation, what could stand on the disk when the power goes:

- a file's content since its last fsync may be there, be cut to half, be zeros or be missing;
- a name made, renamed or removed since its folder's last fsync may have changed or not, each on its own.

A rename is whole: it happened or not. Changes that bypass `vecmill.core.durable` are noticed too, as changes
nobody synced. This is stricter than any one file system; what survives here survives on ext4, XFS and NTFS.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import TypeAlias

from vecmill.core import durable

Node: TypeAlias = int
"""A file or folder by itself, whatever its name. The recorded folder is node 0."""

Entries: TypeAlias = dict[tuple[Node, str], Node]


@dataclass(frozen=True, slots=True)
class Linked:
    """A name appeared in a folder."""

    folder: Node
    name: str
    node: Node
    is_folder: bool


@dataclass(frozen=True, slots=True)
class Unlinked:
    """A name disappeared from a folder."""

    folder: Node
    name: str


@dataclass(frozen=True, slots=True)
class Moved:
    """A name became another one, perhaps in another folder, perhaps in place of something."""

    folder: Node
    name: str
    new_folder: Node
    new_name: str
    node: Node


@dataclass(frozen=True, slots=True)
class Written:
    """A file's content changed."""

    node: Node
    content: bytes


@dataclass(frozen=True, slots=True)
class Synced:
    """A file's content, or a folder's names, reached the disk."""

    node: Node


@dataclass(frozen=True, slots=True)
class Marked:
    """The recorded code said how far it is."""

    label: str


Operation: TypeAlias = Linked | Unlinked | Moved | Written | Synced | Marked


@dataclass(frozen=True, slots=True)
class CrashState:
    """What a disk may show.

    Attributes:
        operations: After how many operations the power went.
        description: The last operation, and what of the unsynced was lost.
        marks: The labels the recorded code had passed.
        files: Content by path below the folder.
        folders: Paths of the folders, parents first.
    """

    operations: int
    description: str
    marks: frozenset[str]
    files: dict[str, bytes]
    folders: tuple[str, ...]

    def write(self, folder: Path) -> Path:
        """Make the state real in a new folder; return it."""
        folder.mkdir(parents=True)
        for name in self.folders:
            (folder / name).mkdir()
        for name, content in self.files.items():
            (folder / name).write_bytes(content)
        return folder


@dataclass(slots=True)
class Recording:
    """What happened to a folder, in order, from the state it had."""

    root: Path
    operations: list[Operation] = field(default_factory=list)
    start_entries: Entries = field(default_factory=dict)
    start_contents: dict[Node, bytes | None] = field(default_factory=dict)
    _entries: Entries = field(default_factory=dict)
    _contents: dict[Node, bytes | None] = field(default_factory=dict)
    _nodes: dict[tuple[int, int], Node] = field(default_factory=dict)
    _count: int = 1

    def mark(self, label: str) -> None:
        """Note that the recorded code got this far, such as "published": `CrashState.marks` tells it."""
        self._scan()
        self.operations.append(Marked(label))

    def before(self, operation: str, path: Path) -> None:
        """Notice what happened since the last operation."""
        del operation, path  # this one has not happened yet
        self._scan()

    def after(self, operation: str, path: Path) -> None:
        """Note the operation."""
        self._scan()
        if operation in ("fsync", "fsync_dir"):
            node = self._find(path)
            if node is not None:
                self.operations.append(Synced(node))

    def _find(self, path: Path) -> Node | None:
        """Return the node at a path, None outside the recorded folder."""
        try:
            parts = path.resolve().relative_to(self.root.resolve()).parts
        except ValueError:
            return None
        node: Node | None = 0
        for part in parts:
            node = None if node is None else self._entries.get((node, part))
        return node

    def _scan(self) -> None:
        """Compare the folder with what is known and note the differences as operations."""
        entries: Entries = {}
        contents: dict[Node, bytes | None] = {}
        seen: dict[tuple[int, int], Node] = {}
        self._look(self.root, 0, entries, contents, seen)
        self._note_names(entries, contents)
        for node, content in contents.items():
            if content is not None and content != self._contents.get(node, b""):
                self.operations.append(Written(node, content))
        self._entries, self._contents, self._nodes = entries, contents, seen

    def _look(
        self,
        folder: Path,
        at: Node,
        entries: Entries,
        contents: dict[Node, bytes | None],
        seen: dict[tuple[int, int], Node],
    ) -> None:
        for path in sorted(folder.iterdir()):
            try:
                status = path.lstat()
                content = None if path.is_dir() else path.read_bytes()
            except FileNotFoundError:  # another thread was faster
                continue
            key = (status.st_dev, status.st_ino)
            node = seen.get(key, self._nodes.get(key))
            if node is None:
                node, self._count = self._count, self._count + 1
            seen[key] = node
            entries[at, path.name] = node
            contents[node] = content
            if content is None:
                self._look(path, node, entries, contents, seen)

    def _note_names(self, entries: Entries, contents: dict[Node, bytes | None]) -> None:
        gone = {key: node for key, node in self._entries.items() if entries.get(key) != node}
        came = {key: node for key, node in entries.items() if self._entries.get(key) != node}
        for key, node in came.items():
            origin = next((old for old, was in gone.items() if was == node and old not in entries), None)
            if origin is None:
                self.operations.append(Linked(*key, node, contents[node] is None))
            else:
                self.operations.append(Moved(*origin, *key, node))
                del gone[origin]
        self.operations.extend(Unlinked(*key) for key in gone if key not in entries)


@contextmanager
def recording(root: Path) -> Iterator[Recording]:
    """Record what the block does to a folder. What the folder holds before counts as safely on disk.

    Files are read again at every operation: made for tests with small files.
    """
    record = Recording(root)
    record._scan()
    record.start_entries, record.start_contents = dict(record._entries), dict(record._contents)
    record.operations.clear()
    with durable.watching(record):
        yield record
    record._scan()


def crash_states(record: Recording, *, limit: int = 256, seed: int = 0) -> Iterator[CrashState]:
    """List what a power cut may leave after every operation, each distinct state once (with equal marks).

    Args:
        record: What was recorded.
        limit: States of one moment at most; where more are possible a sample is taken, always with those
            where everything, nothing, all but one thing or one thing alone was lost.
        seed: Decides the sample; `CrashState.description` tells it.
    """
    disk = _Disk(dict(record.start_entries), dict(record.start_contents))
    marks: frozenset[str] = frozenset()
    known: set[tuple[object, ...]] = set()
    last = "before anything"
    for count in range(len(record.operations) + 1):
        if count:
            operation = record.operations[count - 1]
            last = _describe(operation)
            if isinstance(operation, Marked):
                marks |= {operation.label}
            disk = disk.after(operation)
        for lost, files, folders in disk.states(limit, random.Random(f"{seed}/{count}")):  # noqa: S311  # a sample
            key = (marks, folders, tuple(sorted(files.items())))
            if key not in known:
                known.add(key)
                description = f"after operation {count} ({last}), seed {seed}: {lost}"
                yield CrashState(count, description, marks, files, folders)


def replay(
    record: Recording, into: Path, *, limit: int = 256, seed: int = 0
) -> Iterator[tuple[CrashState, Path]]:
    """Make each state of `crash_states` real below `into`, one folder each, and give both."""
    for number, state in enumerate(crash_states(record, limit=limit, seed=seed)):
        yield state, state.write(into / f"{number:06d}")


@dataclass(frozen=True, slots=True)
class _Pending:
    """A change of names that waits for the sync of one or two folders."""

    change: Linked | Unlinked | Moved
    waits_for: frozenset[Node]


@dataclass(frozen=True, slots=True)
class _Disk:
    """What is safely on disk, and what may or may not be."""

    entries: Entries
    contents: dict[Node, bytes | None]
    pending: tuple[_Pending, ...] = ()
    unsynced: dict[Node, bytes] = field(default_factory=dict)

    def after(self, operation: Operation) -> _Disk:
        """Return the disk after one more operation."""
        match operation:
            case Linked(folder, _, node, is_folder):
                waiting = _Pending(operation, frozenset({folder}))
                contents = {**self.contents, node: None} if is_folder else self.contents
                return replace(self, pending=(*self.pending, waiting), contents=contents)
            case Unlinked(folder, _):
                return replace(self, pending=(*self.pending, _Pending(operation, frozenset({folder}))))
            case Moved(folder, _, new_folder, _, _):
                waiting = _Pending(operation, frozenset({folder, new_folder}))
                return replace(self, pending=(*self.pending, waiting))
            case Written(node, content):
                return replace(self, unsynced={**self.unsynced, node: content})
            case Synced(node):
                return self._synced(node)
            case Marked(_):
                return self

    def _synced(self, node: Node) -> _Disk:
        entries = dict(self.entries)
        pending = []
        for change in self.pending:
            left = replace(change, waits_for=change.waits_for - {node})
            if left.waits_for:
                pending.append(left)
            else:
                _apply(change.change, entries)
        unsynced = dict(self.unsynced)
        contents = dict(self.contents)
        if node in unsynced:
            contents[node] = unsynced.pop(node)
        return _Disk(entries, contents, tuple(pending), unsynced)

    def states(
        self, limit: int, chance: random.Random
    ) -> Iterator[tuple[str, dict[str, bytes], tuple[str, ...]]]:
        """Give what may stand on the disk now: (what was lost, files, folders)."""
        folders = {node for node, content in self.contents.items() if content is None}
        named = set(self.entries.values())
        named |= {p.change.node for p in self.pending if not isinstance(p.change, Unlinked)}
        damaged = sorted(named & self.unsynced.keys())
        choices = [(True, False)] * len(self.pending) + [tuple(range(4))] * len(damaged)
        for choice in _combinations(choices, limit, chance):
            entries = dict(self.entries)
            kept = choice[: len(self.pending)]
            for change, happened in zip(self.pending, kept, strict=True):
                if happened:
                    _apply(change.change, entries)
            contents = dict(self.contents)
            how = choice[len(self.pending) :]
            for node, damage in zip(damaged, how, strict=True):
                contents[node] = _damage(self.unsynced[node], contents.get(node) or b"", int(damage))
            lost = [
                _describe(c.change) for c, happened in zip(self.pending, kept, strict=True) if not happened
            ]
            lost += [f"{_DAMAGES[int(d)]} of file {n}" for n, d in zip(damaged, how, strict=True) if d]
            files, made = _tree(entries, contents, folders)
            yield "lost: " + (", ".join(lost) or "nothing"), files, made


_DAMAGES = ("nothing", "all new content", "the second half", "all but the length")


def _damage(new: bytes, old: bytes, how: int) -> bytes:
    return (new, old, new[: len(new) // 2], bytes(len(new)))[how]


def _combinations(
    choices: list[tuple[int, ...]], limit: int, chance: random.Random
) -> Iterator[tuple[int, ...]]:
    """Give every combination of choices, or the telling ones and a sample of the others."""
    total = 1
    for options in choices:
        total *= len(options)
    if total <= limit:
        yield from itertools.product(*choices)
        return
    first = tuple(options[0] for options in choices)
    last = tuple(options[-1] for options in choices)
    yield first
    yield last
    for at, options in enumerate(choices):
        for option in options[1:]:
            yield (*first[:at], option, *first[at + 1 :])
        yield (*last[:at], options[0], *last[at + 1 :])
    for _ in range(limit):
        yield tuple(chance.choice(options) for options in choices)


def _apply(change: Linked | Unlinked | Moved, entries: Entries) -> None:
    match change:
        case Linked(folder, name, node, _):
            entries[folder, name] = node
        case Unlinked(folder, name):
            entries.pop((folder, name), None)
        case Moved(folder, name, new_folder, new_name, node):
            entries.pop((folder, name), None)
            entries[new_folder, new_name] = node


def _tree(
    entries: Entries, contents: dict[Node, bytes | None], folders: set[Node]
) -> tuple[dict[str, bytes], tuple[str, ...]]:
    """Follow names from the recorded folder down: (content by path, folders parents first)."""
    files: dict[str, bytes] = {}
    made: list[str] = []
    below: dict[Node, list[tuple[str, Node]]] = {}
    for (folder, name), node in sorted(entries.items()):
        below.setdefault(folder, []).append((name, node))
    waiting = [(PurePosixPath(), 0)]
    while waiting:
        path, at = waiting.pop(0)
        for name, node in below.get(at, ()):
            if node in folders:
                made.append(str(path / name))
                waiting.append((path / name, node))
            else:
                files[str(path / name)] = contents.get(node) or b""
    return files, tuple(made)


def _describe(operation: Operation) -> str:
    match operation:
        case Linked(_, name, _, _):
            return f"make {name}"
        case Unlinked(_, name):
            return f"remove {name}"
        case Moved(_, name, _, new_name, _):
            return f"rename {name} to {new_name}"
        case Written(node, content):
            return f"write {len(content)} bytes to file {node}"
        case Synced(node):
            return f"sync {'the folder' if node == 0 else f'file or folder {node}'}"
        case Marked(label):
            return f"mark {label}"
