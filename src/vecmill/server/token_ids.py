"""Lists of token ids: a model's own, or those of cl100k_base, embedded as the text they stand for."""

from __future__ import annotations

import numpy as np

from vecmill.core import tokens
from vecmill.core.errors import InputError
from vecmill.core.types import LongText
from vecmill.models.base import Encoded, Provider, TokenIds
from vecmill.server.errors import invalid
from vecmill.server.options import Limits
from vecmill.server.parsing import wrong_input
from vecmill.server.reading import (
    Asked,
    Part,
    Reader,
    Vocabulary,
    Work,
    put_together,
    refuse_characters,
    too_long,
    vocabulary_of,
)


def encode_ids(provider: Provider, lists: list[list[int]], asked: Asked, limits: Limits) -> Work:
    """Read lists of token ids: the model's own where they look so, else cl100k_base."""
    vocabulary = vocabulary_of(provider)
    ends = None if vocabulary is None or asked.ids_of == "cl100k" else _ends(vocabulary)
    own: list[int] = []
    foreign: list[int] = []
    for at, ids in enumerate(lists):
        ours = ends is not None and (asked.ids_of == "own" or _is_own(ids, *ends))
        (own if ours else foreign).append(at)
    parts: list[Part] = []
    if own and vocabulary is not None:
        parts += _read_own(Reader(provider, asked, vocabulary), vocabulary, lists, own)
    if foreign:
        texts = [_decoded(lists[at], at, asked.param) for at in foreign]
        refuse_characters([len(text) for text in texts], limits, asked.param)
        parts.append(Reader(provider, asked).read(texts, foreign))
    return put_together(parts, limits)


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


def _read_own(reader: Reader, vocabulary: Vocabulary, lists: list[list[int]], own: list[int]) -> list[Part]:
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
    parts: list[Part] = []
    if plain:
        rows = [own[at] for at in plain]
        parts.append(reader.fit([texts[at] for at in plain], rows, again.take(plain)))
    odd = [at for at, equal in enumerate(same) if not equal]
    if odd:
        parts.append(_fit_ids(reader, vocabulary, [given[at] for at in odd], [own[at] for at in odd]))
    return parts


def _fit_ids(reader: Reader, vocabulary: Vocabulary, given: list[TokenIds], rows: list[int]) -> Part:
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
    return Part(rows, encoded, counts, weights, tuple(cut))
