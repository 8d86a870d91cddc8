"""What a request wants embedded: four forms of input to texts, and these to tokens, counted and bounded."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import ParamSpec, Protocol, TypeVar, cast

import numpy as np

from vecmill.core import tokens
from vecmill.core.errors import InputError
from vecmill.core.types import InputType, IntArray, LongText
from vecmill.models.base import Encoded, Provider, Span, TokenIds, join
from vecmill.server.errors import Refusal, invalid
from vecmill.server.options import Limits
from vecmill.server.parsing import refuse_tokens, too_many, wrong_input
from vecmill.server.schemas import Input

P = ParamSpec("P")
T = TypeVar("T")

_AT_ONCE_CHARACTERS = 4_096
"""Tokenized on the event loop: about a millisecond; a thread and back costs a tenth of that."""

_SLICE_CHARACTERS = 131_072
"""Tokenized at once in a thread; between slices a request can end."""


_COUNTED_CHARACTERS = 1_000_000
"""So many are tokenized only to tell the exact count of a request that has too many tokens."""


_BESIDE = ThreadPoolExecutor(2, thread_name_prefix="vecmill-tokens")
"""Threads that tokenize. Few: a text of a million characters takes 200 MB while it is read, and whatever else
needs a thread must not wait until every such text is done."""


class Vocabulary(Protocol):
    """A model's own tokens.

    Attributes:
        specials: Special tokens before and after every text.
        rows: Ids are below this.
        padding_id: What fills rows up, where the model says it.
    """

    specials: tuple[int, int]
    rows: int
    padding_id: int | None

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Tokenize texts as they are, special tokens added."""

    def decode(self, ids: Sequence[int]) -> str:
        """Return a text of these tokens, special ones left out."""

    def split(self, text: str, *, max_tokens: int) -> list[Span]:
        """Cut a text into pieces that each encode to at most `max_tokens`."""


def vocabulary_of(provider: Provider) -> Vocabulary | None:
    """Return the tokens of a model that computes here; None: it is asked, and reads cl100k_base."""
    return cast("Vocabulary | None", getattr(provider, "vocabulary", None))


@dataclass(frozen=True, slots=True)
class Work:
    """The texts of a request, ready to be embedded.

    Attributes:
        encoded: p pieces, none above the model's limit.
        tokens: Tokens of all of them.
        counts: (n,) int64 pieces of each input; None: one each.
        weights: (p,) int64 tokens of each piece without specials and prefix; None: inputs are one piece each.
        cut: Inputs that lost text.
    """

    encoded: Encoded
    tokens: int
    counts: IntArray | None = None
    weights: IntArray | None = None
    cut: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.encoded) if self.counts is None else len(self.counts)


@dataclass(frozen=True, slots=True)
class Asked:
    """How texts are to be read.

    Attributes:
        role: What the texts are.
        long_text: What happens to long ones: ERROR, TRUNCATE or AVERAGE.
        ids_of: Whose vocabulary token ids are in: "auto", "own" or "cl100k"; see `Options.token_ids`.
        param: The field they come from, for messages.
    """

    role: InputType
    long_text: LongText
    ids_of: str = "auto"
    param: str = "input"


_ROLES = {
    "document": InputType.DOCUMENT,
    "search_document": InputType.DOCUMENT,
    "passage": InputType.DOCUMENT,
    "query": InputType.QUERY,
    "search_query": InputType.QUERY,
}


def role_of(value: str | None) -> InputType:
    """Return the role a request names; none is a document.

    Raises:
        Refusal: 400 no such role.
    """
    if value is None:
        return InputType.DOCUMENT
    role = _ROLES.get(value.strip().lower())
    if role is None:
        raise invalid(
            "Invalid value for 'input_type'. Supported values are: 'document' and 'query'.",
            param="input_type",
            code="invalid_value",
        )
    return role


_TRUNCATIONS = {
    "none": LongText.ERROR,
    "end": LongText.TRUNCATE,
    "average": LongText.AVERAGE,
    "mean": LongText.AVERAGE,
}


