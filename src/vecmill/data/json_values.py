"""The values of a JSON document, one at a time: an array of any size is never held whole.

Takes what is common and not legal: NaN and Infinity become NaN (counted), numbers beyond float64 stay text.
"""

from __future__ import annotations

import codecs
import json
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

from vecmill.core.errors import CorruptFileError, Error, InputError
from vecmill.data.encodings import Utf8File, undecodable

_SPACE = re.compile(r"[ \t\r\n]*")
_STEP = 1 << 20


class Lenient:
    """A JSON parser that keeps integers exact and takes NaN and Infinity.

    Args:
        literal: Keys of a record whose decimal numbers are returned as the text that stands there ("1.50").

    Attributes:
        constants: How many NaN and Infinity were met.
    """

    def __init__(self, literal: Sequence[str] = ()) -> None:
        self.constants = 0
        self._literal = literal
        self._decoder = json.JSONDecoder(parse_float=_float, parse_constant=self._constant)
        self._exact = json.JSONDecoder(parse_float=str, parse_constant=lambda _: math.nan)

    def loads(self, text: str) -> Any:
        """Parse one value.

        Raises:
            ValueError: It is not JSON.
        """
        value = self._decoder.decode(text)
        return self._as_written(value, self._exact.decode(text)) if self.wants(value) else value

    def parse_at(self, text: str, position: int) -> tuple[Any, int]:
        """Parse the value that begins at a position; return it and where it ends."""
        value, end = self._decoder.raw_decode(text, position)
        if self.wants(value):
            value = self._as_written(value, self._exact.raw_decode(text, position)[0])
        return value, end

    def wants(self, value: Any) -> bool:
        """Whether a value is a record with a number whose text was asked for."""
        return type(value) is dict and any(type(value.get(name)) is float for name in self._literal)

    def _as_written(self, value: dict[str, Any], exact: dict[str, Any]) -> dict[str, Any]:
        return value | {name: exact[name] for name in self._literal if type(value.get(name)) is float}

    def _constant(self, _: str) -> float:
        self.constants += 1
        return math.nan


def _float(digits: str) -> float | str:
    number = float(digits)
    return number if number - number == 0 else digits


def document_values(file: Utf8File, lenient: Lenient) -> Iterator[Any]:
    """Yield "array" and then its elements, or "values" and then the top-level values.

    Raises:
        InputError: Not JSON; the message names line and record.
        CorruptFileError: The file ends inside a value.
    """
    cursor = _Cursor(file, lenient)
    if cursor.peek() != "[":
        yield "values"
        while cursor.peek():
            yield cursor.value()
        return
    yield "array"
    cursor.advance()
    if cursor.peek() == "]":
        cursor.advance()
    else:
        while True:
            yield cursor.value()
            separator = cursor.peek()
            if separator not in (",", "]"):
                raise cursor.wrong("a comma or the end of the array is missing")
            cursor.advance()
            if separator == "]":
                break
    if cursor.peek():
        raise cursor.wrong("something follows the end of the array")


class _Cursor:
    """A position in a text that is read piece by piece."""

    def __init__(self, file: Utf8File, lenient: Lenient) -> None:
        self._file = file
        self._lenient = lenient
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._chunks = file.chunks()
        self._text = ""
        self._position = 0
        self._passed = 0  # characters before _text
        self._line = 1  # of the first character of _text
        self._record = 0

    def peek(self) -> str:
        """Return the next character that is not blank; "" at the end."""
        while True:
            match = _SPACE.match(self._text, self._position)
            self._position = match.end() if match else self._position
            if self._position < len(self._text):
                return self._text[self._position]
            if not self._more():
                return ""

    def advance(self) -> None:
        """Pass over the character that `peek` returned."""
        self._position += 1

    def value(self) -> Any:
        """Parse the next value."""
        self._record += 1
        if not self.peek():
            raise self.wrong("a value is missing")
        failed_at = -1
        while True:
            try:
                value, end = self._lenient.parse_at(self._text, self._position)
            except json.JSONDecodeError as error:
                at = self._passed + error.pos
                again = at == failed_at and "Unterminated" not in error.msg
                failed_at = at
                if again or not self._more():
                    raise self.wrong(error.msg, at) from error
                continue
            except RecursionError as error:
                raise self.wrong("nested too deeply") from error
            if end == len(self._text) and self._more():  # a number may go on
                continue
            self._position = end
            return value

    def wrong(self, what: str, at: int | None = None) -> Error:
        """Build the error for the present position, or for a character counted from the file's beginning."""
        position = self._position if at is None else at - self._passed
        line = self._line + self._text.count("\n", 0, position)
        where = f"{self._file.source.name}, line {line} (record {max(self._record, 1)})"
        cut = not self._text[position:].strip() or what.startswith("Unterminated")
        if cut and not self._more():
            return CorruptFileError(
                f"{where}: the file ends inside this record; fetch or write the file again"
            )
        return InputError(f"{where}: not JSON: {what}; correct the file there")

    def _more(self) -> bool:
        """Read on, at least as much again as is held; False at the end of the file."""
        wanted = max(_STEP, len(self._text) - self._position)
        pieces: list[str] = []
        size = 0
        try:
            while size < wanted:
                chunk = next(self._chunks, None)
                if chunk is None:
                    pieces.append(self._decoder.decode(b"", final=True))
                    break
                pieces.append(self._decoder.decode(chunk))
                size += len(chunk)
        except UnicodeDecodeError as error:
            raise undecodable(self._file) or InputError(f"{self._file.source.name} changed") from error
        if size == 0 and not any(pieces):
            return False
        self._line += self._text.count("\n", 0, self._position)
        self._passed += self._position
        self._text = self._text[self._position :] + "".join(pieces)
        self._position = 0
        return True
