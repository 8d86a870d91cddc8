"""What a request wants embedded: its roles and four forms of input, tokenized without holding others up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar, cast

from vecmill.core import tokens
from vecmill.core.types import InputType, LongText
from vecmill.models.base import Provider
from vecmill.server.errors import invalid
from vecmill.server.options import Limits
from vecmill.server.parsing import refuse_tokens, too_many, wrong_input
from vecmill.server.reading import Asked, Part, Reader, Work, put_together, refuse_characters
from vecmill.server.schemas import Input
from vecmill.server.token_ids import encode_ids

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
    return await _aside(small, lambda: encode_ids(provider, lists, asked, limits))


async def encode_texts(provider: Provider, texts: Sequence[str], asked: Asked, limits: Limits) -> Work:
    """Tokenize texts; see `encode`."""
    lengths = [len(text) for text in texts]
    refuse_characters(lengths, limits, asked.param)
    reader = Reader(provider, asked)
    if sum(lengths) <= _AT_ONCE_CHARACTERS:
        return put_together([reader.read(texts, range(len(texts)))], limits)
    parts: list[Part] = []
    total, left = 0, sum(lengths)
    for rows in slices(lengths):
        part = await beside(reader.read, texts[rows.start : rows.stop], rows)
        parts.append(part)
        total += int(part.encoded.tokens.sum())
        left -= sum(lengths[rows.start : rows.stop])
        if left > _COUNTED_CHARACTERS:  # enough to say no, where the exact count would take seconds
            refuse_tokens(total, limits, at_least=True)
    return put_together(parts, limits)


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


async def beside(work: Callable[P, T], *args: P.args, **more: P.kwargs) -> T:
    """Do something with much text in a thread, where at most two such things are done at a time."""
    return await asyncio.get_running_loop().run_in_executor(_BESIDE, partial(work, *args, **more))


async def _aside(small: bool, work: Callable[[], T]) -> T:
    return work() if small else await beside(work)