def long_text_of(value: bool | str | None, default: LongText) -> LongText:
    """Return what a request says of long texts, else the model's own way.

    Raises:
        Refusal: 400 no such way.
    """
    if value is None:
        return LongText.ERROR if default is LongText.CHUNKS else default
    if isinstance(value, bool):
        return LongText.TRUNCATE if value else LongText.ERROR
    found = _TRUNCATIONS.get(value.strip().lower())
    if found is None:
        raise invalid(
            "Invalid value for 'truncate'. Supported values are: 'none' (a long text is an error), 'end' "
            "(its end is cut off) and 'average' (the mean of its parts).",
            param="truncate",
            code="invalid_value",
        )
    return found


def forms(value: Input, limits: Limits) -> tuple[list[str], list[list[int]]]:
    """Return the texts of an input, or its lists of token ids; one of the two is empty.

    Raises:
        Refusal: 400 empty, mixed, or too many.
    """
    if isinstance(value, str):
        if not value:
            raise wrong_input("input is an empty string.")
        return [value], []
    if not value:
        raise wrong_input("input is an empty array.")
    kinds = set(map(type, value))
    if kinds == {str}:
        return check_texts(cast("list[str]", value), limits, "input"), []
    if kinds <= {int, float}:
        return [], [_ids(cast("list[float]", value), "input")]
    if kinds != {list}:
        raise wrong_input("its elements are of several types.")
    if len(value) > limits.max_inputs:
        raise too_many(len(value), limits.max_inputs, "input")
    lists = [_ids(cast("list[float]", ids), f"input[{at}]") for at, ids in enumerate(value)]
    return [], lists


def check_texts(texts: list[str], limits: Limits, param: str) -> list[str]:
    """Return texts as they are.

    Raises:
        Refusal: 400 none, too many, or an empty one.
    """
    if not texts:
        raise wrong_input(f"{param} is an empty array.", param=param)
    if len(texts) > limits.max_inputs:
        raise too_many(len(texts), limits.max_inputs, param)
    if not all(texts):
        raise wrong_input(f"{param}[{texts.index('')}] is an empty string.", param=param)
    return texts


def _ids(values: list[float], where: str) -> list[int]:
    if not values:
        raise wrong_input(f"{where} is an empty array.")
    if set(map(type, values)) == {int}:
        return cast("list[int]", values)
    for at, value in enumerate(values):
        if isinstance(value, float) and not value.is_integer():
            raise wrong_input(f"{where}[{at}] is no whole number.")
    return [int(value) for value in values]


async def encode(provider: Provider, value: Input, asked: Asked, limits: Limits) -> Work:
    """Tokenize an input of any form.

    Up to 4,096 characters are tokenized here, more in a thread, slice by slice. So are token ids, until the
    ranks of cl100k_base are in memory.

    Raises:
        Refusal: 400 empty, mixed, too many, too long, or token ids that are none.
    """
    texts, lists = forms(value, limits)
    if texts:
        return await encode_texts(provider, texts, asked, limits)
    total = sum(map(len, lists))
    refuse_tokens(total, limits)
    small = total <= 1024 and tokens.is_loaded()
    return await _aside(small, lambda: _encode_lists(provider, lists, asked, limits))


async def encode_texts(provider: Provider, texts: Sequence[str], asked: Asked, limits: Limits) -> Work:
    """Tokenize texts; see `encode`."""
    lengths = [len(text) for text in texts]
    refuse_characters(lengths, limits, asked.param)
    reader = _Reader(provider, asked)
    if sum(lengths) <= _AT_ONCE_CHARACTERS:
        return _whole([reader.read(texts, range(len(texts)))], limits)
    parts: list[_Part] = []
    total, left = 0, sum(lengths)
    for rows in slices(lengths):
        part = await beside(reader.read, texts[rows.start : rows.stop], rows)
        parts.append(part)
        total += int(part.encoded.tokens.sum())
        left -= sum(lengths[rows.start : rows.stop])
        if left > _COUNTED_CHARACTERS:  # enough to say no, where the exact count would take seconds
            refuse_tokens(total, limits, at_least=True)
    return _whole(parts, limits)


