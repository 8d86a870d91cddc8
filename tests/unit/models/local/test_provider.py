"""The provider of local models: same text, same bytes; limits; progress; cancelling; spaces."""

from __future__ import annotations

import asyncio
import csv
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vecmill.core.errors import (
    ConfigError,
    CorruptFileError,
    InputError,
    TextTooLongError,
    UnknownNameError,
)
from vecmill.core.types import InputType, Vectors
from vecmill.models.base import Encoded
from vecmill.models.local import files, runtime
from vecmill.models.local.provider import LocalProvider

BUILTIN = files.BUILTIN_NAME
TEXTS = (
    "The mill turns grain into flour.",
    "mill",
    "Why does the sky look blue at noon and red at dusk?",
    "A quarterly report lists revenue, costs and 42 open orders. " * 4,
    "water " * 120,
    "naïve café — déjà vu",
    "",
)


@pytest.fixture(scope="module")
def news(data_dir: Path) -> tuple[str, ...]:
    with (data_dir / "news" / "ag_news_test.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))[:80]
    return (*(f"{row[1]} {row[2]}" for row in rows), *(row[1] for row in rows[:40]))


def encoded(provider: LocalProvider, texts: Sequence[str]) -> Encoded:
    return provider.encode(texts, input_type=InputType.DOCUMENT)


def run(provider: LocalProvider, texts: Sequence[str]) -> Vectors:
    return asyncio.run(provider.embed(encoded(provider, texts))).vectors


def assert_same_bytes_everywhere(open_local: Any, texts: Sequence[str], precision: str) -> None:
    together = run(open_local(BUILTIN, precision=precision, threads=2), texts)
    one_thread = run(open_local(BUILTIN, precision=precision, threads=1), texts)
    assert together.tobytes() == one_thread.tobytes()
    alone = open_local(BUILTIN, precision=precision)
    order = np.random.default_rng(3).permutation(len(texts))
    shuffled = run(alone, [texts[row] for row in order])
    assert shuffled.tobytes() == together[order].tobytes()
    for row in range(0, len(texts), max(len(texts) // 25, 1)):
        assert run(alone, [texts[row]])[0].tobytes() == together[row].tobytes()


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_same_text_gives_same_bytes_alone_in_any_batch_with_any_threads(
    open_local: Any, precision: str
) -> None:
    assert_same_bytes_everywhere(open_local, TEXTS * 5, precision)


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_real_texts_give_same_bytes_alone_in_any_batch_with_any_threads(
    open_local: Any, news: tuple[str, ...], precision: str
) -> None:
    assert_same_bytes_everywhere(open_local, news, precision)


def test_many_streams_give_the_bytes_of_one(open_local: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = TEXTS * 12
    one = run(open_local(BUILTIN, threads=1), texts)
    monkeypatch.setattr(runtime.machine, "usable_cores", lambda: 4)
    monkeypatch.setattr(runtime.machine, "physical_cores", lambda: 4)
    assert run(open_local(BUILTIN), texts).tobytes() == one.tobytes()


def test_builtin_gives_unit_vectors_of_384(open_local: Any) -> None:
    provider = open_local(BUILTIN)
    vectors = run(provider, TEXTS)
    assert vectors.shape == (len(TEXTS), 384)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert (provider.info.name, provider.info.precision) == ("local:all-MiniLM-L6-v2", "int8")
    assert (provider.info.max_tokens, provider.info.languages) == (256, ("en",))


def test_builtin_knows_what_is_near(open_local: Any) -> None:
    cat, kitten, bond = run(
        open_local(BUILTIN),
        ["A cat sleeps on the sofa.", "A kitten naps on a couch.", "Bond yields rose sharply."],
    )
    assert cat @ kitten > 0.6 > 0.3 > cat @ bond


def test_no_texts_give_no_vectors_and_compile_nothing(
    open_local: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime.Runtime, "run", None)
    provider = open_local(BUILTIN)
    reply = asyncio.run(provider.embed(encoded(provider, [])))
    assert reply.vectors.shape == (0, 384)
    assert reply.usage.requests == 0


def test_usage_counts_tokens_and_costs_nothing(open_local: Any) -> None:
    provider = open_local(BUILTIN)
    texts = encoded(provider, ["the mill", "turns"])
    usage = asyncio.run(provider.embed(texts)).usage
    assert (usage.texts, usage.tokens, usage.usd) == (2, 7, 0.0)


def test_texts_without_ids_are_tokenized_again(open_local: Any) -> None:
    provider = open_local(BUILTIN)
    full = encoded(provider, TEXTS)
    bare = Encoded(full.texts, full.tokens, full.unknown)
    with_ids = asyncio.run(provider.embed(full)).vectors
    assert asyncio.run(provider.embed(bare)).vectors.tobytes() == with_ids.tobytes()


def test_long_text_is_refused_with_its_count(open_local: Any) -> None:
    provider = open_local(BUILTIN)
    with pytest.raises(TextTooLongError, match=r"text 1 has 302 tokens.*256"):
        run(provider, ["short", "mill " * 300])


def test_limit_may_be_raised_to_the_positions_and_no_further(open_local: Any) -> None:
    provider = open_local(BUILTIN, max_tokens=512)
    assert provider.info.max_tokens == 512
    assert run(provider, ["mill " * 510]).shape == (1, 384)
    with pytest.raises(InputError, match=r"513.*512"):
        open_local(BUILTIN, max_tokens=513)


def test_limit_must_leave_room(open_local: Any) -> None:
    with pytest.raises(InputError, match="no room"):
        open_local(BUILTIN, max_tokens=2)


def test_limit_is_not_part_of_the_space(open_local: Any) -> None:
    assert open_local(BUILTIN, max_tokens=512).info.space == open_local(BUILTIN).info.space


def test_truncated_texts_embed_as_their_kept_characters(open_local: Any) -> None:
    provider = open_local(BUILTIN)
    cut = provider.truncate(encoded(provider, ["short", "grain into flour " * 200]), max_tokens=256)
    assert cut.tokens.tolist() == [3, 256]
    vectors = asyncio.run(provider.embed(cut)).vectors
    assert run(provider, cut.texts).tobytes() == vectors.tobytes()


def test_advance_reports_every_text_once_in_the_loops_thread(open_local: Any) -> None:
    provider = open_local(BUILTIN)
    texts = encoded(provider, TEXTS * 20)
    seen: list[tuple[int, int]] = []

    async def embed() -> None:
        loop = asyncio.get_running_loop()

        def advance(count: int, tokens: int) -> None:
            assert asyncio.get_running_loop() is loop
            seen.append((count, tokens))

        await provider.embed(texts, advance=advance)

    asyncio.run(embed())
    assert len(seen) > 1
    assert sum(count for count, _ in seen) == len(texts)
    assert sum(tokens for _, tokens in seen) == texts.tokens.sum()


def test_cancelling_stops_between_batches_and_the_provider_goes_on(open_local: Any) -> None:
    provider = open_local(BUILTIN)
    texts = encoded(provider, ["grain into flour " * 80] * 400)
    done: list[int] = []

    async def embed_and_cancel() -> None:
        task: asyncio.Task[Any]

        def advance(count: int, tokens: int) -> None:
            done.append(count)
            task.cancel()

        task = asyncio.create_task(provider.embed(texts, advance=advance))
        with pytest.raises(asyncio.CancelledError):
            await task
        again = await provider.embed(encoded(provider, ["mill"]))
        assert again.vectors.shape == (1, 384)
        await provider.close()

    asyncio.run(embed_and_cancel())
    assert sum(done) < 400


def test_concurrent_calls_each_get_their_own_vectors(open_local: Any) -> None:
    provider = open_local(BUILTIN)
    expected = run(provider, TEXTS)

    async def both() -> list[Any]:
        return await asyncio.gather(*(provider.embed(encoded(provider, [text])) for text in TEXTS))

    for row, reply in enumerate(asyncio.run(both())):
        assert reply.vectors[0].tobytes() == expected[row].tobytes()


def test_the_event_loop_goes_on_while_texts_are_embedded(open_local: Any) -> None:
    provider = open_local(BUILTIN)
    texts = encoded(provider, TEXTS * 30)

    async def count_turns() -> int:
        task = asyncio.create_task(provider.embed(texts))
        turns = 0
        while not task.done():
            turns += 1
            await asyncio.sleep(0)
        return turns

    assert asyncio.run(count_turns()) > 100


def test_close_lets_go_and_is_final(open_local: Any) -> None:
    provider = open_local(BUILTIN)

    async def close() -> None:
        await provider.embed(encoded(provider, ["mill"]))
        await provider.close()
        await provider.close()
        with pytest.raises(InputError, match="closed"):
            await provider.embed(encoded(provider, ["mill"]))

    asyncio.run(close())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"precision": "int4"}, "int8"),
        ({"device": "TPU"}, "'NPU'|GPU"),
        ({"precision": "bf16"}, "float32|known"),
    ],
)
def test_unknown_choices_list_the_known(open_local: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UnknownNameError, match=said):
        open_local(BUILTIN, **options)


