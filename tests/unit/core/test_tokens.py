from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vecmill.core import tokens
from vecmill.core.errors import CorruptFileError, InputError, UnknownNameError
from vecmill.core.tokens import count


# Source of the first four: OpenAI cookbook, How to count tokens with tiktoken (table of cl100k_base).
@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("tiktoken is great!", 6),
        ("antidisestablishmentarianism", 6),
        ("2 + 2 = 4", 7),
        ("お誕生日おめでとう", 9),
        ("AGI " * 5000, 10_001),
        ("", 0),
        ("1234567", 3),
    ],
)
def test_known_counts(text: str, tokens: int) -> None:
    assert count([text]).tolist() == [tokens]


def test_special_tokens_count_as_ordinary_text() -> None:
    assert count(["<|endoftext|>"]).tolist() == [7]
    assert count(["<|fim_prefix|>"])[0] > 1


def test_counts_come_in_the_order_of_the_texts() -> None:
    got = count(["a", "tiktoken is great!", "a"])
    assert got.tolist() == [1, 6, 1]
    assert got.dtype == np.int64
    assert count([]).shape == (0,)


@pytest.mark.parametrize("space", [chr(i) for i in range(0x3001) if chr(i).isspace()], ids=ascii)
def test_every_kind_of_white_space_counts_as_by_the_whole_pattern(space: str) -> None:
    texts = [
        f"{a}{space}{b}{c}"
        for a in ("", "one", "2", ",")
        for b in ("", " ", space, "\n")
        for c in ("", "x", "3", "...")
    ]
    assert count(texts).tolist() == [len(whole(text)) for text in texts]


def whole(text: str) -> list[int]:
    return tokens._encoding("cl100k_base").any.encode_ordinary(text)


def test_plain_texts_are_those_without_runs_of_white_space() -> None:
    assert all(
        map(tokens._is_plain, ["", " ", "a b", "It's 12,345 o'clock!\nSo what?", "お誕生日 おめでとう"])
    )
    assert not any(
        map(tokens._is_plain, ["a  b", "a \nb", "a\n\nb", "a\tb", "a\u00a0b", "a\u2028b", "a\u200db"])
    )


def test_half_a_surrogate_pair_is_counted_not_refused() -> None:
    assert count(["a\ud83d"])[0] >= 2


def test_a_single_text_is_refused() -> None:
    with pytest.raises(InputError, match=r"pass \[text\]"):
        count("one text")


def test_an_unknown_encoding_names_the_known_one() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'cl100k_base'"):
        count(["a"], "cl100k")


def test_an_altered_rank_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = (Path(tokens.__file__).parent / "ranks" / "cl100k_base.tiktoken").read_bytes()
    (tmp_path / "cl100k_base.tiktoken").write_bytes(whole[:-1])
    monkeypatch.setattr(tokens, "_FOLDER", tmp_path)
    tokens._encoding.cache_clear()
    with pytest.raises(CorruptFileError, match="was altered"):
        count(["a"])
    tokens._encoding.cache_clear()


def test_the_notice_names_the_checksum_of_the_file_beside_it() -> None:
    folder = Path(tokens.__file__).parent / "ranks"
    digest = hashlib.sha256((folder / "cl100k_base.tiktoken").read_bytes()).hexdigest()
    assert digest in (folder / "NOTICE").read_text("utf-8")
    assert "MIT License" in (folder / "NOTICE").read_text("utf-8")


def test_counting_opens_no_socket_in_a_fresh_process() -> None:
    code = (
        "import sys\n"
        "def refuse(event, args):\n"
        "    if event.startswith('socket.'): raise RuntimeError(event)\n"
        "sys.addaudithook(refuse)\n"
        "from vecmill.core.tokens import count\n"
        "assert 'tiktoken' not in sys.modules\n"
        "assert count(['tiktoken is great!']).tolist() == [6]\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_ids_stand_for_the_text_they_were_made_of() -> None:
    text = "hello world, <|endoftext|> naïve 漢字 🌊"
    assert tokens.decode(tokens.encode(text)) == text
    assert tokens.encode("hello world") == [15339, 1917]
    assert len(tokens.encode(text)) == count([text])[0]


@pytest.mark.parametrize("ids", [[100_256], [-1], [10**30]])
def test_ids_outside_the_vocabulary_are_refused(ids: list[int]) -> None:
    with pytest.raises(InputError, match="not in the vocabulary of cl100k_base"):
        tokens.decode(ids)


def test_ids_that_cut_a_character_are_refused() -> None:
    with pytest.raises(InputError, match="a character is cut"):
        tokens.decode(tokens.encode("🌊")[:1])
