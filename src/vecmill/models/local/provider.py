"""The provider of local models: texts in, vectors out, on this machine."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vecmill.core.config import Settings
from vecmill.core.errors import ConfigError, InputError, TextTooLongError, unknown_name
from vecmill.core.types import InputType, Usage, Vectors
from vecmill.models.base import Advance, Encoded, ModelInfo, Reply, Span, TokenIds, no_advance
from vecmill.models.local import files, foreign, graph, identity, packing, runtime
from vecmill.models.local.pooling import Dense, Head, Normalize
from vecmill.models.local.tokenizer import Tokenizer
from vecmill.models.local.weights import open_weights

PRECISIONS = ("float32", "int8")


@dataclass(frozen=True, slots=True)
class _Network:
    """What a folder computes: its head, width, limit, and how to build the graph.

    `counts_positions` says that the graph takes RoBERTa's positions as an input, `alone` that a text's bytes
    would depend on its batch, so that each is embedded by itself; `rows` is how many token ids it knows.
    """

    head: Head
    dimensions: int
    positions: int | None
    padding_id: int
    counts_positions: bool
    rows: int | None
    build: Callable[[], Any]
    alone: bool = False


def load(
    name: str,
    *,
    settings: Settings,
    device: str | None = None,
    precision: str | None = None,
    threads: int | None = None,
    max_tokens: int | None = None,
    pooling: str | None = None,
    normalize: bool | None = None,
    streams: int | None = None,
) -> LocalProvider:
    """Open a local model. Nothing is compiled before the first text is embedded.

    Args:
        name: "all-MiniLM-L6-v2", the model in the wheel, or the path of a model folder.
        settings: Gives the folder for compiled models.
        device: OpenVINO's name, such as "CPU", "GPU", "NPU" or "AUTO"; None is the CPU.
        precision: "float32" or "int8"; None is int8 for the built-in model and float32 for folders.
        threads: Threads at most; None takes the settings', 0 every core the process may use.
        max_tokens: Another limit than the model's default, up to the positions it has.
        pooling: How token vectors become one ("mean", "cls", "lasttoken", …) instead of as the folder says;
            another pooling is another space.
        normalize: Whether vectors get unit length, instead of as the folder says; likewise.
        streams: Batches computed side by side; None takes one per physical core. The bits are the same.

    Raises:
        UnknownNameError: No such precision, device, pooling or kind of model.
        ConfigError: A file is missing, or the folder does not say how its vectors are pooled.
        CorruptFileError: A file is damaged or not the one its checksum names.
        InputError: `max_tokens` is more than the model has positions, or the graph pools by itself and
            another pooling is asked for.
    """
    builtin = name == files.BUILTIN_NAME
    found = files.inspect_folder(files.BUILTIN_FOLDER if builtin else Path(name))
    found = files.with_head(found, pooling=pooling, normalize=normalize)
    precision = precision or ("int8" if builtin else "float32")
    if precision not in PRECISIONS:
        raise unknown_name("precision", precision, PRECISIONS)
    where = runtime.check_device(device or "CPU")
    taken = identity.stamps(found)
    tokenizer = Tokenizer(found.tokenizer, lowercase=found.lowercase)
    int8 = precision == "int8"
    network = (
        _foreign(found, tokenizer, int8=int8, pooling=pooling)
        if found.kind != "safetensors"
        else _native(found, int8=int8)
    )
    _refuse_tokenizer(found, network, tokenizer)
    digests = identity.hash_files(found, cache_dir=settings.cache_dir)
    identity.refuse_changed(taken)
    space = identity.model_space(
        identity.by_role(found, digests),
        head=network.head,
        precision=precision,
        prefixes=dict(found.prefixes),
        lowercase=found.lowercase,
        device=where,
    )
    info = ModelInfo(
        name=f"local:{name if builtin else found.folder}",
        provider="local",
        space=space,
        dimensions=network.dimensions,
        max_tokens=_limit(found, network, tokenizer, max_tokens),
        normalized=network.head.normalized,
        precision=precision,
        device=where,
        pooling=network.head.describe(),
        tokenizer=f"sha256:{digests[found.name_of(found.tokenizer)][:12]}",
        revision=f"sha256:{next(iter(digests.values()))[:12]}",
        languages=found.languages,
    )
    count = settings.threads if threads is None else threads
    if streams is not None and streams < 1:
        raise InputError(f"streams {streams}: at least one batch is computed at a time")
    if streams is not None and network.alone:  # one thread per text, so fewer streams are fewer threads
        count, streams = min(streams, count) if count > 0 else streams, None
    plan = runtime.Plan(space, where, int8, count, settings.cache_dir, streams or 0)
    engine = runtime.Runtime(plan, network.build, check=lambda: identity.refuse_changed(taken))
    return LocalProvider(info, tokenizer, network, dict(found.prefixes), engine)


class LocalProvider:
    """A local model. Calls of `embed` take turns on one worker thread, so the event loop never waits."""

    def __init__(
        self,
        info: ModelInfo,
        tokenizer: Tokenizer,
        network: _Network,
        prefixes: dict[InputType, str],
        engine: runtime.Runtime,
    ) -> None:
        self._info = info
        self._tokenizer = tokenizer
        self._network = network
        self._prefixes = prefixes
        self._engine = engine
        self._closed = False
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="vecmill-local")

    @property
    def info(self) -> ModelInfo:
        """What the model says about itself."""
        return self._info

    @property
    def vocabulary(self) -> Tokenizer:
        """The model's own tokens, without the prefixes of roles."""
        return self._tokenizer

    def encode(self, texts: Sequence[str], *, input_type: InputType) -> Encoded:
        """Add the role's prefix, tokenize and measure.

        Raises:
            InputError: A text is not valid Unicode; the message gives its position.
        """
        prefix = self._prefixes[input_type]
        return self._tokenizer.encode([prefix + text for text in texts] if prefix else texts)

    def encode_beginnings(
        self, texts: Sequence[str], *, max_tokens: int, input_type: InputType
    ) -> tuple[Encoded, list[int]]:
        """Do what `encode` and `truncate` do, without reading long texts to their ends.

        Returns:
            The texts, none above `max_tokens`; and the places of those that were cut.

        Raises:
            InputError: As `encode` and `truncate`.
        """
        prefix = self._prefixes[input_type]
        return self._tokenizer.encode_beginnings([prefix + text for text in texts], max_tokens)

    def split(self, text: str, *, max_tokens: int, input_type: InputType) -> list[Span]:
        """Cut a text into consecutive pieces that each encode to at most `max_tokens` tokens. Linear."""
        return self._tokenizer.split(text, max_tokens=max_tokens, prefix=self._prefixes[input_type])

    def truncate(self, encoded: Encoded, *, max_tokens: int) -> Encoded:
        """Cut every text to its first tokens that fit, special tokens kept."""
        ids = encoded.ids if encoded.ids is not None else self._ids(encoded)
        texts = list(encoded.texts)
        kept = list(ids)
        for row in np.flatnonzero(encoded.tokens > max_tokens):
            texts[row], kept[row] = self._tokenizer.truncate(texts[row], kept[row], max_tokens)
        tokens = np.fromiter(map(len, kept), dtype=np.int64, count=len(kept))
        unknown = encoded.unknown.copy()
        for row in np.flatnonzero(tokens != encoded.tokens):
            unknown[row] = np.count_nonzero(kept[row] == self._tokenizer.unknown_id)
        return Encoded(tuple(texts), tokens, unknown, tuple(kept))

    async def embed(self, encoded: Encoded, *, advance: Advance = no_advance) -> Reply:
        """Embed texts on the worker thread; `advance` is called in the event loop's thread as batches finish.

        Same text, same bytes: alone or in any batch, with any number of threads. Cancelling stops the work
        between batches.

        Raises:
            TextTooLongError: A text has more than `info.max_tokens` tokens.
            InputError: The model is closed.
            ConfigError: The folder's files changed since they were opened, or the library cannot run them.
        """
        if self._closed:
            raise InputError(f"{self._info.name} is closed: open the model again")
        self._refuse_long(encoded)
        usage = Usage(texts=len(encoded), tokens=int(encoded.tokens.sum()), requests=1 if len(encoded) else 0)
        if not len(encoded):
            return Reply(np.zeros((0, self._info.dimensions), np.float32), usage)
        loop = asyncio.get_running_loop()
        stop = threading.Event()

        def report(texts: int, tokens: int) -> None:
            if advance is not no_advance and not stop.is_set():  # waking the loop costs a short text dearly
                loop.call_soon_threadsafe(advance, texts, tokens)

        try:
            vectors = await loop.run_in_executor(self._worker, self._run, encoded, report, stop)
        finally:
            stop.set()
        return Reply(vectors, usage)

    async def close(self) -> None:
        """Let go of the compiled models and the worker thread, after the batches under way.

        Closing again does nothing.
        """
        if self._closed:
            return
        self._closed = True
        await asyncio.get_running_loop().run_in_executor(self._worker, self._engine.close)
        self._worker.shutdown()

    def _run(self, encoded: Encoded, report: Advance, stop: threading.Event) -> Vectors:
        ids = encoded.ids if encoded.ids is not None else self._ids(encoded)
        room = 1 if self._network.alone else packing.BATCH_TOKENS
        batches = packing.pack(encoded.tokens, batch_tokens=room)
        vectors = np.empty((len(encoded), self._info.dimensions), dtype=np.float32)

        def take(batch: packing.Batch, found: Vectors) -> None:
            vectors[batch.rows] = found
            report(len(batch.rows), int(encoded.tokens[batch.rows].sum()))

        work = self._fill(ids, batches)
        # A lone row is summed in another order by several threads, so these graphs get one thread per text.
        single = len(batches) == 1 and not self._network.alone
        self._engine.run(work, take, single=single, stopped=stop.is_set)
        return vectors

    def _fill(self, ids: tuple[TokenIds, ...], batches: list[packing.Batch]) -> Iterator[runtime.Work]:
        padding = self._network.padding_id
        for batch in batches:
            matrix, mask = packing.fill(ids, batch, padding)
            inputs: runtime.Inputs = {"ids": matrix, "mask": mask}
            if self._network.counts_positions:
                inputs["positions"] = graph.positions_of(matrix, padding)
            yield batch, inputs

    def _ids(self, encoded: Encoded) -> tuple[TokenIds, ...]:
        ids = self._tokenizer.encode(encoded.texts).ids
        if ids is None:
            raise InputError("the tokenizer gave no ids")
        return ids

    def _refuse_long(self, encoded: Encoded) -> None:
        long = np.flatnonzero(encoded.tokens > self._info.max_tokens)
        if len(long):
            first = int(long[0])
            raise TextTooLongError(
                f"text {first} has {encoded.tokens[first]} tokens, {self._info.name} takes "
                f"{self._info.max_tokens} "
                f"({len(long)} of {len(encoded)} texts are too long): split or truncate them"
            )