def test_absent_device_lists_what_is_there(open_local: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Nothing:
        available_devices = ("CPU",)

    monkeypatch.setattr(runtime.openvino(), "Core", Nothing)
    with pytest.raises(ConfigError, match=r"device npu is not on this machine.*sees CPU"):
        open_local(BUILTIN, device="npu")


def test_auto_on_a_machine_with_only_a_cpu_is_the_cpu(open_local: Any) -> None:
    if list(runtime.openvino().Core().available_devices) != ["CPU"]:
        pytest.skip("this machine has another device than the CPU")
    for precision in ("float32", "int8"):
        auto = open_local(BUILTIN, device="auto", precision=precision)
        plain = open_local(BUILTIN, precision=precision)
        assert (auto.info.device, auto.info.space) == ("CPU", plain.info.space)
        assert run(auto, TEXTS).tobytes() == run(plain, TEXTS).tobytes()


def test_another_device_is_another_space(open_local: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Both:
        available_devices = ("CPU", "GPU.0")

    plain = open_local(BUILTIN).info
    monkeypatch.setattr(runtime.openvino(), "Core", Both)
    graphics = open_local(BUILTIN, device="auto").info
    assert (graphics.device, open_local(BUILTIN, device="AUTO:NPU,CPU").info.space) == ("GPU", plain.space)
    assert graphics.space != plain.space


def test_int8_of_a_graph_made_elsewhere_is_refused(golden: Path, open_local: Any) -> None:
    with pytest.raises(ConfigError, match="int8"):
        open_local(golden / "ir-tokens", precision="int8")


def spaces(
    open_local: Any, folder: Path, change: Callable[[Path], object], tmp_path: Path
) -> tuple[str, str]:
    before = open_local(shutil.copytree(folder, tmp_path / "before")).info.space
    changed = Path(shutil.copytree(folder, tmp_path / "after"))
    change(changed)
    return before, open_local(changed).info.space


def test_space_does_not_depend_on_the_place(golden: Path, open_local: Any, tmp_path: Path) -> None:
    before, after = spaces(open_local, golden / "bert-mean", lambda folder: None, tmp_path)
    assert before == after == open_local(golden / "bert-mean").info.space


def flip_last_byte(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)


def set_prompt(folder: Path) -> None:
    path = folder / "config_sentence_transformers.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "prompts": {"query": "q: ", "document": ""}}))


CHANGES: dict[str, Callable[[Path], object]] = {
    "weights": lambda folder: flip_last_byte(folder / "model.safetensors"),
    "tokenizer": lambda folder: (folder / "tokenizer.json").write_text(
        (folder / "tokenizer.json").read_text() + "\n"
    ),
    "config": lambda folder: (folder / "config.json").write_text((folder / "config.json").read_text() + "\n"),
    "pooling": lambda folder: (folder / "vecmill.json").write_text('{"pooling": ["cls"]}'),
    "normalize": lambda folder: (folder / "vecmill.json").write_text('{"normalize": true}'),
    "prompts": set_prompt,
}


@pytest.mark.parametrize("what", CHANGES)
def test_space_changes_with_what_decides_the_vectors(
    golden: Path, open_local: Any, tmp_path: Path, what: str
) -> None:
    before, after = spaces(open_local, golden / "bert-mean", CHANGES[what], tmp_path)
    assert before != after


def test_dense_weights_and_precision_are_part_of_the_space(
    golden: Path, open_local: Any, tmp_path: Path
) -> None:
    folder = golden / "distilbert-dense"
    dense = next(path.name for path in folder.iterdir() if "Dense" in path.name)
    before, after = spaces(
        open_local, folder, lambda changed: flip_last_byte(changed / dense / "model.safetensors"), tmp_path
    )
    assert before != after
    assert open_local(folder, precision="int8").info.space != open_local(folder).info.space


def test_changed_builtin_model_is_refused_with_both_checksums(
    open_local: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = Path(shutil.copytree(files.BUILTIN_FOLDER, tmp_path / "builtin"))
    flip_last_byte(copied / "model.safetensors")
    expected = json.loads((copied / "vecmill.json").read_text())["sha256"]["model.safetensors"]
    monkeypatch.setattr(files, "BUILTIN_FOLDER", copied)
    with pytest.raises(
        CorruptFileError, match=rf"model\.safetensors has SHA-256 \w+, it should have {expected}.*again"
    ):
        open_local(BUILTIN)


def test_hash_of_a_large_file_is_read_once(
    golden: Path, open_local: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    from vecmill.models.local import identity

    folder = Path(shutil.copytree(golden / "bert-mean", tmp_path / "model"))
    weights = folder / "model.safetensors"
    os.utime(weights, (1, 1))
    read: list[Path] = []
    plain = identity._read_sha256
    monkeypatch.setattr(identity, "_SMALL_BYTES", 10)
    monkeypatch.setattr(identity, "_RACY_SECONDS", -10.0)
    monkeypatch.setattr(identity, "_read_sha256", lambda path: (read.append(path), plain(path))[1])
    first = open_local(folder).info.space
    assert weights in read
    read.clear()
    assert open_local(folder).info.space == first
    assert weights not in read
    flip_last_byte(weights)
    os.utime(weights, (1, 1))  # as before: only the record's own time tells
    assert open_local(folder).info.space != first


def test_hash_of_a_file_just_changed_is_not_kept(
    golden: Path, open_local: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    from vecmill.models.local import identity

    folder = Path(shutil.copytree(golden / "bert-mean", tmp_path / "model"))
    os.utime(folder / "model.safetensors", (1, 1))
    monkeypatch.setattr(identity, "_SMALL_BYTES", 10)
    monkeypatch.setattr(identity, "_RACY_SECONDS", 1e6)
    provider = open_local(folder)
    cache = provider._engine._plan.cache_dir
    kept = [entry.read_text() for entry in (cache / "hashes").glob("*.json")]
    assert not any(str(folder) in entry for entry in kept)