def slices(lengths: Sequence[int]) -> Iterator[range]:
    """Yield the rows of texts that are tokenized at once, by the characters of each."""
    start = 0
    while start < len(lengths):
        end, characters = start + 1, lengths[start]
        while end < len(lengths) and characters + lengths[end] <= _SLICE_CHARACTERS:
            characters += lengths[end]
            end += 1
        yield range(start, end)
        start = end


def refuse_characters(lengths: Sequence[int], limits: Limits, param: str) -> None:
    """Refuse a text too long to be tokenized.

    Raises:
        Refusal: 400, it names the first.
    """
    most = limits.max_characters
    if max(lengths) > most:
        at = next(i for i, length in enumerate(lengths) if length > most)
        raise invalid(
            f"Invalid '{param}': string too long. Expected a string with maximum length {most}, but got a "
            f"string with length {lengths[at]} instead, at index {at}.",
            param=param,
            code="string_above_max_length",
        )


def too_long(count: int, limit: int, index: int, param: str) -> Refusal:
    """Return the answer to a text of more tokens than the model takes."""
    return invalid(
        f"This model's maximum context length is {limit} tokens, however you requested {count} tokens "
        f"({count} in your prompt; 0 for the completion). Please reduce your prompt; or completion length. "
        f"It is at index {index} of {param}."
    )


async def beside(work: Callable[P, T], *args: P.args, **more: P.kwargs) -> T:
    """Do something with much text in a thread, where at most two such things are done at a time."""
    return await asyncio.get_running_loop().run_in_executor(_BESIDE, partial(work, *args, **more))


async def _aside(small: bool, work: Callable[[], T]) -> T:
    return work() if small else await beside(work)


@dataclass(frozen=True, slots=True)
class _Part:
    """Some inputs of a request: `rows` are their places in it; the rest as in `Work`."""

    rows: Sequence[int]
    encoded: Encoded
    counts: Sequence[int] | None = None
    weights: Sequence[int] | None = None
    cut: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class _Reader:
    """Texts to tokens; `own` reads them as they are, without the prefix of a role."""

    provider: Provider
    asked: Asked
    own: Vocabulary | None = None

    def encode(self, texts: Sequence[str]) -> Encoded:
        if self.own is not None:
            return self.own.encode(texts)
        return self.provider.encode(texts, input_type=self.asked.role)

    def split(self, text: str, limit: int) -> list[Span]:
        if self.own is not None:
            return self.own.split(text, max_tokens=limit)
        return self.provider.split(text, max_tokens=limit, input_type=self.asked.role)

    def read(self, texts: Sequence[str], rows: Sequence[int]) -> _Part:
        if self.asked.long_text is LongText.TRUNCATE and self.own is None:
            cut = getattr(self.provider, "encode_beginnings", None)  # of models that compute here
            if cut is not None and (part := self._begun(cut, texts, rows)) is not None:
                return part
        return self.fit(texts, rows, self.encode(texts))

    def _begun(
        self, cut: Callable[..., tuple[Encoded, list[int]]], texts: Sequence[str], rows: Sequence[int]
    ) -> _Part | None:
        """Cut texts without reading long ones whole; None where one of them cannot be cut."""
        try:
            encoded, long = cut(texts, max_tokens=self.provider.info.max_tokens, input_type=self.asked.role)
        except InputError:  # `fit` says it
            return None
        return _Part(rows, encoded, cut=tuple(rows[at] for at in long))

    def fit(self, texts: Sequence[str], rows: Sequence[int], encoded: Encoded) -> _Part:
        """Do with long texts what was asked."""
        limit = self.provider.info.max_tokens
        if max(_few(encoded.tokens), default=0) <= limit:
            return _Part(rows, encoded)
        long = np.flatnonzero(encoded.tokens > limit).tolist()
        match self.asked.long_text:
            case LongText.TRUNCATE:
                shorter = self._truncated(encoded, limit, rows[long[0]])
                return _Part(rows, shorter, cut=tuple(rows[at] for at in long))
            case LongText.AVERAGE:
                return self._pieces(texts, rows, encoded, long)
            case _:
                raise too_long(int(encoded.tokens[long[0]]), limit, rows[long[0]], self.asked.param)

    def _truncated(self, encoded: Encoded, limit: int, row: int) -> Encoded:
        try:
            return self.provider.truncate(encoded, max_tokens=limit)
        except InputError as error:
            raise invalid(f"{error} (at or after index {row})", param=self.asked.param) from error

    def _pieces(self, texts: Sequence[str], rows: Sequence[int], encoded: Encoded, long: list[int]) -> _Part:
        limit = self.provider.info.max_tokens
        counts = [1] * len(encoded)
        weights = encoded.tokens.tolist()
        parts: list[Encoded] = []
        flat: list[int] = []
        done = 0
        for at in long:
            spans = self.split(texts[at], limit)
            if not spans:
                raise too_long(int(encoded.tokens[at]), limit, rows[at], self.asked.param)
            parts.append(encoded.take(range(done, at)))
            parts.append(self.encode([texts[at][span.start : span.end] for span in spans]))
            flat += [*weights[done:at], *(span.tokens for span in spans)]
            counts[at] = len(spans)
            done = at + 1
        parts.append(encoded.take(range(done, len(encoded))))
        flat += weights[done:]
        return _Part(rows, join([part for part in parts if len(part)]), counts, flat)


