"""Copies of what cannot be read as it lies: standard input, pipes, remote and packed files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from vecmill.core import durable
from vecmill.core.errors import Error, WriteError

COPY_BYTES = 1 << 20
"""Bytes read at a time."""


def spool(stream: IO[bytes] | Any, path: Path, unreadable: Callable[[OSError], Error]) -> None:
    """Copy a stream to a file, which appears whole or not at all; makes the folder where it is missing.

    Args:
        stream: Read to its end, `COPY_BYTES` at a time.
        path: The copy. One that is there is replaced.
        unreadable: Makes the error to raise when the stream fails.

    Raises:
        WriteError: The copy cannot be written; nothing of it stays.
    """
    try:
        durable.make_dir(path.parent)
        with durable.replacing(path) as temp, temp.open("wb") as out:
            for piece in _pieces(stream, unreadable):
                out.write(piece)
    except WriteError as error:
        raise WriteError(f"the input cannot be copied: {error}") from error
    except OSError as error:
        raise WriteError(
            f"the input cannot be copied to {path}: {error.strerror or error}; choose an output in a folder "
            "you may write to"
        ) from error


def _pieces(stream: IO[bytes] | Any, unreadable: Callable[[OSError], Error]) -> Iterator[bytes]:
    while True:
        try:
            piece = stream.read(COPY_BYTES)
        except OSError as error:
            raise unreadable(error) from error
        if not piece:
            return
        yield piece
