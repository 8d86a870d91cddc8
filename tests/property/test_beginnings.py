"""A text cut by its beginning alone is the text cut whole, to the last byte."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from vecmill.models.local import files
from vecmill.models.local.tokenizer import Tokenizer

NASTY = [
    "the quick brown fox jumps ",
    "word",
    " ",
    "   ",
    "\n",
    "\t\u00a0\u2003",
    "\x00\x1c\ufffd",
    "é",
    "e\u0301\u0301\u0301",
    " \u0301",
    "a\u200d\u200db",
    "👩\u200d👩\u200d👧",
    "日本語の文章 ",
    "漢\u0308字",
    "가각",
    "Σ.Α",
    "ΑΣ",
    "İıß",
    "[MASK]",
    "[MA",
    "SK]",
    "[SEP]",
    "<mask> ",
    "[UN",
    "x" * 99,
    "y" * 101,
    "!!!...",
    "\u0600 ",
    " \u0e33",
    "ﬁ ﷺ ",
    "12345 678",
    "▁ ▁a",
    "it's ",
]
TEXTS = st.lists(st.one_of(st.sampled_from(NASTY), st.text(max_size=6)), max_size=60).map("".join)


def trained(folder: Path, kind: str) -> Path:
    """Train a small tokenizer of a family on the nasty pieces themselves."""
    corpus = [*NASTY, "a b c the words of a small text that go on and on"] * 3
    specials = ["<unk>", "<s>", "</s>", "<mask>"]
    if kind == "bytes":
        backend: Any = Backend(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer: Any = trainers.BpeTrainer(vocab_size=600, special_tokens=specials, initial_alphabet=alphabet)
    else:
        backend = Backend(models.Unigram())
        backend.normalizer = normalizers.Sequence([normalizers.NFKC()])
        backend.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=400, special_tokens=specials, unk_token=specials[0])
    backend.train_from_iterator(corpus, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    path = folder / "tokenizer.json"
    backend.save(str(path))
    return path


@pytest.fixture(scope="module", params=["bert", "bert lowered", "bytes", "unigram"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    if request.param.startswith("bert"):
        path = files.inspect_folder(files.BUILTIN_FOLDER).tokenizer
        return Tokenizer(path, lowercase=request.param != "bert")
    found = Tokenizer(trained(tmp_path_factory.mktemp(request.param), request.param))
    assert found._borders is not None
    return found


def whole(tokenizer: Tokenizer, texts: list[str], most: int) -> list[tuple[str, list[int]]]:
    ids = tokenizer.encode(texts).ids or ()
    found = [tokenizer.truncate(text, one, most) for text, one in zip(texts, ids, strict=True)]
    return [(text, one.tolist()) for text, one in found]


@settings(deadline=None, max_examples=150)
@given(st.lists(TEXTS, max_size=4), st.integers(8, 20), st.sampled_from(["", "query: ", "▁e\u0301 "]))
def test_a_cut_beginning_is_that_of_the_whole_text(
    tokenizer: Tokenizer, texts: list[str], most: int, prefix: str
) -> None:
    texts = [prefix + text for text in texts]
    encoded, cut = tokenizer.encode_beginnings(texts, most)
    assert encoded.ids is not None
    found = [(text, ids.tolist()) for text, ids in zip(encoded.texts, encoded.ids, strict=True)]
    assert found == whole(tokenizer, texts, most)
    counts = tokenizer.encode(texts).tokens
    assert cut == np.flatnonzero(counts > most).tolist()
    assert encoded.tokens.tolist() == [len(ids) for _, ids in found]
    again = tokenizer.encode([text for text, _ in found]).unknown.tolist()
    assert encoded.unknown.tolist() == again


def test_a_long_text_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = Tokenizer(files.inspect_folder(files.BUILTIN_FOLDER).tokenizer)
    backend, read = tokenizer._backend, []

    class Counting:
        def __getattr__(self, name: str) -> Any:
            return getattr(backend, name)

        def encode_batch(self, texts: list[str], **more: Any) -> Any:
            read.append(sum(map(len, texts)))
            return backend.encode_batch(texts, **more)

        def encode_batch_fast(self, texts: list[str]) -> Any:
            read.append(sum(map(len, texts)))
            return backend.encode_batch_fast(texts)

    monkeypatch.setattr(tokenizer, "_backend", Counting())
    _, cut = tokenizer.encode_beginnings(["many words " * 100_000, "漢字" * 100_000, "..!?" * 100_000], 256)
    assert cut == [0, 1, 2]
    assert sum(read) < 20_000


def test_a_tokenizer_that_reads_words_together_is_given_the_whole_text(tmp_path: Path) -> None:
    settings_of = json.loads(trained(tmp_path, "unigram").read_text("utf-8"))
    settings_of["pre_tokenizer"] = None
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(settings_of), "utf-8")
    assert Tokenizer(path)._borders is None