def _whole(parts: list[_Part], limits: Limits) -> Work:
    """Put the parts of a request together, in the order of its inputs."""
    encoded = parts[0].encoded if len(parts) == 1 else join([part.encoded for part in parts])
    total = sum(_few(encoded.tokens))
    refuse_tokens(total, limits)
    if len(parts) == 1 and parts[0].counts is None:
        return Work(encoded, total, cut=parts[0].cut)
    rows = [row for part in parts for row in part.rows]
    counts = np.array([n for p in parts for n in (p.counts or [1] * len(p.rows))], dtype=np.int64)
    listed = [p.weights if p.weights is not None else p.encoded.tokens.tolist() for p in parts]
    weights = np.array([weight for part in listed for weight in part], dtype=np.int64)
    if rows != sorted(rows):
        owner = np.repeat(np.array(rows), counts)
        order = np.argsort(owner, kind="stable")
        encoded, weights = encoded.take(order), weights[order]
        counts = counts[np.argsort(rows)]
    cut = tuple(sorted(row for part in parts for row in part.cut))
    if len(encoded) == len(counts):
        return Work(encoded, total, cut=cut)
    return Work(encoded, total, counts, weights, cut)


def _few(counts: IntArray) -> list[int]:
    """Return counts for Python's sum and max, which are faster than NumPy's for what one request has."""
    found: list[int] = counts.tolist()
    return found


# Token ids.


def _encode_lists(provider: Provider, lists: list[list[int]], asked: Asked, limits: Limits) -> Work:
    """Read lists of token ids: the model's own where they look so, else cl100k_base."""
    vocabulary = vocabulary_of(provider)
    ends = None if vocabulary is None or asked.ids_of == "cl100k" else _ends(vocabulary)
    own: list[int] = []
    foreign: list[int] = []
    for at, ids in enumerate(lists):
        ours = ends is not None and (asked.ids_of == "own" or _is_own(ids, *ends))
        (own if ours else foreign).append(at)
    parts: list[_Part] = []
    if own and vocabulary is not None:
        parts += _read_own(_Reader(provider, asked, vocabulary), vocabulary, lists, own)
    if foreign:
        texts = [_decoded(lists[at], at, asked.param) for at in foreign]
        refuse_characters([len(text) for text in texts], limits, asked.param)
        parts.append(_Reader(provider, asked).read(texts, foreign))
    return _whole(parts, limits)