def _native(found: files.ModelFiles, *, int8: bool) -> _Network:
    where = str(found.config_file)
    architecture = graph.read_architecture(dict(found.config), where=where)
    if found.pooled_inside:
        raise ConfigError(
            f"{found.folder / files.OWN_FILE}: pooling 'inside' is for IR and ONNX files; weights give "
            "token vectors"
        )
    if found.head is None or not found.head.pools:
        raise files.pooling_missing(found.folder)
    head = found.head
    weights = open_weights(found.weights)
    graph.check_shapes(architecture, weights, positions=found.config["max_position_embeddings"])
    return _Network(
        head=head,
        dimensions=_width(head, architecture.hidden),
        positions=architecture.positions,
        padding_id=architecture.padding_id,
        counts_positions=graph.FAMILIES[architecture.family].positions_after_padding,
        rows=graph.vocabulary_rows(architecture, weights),
        build=lambda: graph.build(architecture, weights, head, int8=int8),
    )


def _foreign(
    found: files.ModelFiles, tokenizer: Tokenizer, *, int8: bool, pooling: str | None = None
) -> _Network:
    if int8:
        raise ConfigError(
            f"{found.weights[0]}: precision int8 quantizes safetensors weights; an IR or ONNX file is run as "
            "it is "
            f"(leave the precision out, or put model.safetensors into the folder)"
        )
    path = found.weights[0]
    where = str(found.config_file)
    named = str(found.config.get("model_type", ""))
    family = graph.FAMILIES.get(named)
    padding = (
        graph.padding_of(found.config, named, where=where) if family else _padding_elsewhere(found, tokenizer)
    )
    first = padding + 1 if family is not None and family.positions_after_padding else None
    model = foreign.read(path)
    foreign.refuse_inputs(model, where=path, family=named)

    def output_of(model: Any) -> Any:
        declared = found.head is not None and bool(found.head.pools)
        return foreign.choose(model, where=path, pooled_inside=found.pooled_inside, declared=declared)

    if pooling is not None and not foreign.pools(output_of(model)):
        raise InputError(f"{path} pools by itself: pooling {pooling!r} cannot be chosen; leave it out")
    head = _foreign_head(found, output_of(model))
    positions = found.config.get("max_position_embeddings")
    rows = found.config.get("vocab_size")

    def build() -> Any:
        again = foreign.read(path)
        return foreign.adapt(again, output_of(again), head, first_position=first)

    return _Network(
        head=head,
        dimensions=_width(head, foreign.dimensions(output_of(model))),
        positions=positions - (first or 0) if isinstance(positions, int) else None,
        padding_id=padding,
        counts_positions=False,
        rows=rows if isinstance(rows, int) else None,
        build=build,
        alone=foreign.mixes_rows(model),
    )


