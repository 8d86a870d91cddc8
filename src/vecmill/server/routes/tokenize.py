"""Texts to the tokens a model reads, as OpenVINO Model Server answers them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import orjson

from vecmill.core import tokens
from vecmill.server.call import Answer, Call
from vecmill.server.errors import invalid
from vecmill.server.inputs import beside, check_texts, slices
from vecmill.server.options import Limits
from vecmill.server.parsing import read, refuse_tokens, whole, wrong_input
from vecmill.server.reading import Vocabulary, refuse_characters, vocabulary_of
from vecmill.server.schemas import TokenizeRequest
from vecmill.server.vectors import unless_left

_AT_ONCE_CHARACTERS = 4_096


async def tokenize(call: Call) -> Answer:
    """Answer `POST /v3/tokenize`: the ids of a text, or of each text of a list, special tokens included.

    Prefixes of roles are not added. A model that is asked over a network is counted in cl100k_base. As many
    ids are given, padding included, as a request may have tokens.
    """
    request = await read(call, TokenizeRequest)
    limits = call.server.options.limits
    length = whole(request.max_length, "max_length")
    single = isinstance(request.text, str)
    texts = [request.text] if isinstance(request.text, str) else request.text
    if single and not request.text:
        raise wrong_input("text is an empty string.", param="text")
    check_texts(texts, limits, "text")
    refuse_characters([len(text) for text in texts], limits, "text")
    async with call.server.models.lease(request.model) as served:
        vocabulary = vocabulary_of(served.provider)
        call.noted.model, call.noted.version = served.name, served.version
        specials = request.add_special_tokens is not False
        if request.pad_to_max_length:
            length = served.info.max_tokens if length is None else length
            if length > served.info.max_tokens:
                raise invalid(
                    "Invalid value for 'max_length': padding goes up to the model's "
                    f"{served.info.max_tokens} tokens.",
                    param="max_length",
                    code="invalid_value",
                )
        shape = _Shape(vocabulary, length, bool(request.pad_to_max_length), request.padding_side == "left")
        small = sum(map(len, texts)) <= _AT_ONCE_CHARACTERS
        reading = shape.every(texts, limits, specials=specials, small=small)
        found = await unless_left(call, reading)
        rates = call.ticket.take(0)  # nothing is computed: no tokens
    call.noted.texts, call.noted.tokens = len(texts), sum(map(len, found))
    said = {"tokens": found[0] if single else found}
    body = orjson.dumps(said) if small else await asyncio.to_thread(orjson.dumps, said)
    return Answer(200, body, headers=rates)


class _Shape:
    """How ids are cut and filled up."""

    def __init__(self, vocabulary: Vocabulary | None, length: int | None, pad: bool, left: bool) -> None:
        self._vocabulary, self._length, self._pad, self._left = vocabulary, length, pad, left

    async def every(
        self, texts: Sequence[str], limits: Limits, *, specials: bool, small: bool
    ) -> list[list[int]]:
        """Return the ids of each text; many texts are read in a thread, slice by slice.

        Raises:
            Refusal: 400, there are more ids than a request may have tokens.
        """
        if small:
            found = self.ids(texts, specials=specials)
            refuse_tokens(sum(map(len, found)), limits)
            return found
        found, total = [], 0
        for rows in slices([len(text) for text in texts]):
            some = await beside(self.ids, texts[rows.start : rows.stop], specials=specials)
            total += sum(map(len, some))
            refuse_tokens(total, limits, at_least=rows.stop < len(texts))
            found += some
        return found

    def ids(self, texts: Sequence[str], *, specials: bool) -> list[list[int]]:
        """Return the ids of each text."""
        if self._vocabulary is None:
            return [self._fitted(tokens.encode(text), 0, 0, 0) for text in texts]
        head, tail = self._vocabulary.specials
        ids = self._vocabulary.encode(texts).ids or ()
        padding = self._vocabulary.padding_id or 0
        if specials:
            return [self._fitted(row.tolist(), head, tail, padding) for row in ids]
        return [self._fitted(row[head : len(row) - tail].tolist(), 0, 0, padding) for row in ids]

    def _fitted(self, ids: list[int], head: int, tail: int, padding: int) -> list[int]:
        length = self._length
        if length is None:
            return ids
        if len(ids) > length:
            ids = [*ids[: max(length - tail, head)], *ids[len(ids) - tail :]][:length]
        if not self._pad:
            return ids
        filling = [padding] * (length - len(ids))
        return [*filling, *ids] if self._left else [*ids, *filling]