def _ends(vocabulary: Vocabulary) -> tuple[list[int], list[int]]:
    """Return the special tokens before and after every text."""
    ids = vocabulary.encode([""]).ids
    every = [] if ids is None else ids[0].tolist()
    head, tail = vocabulary.specials
    return every[:head], every[len(every) - tail :]


def _is_own(ids: list[int], head: list[int], tail: list[int]) -> bool:
    """Say whether ids begin and end with the model's special tokens; where it has none, nobody can say."""
    if not head and not tail:
        return False
    fits = len(ids) >= len(head) + len(tail)
    return fits and ids[: len(head)] == head and (not tail or ids[-len(tail) :] == tail)


def _decoded(ids: list[int], at: int, param: str) -> str:
    try:
        text = tokens.decode(ids)
    except InputError as error:
        raise invalid(f"'$.{param}' is invalid: {error}, at index {at}.", param=param) from error
    if not text:
        raise wrong_input(f"{param}[{at}] stands for no text.", param=param)
    return text


def _read_own(reader: _Reader, vocabulary: Vocabulary, lists: list[list[int]], own: list[int]) -> list[_Part]:
    """Read the model's own ids. Those its tokenizer would make of a text are that text, to the last byte."""
    for at in own:
        if min(lists[at]) < 0 or max(lists[at]) >= vocabulary.rows:
            raise invalid(
                f"'$.{reader.asked.param}' is invalid: a token id is outside the model's vocabulary (0 to "
                f"{vocabulary.rows - 1}), at index {at}.",
                param=reader.asked.param,
            )
        if len(lists[at]) == sum(vocabulary.specials):
            raise wrong_input(f"{reader.asked.param}[{at}] stands for no text.", param=reader.asked.param)
    given = [np.array(lists[at], dtype=np.int32) for at in own]
    texts = [vocabulary.decode(lists[at]) for at in own]
    again = vocabulary.encode(texts)
    same = [again.ids is not None and np.array_equal(ids, again.ids[at]) for at, ids in enumerate(given)]
    plain = [at for at, equal in enumerate(same) if equal]
    parts: list[_Part] = []
    if plain:
        rows = [own[at] for at in plain]
        parts.append(reader.fit([texts[at] for at in plain], rows, again.take(plain)))
    odd = [at for at, equal in enumerate(same) if not equal]
    if odd:
        parts.append(_fit_ids(reader, vocabulary, [given[at] for at in odd], [own[at] for at in odd]))
    return parts


def _fit_ids(reader: _Reader, vocabulary: Vocabulary, given: list[TokenIds], rows: list[int]) -> _Part:
    """Bring ids that are no text's to the model's limit."""
    limit, asked = reader.provider.info.max_tokens, reader.asked
    head, tail = vocabulary.specials
    pieces: list[TokenIds] = []
    counts: list[int] = []
    cut: list[int] = []
    for ids, row in zip(given, rows, strict=True):
        found = [ids]
        if len(ids) > limit:
            room = limit - head - tail
            inner = ids[head : len(ids) - tail]
            before, after = ids[:head], ids[len(ids) - tail :]
            starts = range(0, len(inner), room)
            found = [np.concatenate([before, inner[at : at + room], after]) for at in starts]
            if asked.long_text is LongText.TRUNCATE:
                found = found[:1]
                cut.append(row)
            elif asked.long_text is not LongText.AVERAGE:
                raise too_long(len(ids), limit, row, asked.param)
        pieces += found
        counts.append(len(found))
    # Half a surrogate pair: no text of a request begins so, so none has these keys in a cache.
    names = tuple("\ud800" + " ".join(map(str, ids.tolist())) for ids in pieces)
    sizes = np.array([len(ids) for ids in pieces], dtype=np.int64)
    encoded = Encoded(names, sizes, np.zeros(len(pieces), dtype=np.int64), tuple(pieces))
    weights = np.maximum(sizes - head - tail, 1).tolist()
    return _Part(rows, encoded, counts, weights, tuple(cut))