def _padding_elsewhere(found: files.ModelFiles, tokenizer: Tokenizer) -> int:
    """Return the padding token's id in a family not built here: config.json's, else the tokenizer's."""
    padding = found.config.get("pad_token_id")
    if isinstance(padding, int):
        return padding
    named = (tokenizer.padding_id, *(tokenizer.id_of(token) for token in ("[PAD]", "<pad>")))
    return next((number for number in named if number is not None), 0)


def _foreign_head(found: files.ModelFiles, output: Any) -> Head:
    """Return what follows a graph made elsewhere: the folder's pooling, or nothing where it pools inside."""
    head = found.head
    if foreign.pools(output):
        if head is None or not head.pools or found.pooled_inside:
            raise files.pooling_missing(found.folder)
        return head
    hidden = found.config.get("hidden_size", found.config.get("dim"))
    if head is not None and head.pools and isinstance(hidden, int):
        declared, width = _width(head, hidden), foreign.dimensions(output)
        if declared != width:
            raise ConfigError(
                f"{found.weights[0]} gives vectors of {width} numbers, the folder's modules {declared}: "
                "the graph "
                "lacks some of them; export the whole model, or its last_hidden_state"
            )
    # Normalizing once more changes nothing.
    return Head((), (Normalize(),) if head is not None and head.normalized else ())


