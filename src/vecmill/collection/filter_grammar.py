"""The words of a filter: text in, a tree out. The grammar is that of SQL's WHERE, without arithmetic.

    condition   := all {"or" all}
    all         := one {"and" one}
    one         := {"not"} ( "(" condition ")" | test )
    test        := column | "true" | "false"
                 | operand ("=" "==" "!=" "<>" "<" "<=" ">" ">=") operand
                 | column ["not"] "in" "(" value {"," value} ")"
                 | column ["not"] "between" value "and" value
                 | column ["not"] "like" text ["escape" text]
                 | column "is" ["not"] "null"
    operand     := column | value
    value       := number | 'text' | "true" | "false" | "null"
    column      := name | "any name" | `any name`

Words of the language are in any case, names are not. A test has a column on at least one side.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from typing import TypeAlias

from vecmill.core.errors import InputError

MAX_CHARACTERS = 100_000
"""Of a filter. About 15,000 values in a list."""

MAX_DEPTH = 100
"""Of parentheses in each other: reading and computing recurse no deeper."""

_MAX_DIGITS = 100
_MAX_PATTERN = 1_000

_TOKEN = re.compile(
    r"""
    (?P<number> [+-]? (?:[0-9]+ (?:\.[0-9]*)? | \.[0-9]+) (?:[eE][+-]?[0-9]+)? (?![\w.]) )
    | (?P<text> '[^']*(?:''[^']*)*' )
    | (?P<quoted> "[^"]*(?:""[^"]*)*" | `[^`]*(?:``[^`]*)*` )
    | (?P<word> [^\W\d]\w* )
    | (?P<mark> == | != | <> | <= | >= | [=<>(),] )
    """,
    re.VERBOSE,
)
_SPACE = re.compile(r"\s*")

_WORDS = frozenset(("and", "or", "not", "in", "between", "like", "escape", "is", "null", "true", "false"))

_OPERATORS = {"=": "=", "==": "=", "!=": "<>", "<>": "<>", "<": "<", "<=": "<=", ">": ">", ">=": ">="}
_MIRRORED = {"=": "=", "<>": "<>", "<": ">", "<=": ">=", ">": "<", ">=": "<="}


@dataclass(frozen=True, slots=True)
class Column:
    """A column by its name; `at` is its place in the filter, from 0."""

    name: str
    at: int
    quoted: bool = False


@dataclass(frozen=True, slots=True)
class Value:
    """A number (int where it is written as one, else Decimal), a text, true, false or null."""

    value: int | Decimal | str | bool | None
    at: int

    def __str__(self) -> str:
        match self.value:
            case None | bool():
                return str(self.value).lower().replace("none", "null")
            case str():
                shown = self.value if len(self.value) <= 40 else f"{self.value[:40]}…"
                return "'" + shown.replace("'", "''") + "'"
        return str(self.value)


@dataclass(frozen=True, slots=True)
class Compare:
    """A column against a value or another column; operator one of = <> < <= > >=."""

    column: Column
    operator: str
    other: Column | Value


@dataclass(frozen=True, slots=True)
class In:
    """A column against a list of values; null may be among them."""

    column: Column
    values: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Like:
    r"""A text column against a pattern in which \ takes the meaning of %, _ and itself."""

    column: Column
    pattern: str


@dataclass(frozen=True, slots=True)
class IsNull:
    """Whether a column has no value."""

    column: Column


@dataclass(frozen=True, slots=True)
class Holds:
    """A column of true and false, or one of these words, standing alone."""

    what: Column | Value


@dataclass(frozen=True, slots=True)
class Not:
    """The opposite; unknown stays unknown."""

    part: Node


@dataclass(frozen=True, slots=True)
class All:
    """Every part holds."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Some:
    """At least one part holds."""

    parts: tuple[Node, ...]


Node: TypeAlias = Compare | In | Like | IsNull | Holds | Not | All | Some


def wrong(at: int, message: str) -> InputError:
    """Build the error for something wrong at a place of the filter, counted from 0."""
    return InputError(f"where, character {at + 1}: {message}")


def read(text: str) -> Node:
    """Read a filter.

    Cost: one pass over the text.

    Raises:
        InputError: It is not one; the message names the place.
    """
    if len(text) > MAX_CHARACTERS:
        raise InputError(f"where has {len(text):,} characters, at most {MAX_CHARACTERS:,} are taken")
    if not text.strip():
        raise InputError("where is empty: write a condition such as stars >= 4, or leave it out")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise wrong(error.start, f"not valid Unicode: {error.reason}") from error
    if "\0" in text:
        raise wrong(text.index("\0"), "a zero character; no text may hold one")
    return _Reader(text).whole()


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str  # number, text, quoted, word, mark, end
    text: str
    at: int

    def __str__(self) -> str:
        if self.kind == "end":
            return "the end"
        return repr(self.text if len(self.text) <= 40 else f"{self.text[:40]}…")


def _tokens(text: str) -> list[_Token]:
    tokens = []
    at = _end_of_space(text, 0)
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None:
            raise wrong(at, _unreadable(text, at))
        kind, part = str(found.lastgroup), found.group()
        if kind == "word" and part.lower() in _WORDS:
            part = part.lower()
        elif kind == "word":
            kind = "name"
        tokens.append(_Token(kind, part, at))
        at = _end_of_space(text, found.end())
    return [*tokens, _Token("end", "", len(text))]


def _end_of_space(text: str, at: int) -> int:
    space = _SPACE.match(text, at)
    return at if space is None else space.end()


def _unreadable(text: str, at: int) -> str:
    match text[at]:
        case "'":
            return "the text that begins here has no end; a ' inside a text is written twice"
        case '"' | "`":
            return f"the name that begins here has no end: {text[at]} is missing"
        case "&" | "|":
            return f"{text[at]!r} means nothing here; write and, or"
    piece = re.match(r"[\w.+-]+", text[at:])
    shown = text[at] if piece is None else piece.group()[:40]
    if shown[0].isdigit():
        return f'{shown!r} is not a number; a name that begins with a digit takes quotes: "{shown}"'
    return f"{shown!r} means nothing here"


class _Reader:
    """Recursive descent over the tokens; recurses only into parentheses."""

    def __init__(self, text: str) -> None:
        self._tokens = _tokens(text)
        self._next = 0
        self._depth = 0

    def whole(self) -> Node:
        node = self._condition()
        if self._now.kind != "end":
            raise wrong(self._now.at, f"{self._now} cannot stand here; conditions are joined by and, or")
        return node

    @property
    def _now(self) -> _Token:
        return self._tokens[self._next]

    def _take(self) -> _Token:
        token = self._now
        self._next += 1
        return token

    def _met(self, *texts: str) -> bool:
        """Step over one of these words or marks if it comes next."""
        if self._now.kind in ("word", "mark") and self._now.text in texts:
            self._next += 1
            return True
        return False

    def _need(self, text: str, why: str) -> None:
        if not self._met(text):
            raise wrong(self._now.at, f"expected {text} {why}, found {self._now}")

    def _condition(self) -> Node:
        parts = [self._all()]
        while self._met("or"):
            parts.append(self._all())
        return parts[0] if len(parts) == 1 else Some(tuple(parts))

    def _all(self) -> Node:
        parts = [self._one()]
        while self._met("and"):
            parts.append(self._one())
        return parts[0] if len(parts) == 1 else All(tuple(parts))

    def _one(self) -> Node:
        turned = False
        while self._met("not"):
            turned = not turned
        node = self._group() if self._now.text == "(" and self._now.kind == "mark" else self._test()
        return Not(node) if turned else node

    def _group(self) -> Node:
        opened = self._take()
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise wrong(opened.at, f"more than {MAX_DEPTH} parentheses in each other")
        node = self._condition()
        self._need(")", f"for the ( of character {opened.at + 1}")
        self._depth -= 1
        return node

    def _test(self) -> Node:
        left = self._operand()
        token = self._now
        if token.kind == "mark" and token.text in _OPERATORS:
            self._next += 1
            return _compared(left, _OPERATORS[token.text], self._operand(), token.at)
        if token.kind != "word" or token.text in ("and", "or"):
            return _alone(left)
        if isinstance(left, Value):
            raise wrong(left.at, f"{left} is a value; a test begins with a column")
        if self._met("is"):
            node: Node = IsNull(left)
            turned = self._met("not")
            self._need("null", "after is")
            return Not(node) if turned else node
        turned = self._met("not")
        if self._met("in"):
            node = In(left, self._list())
        elif self._met("between"):
            node = self._between(left)
        elif self._met("like"):
            node = Like(left, self._pattern())
        else:
            raise wrong(self._now.at, f"expected =, <, in, between, like or is, found {self._now}")
        return Not(node) if turned else node

    def _operand(self) -> Column | Value:
        token = self._now
        if token.kind == "name":
            self._next += 1
            return Column(token.text, token.at)
        if token.kind == "quoted":
            self._next += 1
            mark = token.text[0]
            return Column(token.text[1:-1].replace(mark * 2, mark), token.at, quoted=True)
        return self._value("a column or a value")

    def _value(self, expected: str = "a value") -> Value:
        token = self._take()
        match token.kind, token.text:
            case "number", text:
                return Value(_number(text, token.at), token.at)
            case "text", text:
                return Value(text[1:-1].replace("''", "'"), token.at)
            case "word", "true" | "false" | "null":
                return Value({"true": True, "false": False, "null": None}[token.text], token.at)
            case "word", _:
                quotes = f'; a column of that name takes quotes: "{token.text}"'
                raise wrong(token.at, f"expected {expected}, found {token}{quotes}")
        hint = "; a text takes single quotes" if token.kind in ("name", "quoted") else ""
        raise wrong(token.at, f"expected {expected}, found {token}{hint}")

    def _list(self) -> tuple[Value, ...]:
        self._need("(", "after in")
        values = [self._value()]
        while self._met(","):
            values.append(self._value())
        self._need(")", "after the last value")
        return tuple(values)

    def _between(self, column: Column) -> Node:
        low = self._value()
        self._need("and", "between the two values")
        high = self._value()
        return All((_compared(column, ">=", low, low.at), _compared(column, "<=", high, high.at)))

    def _pattern(self) -> str:
        pattern = self._text("a pattern after like")
        escape = None
        if self._met("escape"):
            escape = self._text("a character after escape")
            if len(str(escape.value)) != 1:
                raise wrong(escape.at, f"escape takes one character, not {escape}")
        return _plain_pattern(pattern, None if escape is None else str(escape.value))

    def _text(self, expected: str) -> Value:
        value = self._value(expected)
        if not isinstance(value.value, str):
            raise wrong(value.at, f"expected {expected}, found {value}; a text takes single quotes")
        return value


def _number(text: str, at: int) -> int | Decimal:
    """Read a number exactly; one that float64 cannot come near is refused."""
    if len(text) > _MAX_DIGITS:
        raise wrong(at, f"a number of {len(text)} characters, at most {_MAX_DIGITS} are taken")
    if text.lstrip("+-").isdigit():
        return int(text)
    number = Decimal(text)
    near = float(number)
    if near in (float("inf"), float("-inf")) or (near == 0.0 and number != 0):
        raise wrong(at, f"{text} is beyond what a number here can be")
    return number


def _compared(left: Column | Value, operator: str, right: Column | Value, at: int) -> Compare:
    for side in (left, right):
        if isinstance(side, Value) and side.value is None:
            raise wrong(side.at, "nothing is equal to null, nor less or more: write is null or is not null")
    if isinstance(left, Column):
        return Compare(left, operator, right)
    if isinstance(right, Column):
        return Compare(right, _MIRRORED[operator], left)
    raise wrong(at, f"{left} and {right} are both values; one side must be a column")


def _alone(what: Column | Value) -> Node:
    if isinstance(what, Value) and not isinstance(what.value, bool):
        raise wrong(what.at, f"{what} alone is not a condition; compare a column with it")
    return Holds(what)


def _plain_pattern(pattern: Value, escape: str | None) -> str:
    r"""Write a pattern so that \ is what takes the meaning of %, _ and itself."""
    text = str(pattern.value)
    if len(text) > _MAX_PATTERN:
        raise wrong(pattern.at, f"a pattern of {len(text):,} characters, at most {_MAX_PATTERN:,} are taken")
    out = []
    characters = iter(text)
    for character in characters:
        literal = character == "\\"
        if character == escape:
            following = next(characters, None)
            if following is None:
                raise wrong(pattern.at, f"the pattern ends with its escape character {escape!r}")
            character, literal = following, following in "%_\\"
        out.append(f"\\{character}" if literal else character)
    return "".join(out)