def _refuse_tokenizer(found: files.ModelFiles, network: _Network, tokenizer: Tokenizer) -> None:
    rows = network.rows
    if rows is not None and max(tokenizer.rows, network.padding_id + 1) > rows:
        raise ConfigError(
            f"{found.tokenizer} has token ids up to {tokenizer.rows - 1} (padding {network.padding_id}), "
            "the model "
            f"has rows for 0 to {rows - 1}: tokenizer and weights do not belong together; fetch the model "
            "again"
        )
    if found.config.get("model_type") in graph.FAMILIES and not sum(tokenizer.specials):
        raise ConfigError(
            f"{found.tokenizer} adds no special tokens, which {found.config['model_type']} models are made "
            "for: "
            "save the model again with a current transformers, which writes a post_processor"
        )


def _width(head: Head, hidden: int) -> int:
    width = hidden * max(len(head.pools), 1)
    for step in head.steps:
        if isinstance(step, Dense):
            if step.weights.shape[1] != width:
                raise ConfigError(
                    f"a Dense module takes {step.weights.shape[1]} numbers, what is before it gives {width}"
                )
            width = step.weights.shape[0]
    return width


def _limit(found: files.ModelFiles, network: _Network, tokenizer: Tokenizer, asked: int | None) -> int:
    most = network.positions
    limit = asked if asked is not None else found.max_tokens if found.max_tokens is not None else most
    if limit is None:
        raise ConfigError(
            f"{found.folder} does not say how many tokens a text may have: set max_tokens in vecmill.json"
        )
    if asked is None and most is not None:
        return min(limit, most)
    if most is not None and limit > most:
        raise InputError(f"max_tokens {limit} is more than the {most} positions the model has")
    if limit <= sum(tokenizer.specials):
        raise InputError(
            f"max_tokens {limit} leaves no room for text beside {sum(tokenizer.specials)} special tokens"
        )
    return limit
