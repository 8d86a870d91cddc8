"""Compile a graph for a device and run batches on it.

Two forms of one graph: for bulk work one stream per physical core with one thread each, fed by a queue of two
requests per stream; for a single batch one stream with all threads. Both give the same bits. Each form is
made when it is first needed and kept on disk with a checksum, so the next process starts without building the
graph.
"""

from __future__ import annotations

import hashlib
import logging
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from vecmill.core import durable, machine
from vecmill.core.errors import ConfigError, WriteError, unknown_name

log = logging.getLogger(__name__)

Inputs: TypeAlias = dict[str, npt.NDArray[Any]]
Work: TypeAlias = tuple[Any, Inputs]
"""A tag the caller knows a batch by, and the batch."""

GROUP_SIZE = 128
"""Activations that share a scale in int8 layers; another value gives other bits (ENGINE_FORMAT)."""

_REQUESTS_PER_STREAM = 2
_SCHEDULING = frozenset({"NUM_STREAMS", "INFERENCE_NUM_THREADS"})
_MAGIC = b"vecmill compiled model 1".ljust(47) + b"\n"  # 48 bytes: with the digest 64, so the blob is aligned


def openvino() -> Any:
    """Import OpenVINO without its telemetry, which would queue a usage event to an outside service.

    The package then falls back to a stub of its own that sends and writes nothing.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None forbids the import
    import openvino

    return openvino


def check_device(device: str) -> str:
    """Return the concrete device a name stands for, as OpenVINO writes it.

    "AUTO" becomes a GPU, else an NPU, else the CPU; "AUTO:GPU,CPU" the first of these that is there. The
    choice is made once and here: OpenVINO's own AUTO runs the first batches on another device than later
    ones, with other bits.

    Raises:
        UnknownNameError: OpenVINO does not know the name.
        ConfigError: This machine has no such device, or its driver is missing; the message lists what is
            there.
    """
    name = device.upper()
    if name == "CPU":
        return name
    kind = name.partition(".")[0].partition(":")[0]
    if kind not in {"CPU", "GPU", "NPU", "AUTO"}:
        raise unknown_name("device", device, ("CPU", "GPU", "NPU", "AUTO"))
    available = list(openvino().Core().available_devices)
    if kind == "AUTO":
        listed = [part.strip() for part in name.partition(":")[2].split(",") if part.strip()]
        for wanted in listed or ("GPU", "NPU", "CPU"):
            if any(found == wanted or found.partition(".")[0] == wanted for found in available):
                return wanted
    if not any(found == name or found.partition(".")[0] == name for found in available):
        raise ConfigError(
            f"device {device} is not on this machine, or its driver is missing; OpenVINO sees "
            f"{', '.join(available)}"
        )
    return name


@dataclass(frozen=True, slots=True)
class Plan:
    """What decides a compiled model beside its graph.

    Attributes:
        key: Hash of the graph's content: the space id.
        device: OpenVINO's name of the device.
        int8: Whether linear layers quantize their inputs as they run.
        threads: Threads at most; 0 for every core the process may use.
        cache_dir: Where compiled models are kept.
        streams: Batches computed side by side, all threads shared between them; 0: one per physical core, of
            one thread each.
    """

    key: str
    device: str
    int8: bool
    threads: int
    cache_dir: Path
    streams: int = 0


def _unchecked() -> None:
    """Check nothing."""


class Runtime:
    """A graph that runs batches. Thread-safe: calls take turns."""

    def __init__(self, plan: Plan, build: Callable[[], Any], check: Callable[[], None] = _unchecked) -> None:
        """Prepare to run a graph.

        Args:
            plan: How it runs.
            build: Makes the graph.
            check: Called once the graph is compiled, before it is kept or run; raises where the files it was
                made from are no longer those `plan.key` was made from.
        """
        self._plan = plan
        self._build = build
        self._check = check
        self._turn = threading.Lock()
        self._bulk: Any = None
        self._single: Any = None
        self._blob: npt.NDArray[np.uint8] | None = None  # an imported model goes on reading its memory

    def run(
        self,
        work: Iterable[Work],
        take: Callable[[Any, npt.NDArray[np.float32]], None],
        *,
        single: bool,
        stopped: Callable[[], bool],
    ) -> None:
        """Run batches and hand each result, with its tag, to `take` in the calling thread.

        Args:
            work: Batches; the next is made while others run.
            take: Called with the tag and (b, d) float32, in the order batches finish.
            single: Whether there is only one batch, which then gets all threads.
            stopped: Asked before every batch; once true, running batches finish and no other begins.

        Raises:
            ConfigError: OpenVINO cannot compile or run the graph.
        """
        with self._turn, _explained(self._plan.device):
            if single or (self._streams() == 1 and self._bulk_threads() == self._threads()):
                self._run_single(work, take, stopped)
            else:
                self._run_bulk(work, take, stopped)

    def close(self) -> None:
        """Let go of the compiled models."""
        with self._turn:
            self._bulk = self._single = None
            self._blob = None

    def _run_single(
        self, work: Iterable[Work], take: Callable[..., None], stopped: Callable[[], bool]
    ) -> None:
        if self._single is None:
            self._single = self._compile(streams=1, threads=self._threads()).create_infer_request()
        for tag, inputs in work:
            if stopped():
                return
            take(tag, self._single.infer(inputs, share_inputs=True)[0].copy())

    def _run_bulk(self, work: Iterable[Work], take: Callable[..., None], stopped: Callable[[], bool]) -> None:
        if self._bulk is None:
            streams = self._streams()
            compiled = self._compile(streams=streams, threads=self._bulk_threads())
            self._bulk = openvino().AsyncInferQueue(compiled, streams * _REQUESTS_PER_STREAM)
        done: deque[tuple[Any, npt.NDArray[np.float32]]] = deque()
        self._bulk.set_callback(
            lambda request, tag: done.append((tag, request.get_output_tensor(0).data.copy()))
        )
        try:
            for tag, inputs in work:
                if stopped():
                    break
                self._bulk.start_async(inputs, tag)
                while done:
                    take(*done.popleft())
        finally:
            self._bulk.wait_all()
        while done:
            take(*done.popleft())

    # Compiling

    def _threads(self) -> int:
        usable = machine.usable_cores()
        return min(self._plan.threads, usable) if self._plan.threads > 0 else usable

    def _streams(self) -> int:
        return min(self._threads(), self._plan.streams or machine.physical_cores())

    def _bulk_threads(self) -> int:
        return self._threads() if self._plan.streams else self._streams()

    def _properties(self, streams: int, threads: int) -> dict[str, Any]:
        # Never the 16-bit compute some CPUs would be given by default, never pinned to cores others may use.
        properties: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": streams}
        if self._plan.device == "CPU":
            properties["INFERENCE_NUM_THREADS"] = threads
            properties["ENABLE_CPU_PINNING"] = False
            properties["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = GROUP_SIZE if self._plan.int8 else 0
        return properties

    def _compile(self, *, streams: int, threads: int) -> Any:
        core = openvino().Core()
        properties = self._properties(streams, threads)
        if self._plan.device != "CPU":
            compiled = core.compile_model(self._build(), self._plan.device, properties)
            self._check()
            return compiled
        path = self._cached(properties)
        if self._blob is None:
            self._blob = read_blob(path)
        if self._blob is not None:
            try:
                return core.import_model(openvino().Tensor(self._blob, shared_memory=True), "CPU", properties)
            except RuntimeError as error:
                log.warning("compiled model %s is not readable and will be made again: %s", path, error)
                self._blob = None
        compiled = core.compile_model(self._build(), "CPU", properties)
        self._check()
        write_blob(path, compiled.export_model().getvalue())
        return compiled

    def _cached(self, properties: dict[str, Any]) -> Path:
        """Return where the compiled model is kept: one file for every number of streams and threads."""
        kept = {name: value for name, value in properties.items() if name not in _SCHEDULING}
        processor = machine.cpu()
        digest = hashlib.blake2b(digest_size=16)
        for part in (
            self._plan.key,
            openvino().get_version(),
            processor.name,
            sorted(processor.flags),
            sorted(kept.items()),
        ):
            digest.update(repr(part).encode() + b"\0")
        return self._plan.cache_dir / "compiled" / f"{digest.hexdigest()}.blob"


@contextmanager
def _explained(device: str) -> Iterator[None]:
    """Turn OpenVINO's errors, which are dumps of its source, into one line."""
    try:
        yield
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ConfigError(
            f"OpenVINO cannot run the model on {device} "
            f"({lines[-1][:200] if lines else 'no reason given'}): the "
            "model's files or the device's driver do not fit; see --debug for the whole error"
        ) from error


def read_blob(path: Path) -> npt.NDArray[np.uint8] | None:
    """Read a compiled model and check it; None where there is none or it is damaged."""
    try:
        raw = np.fromfile(path, dtype=np.uint8)
    except OSError:
        return None
    head = len(_MAGIC) + 16
    blob = raw[head:]
    if raw[: len(_MAGIC)].tobytes() == _MAGIC and raw[len(_MAGIC) : head].tobytes() == _digest(blob):
        return np.ascontiguousarray(blob)
    log.warning("compiled model %s is damaged and will be made again", path)
    return None


def write_blob(path: Path, blob: bytes) -> None:
    """Keep a compiled model with its checksum. Where the folder cannot be written, warn and go on."""
    try:
        durable.make_dir(path.parent)
        durable.write_bytes(path, _MAGIC + _digest(blob) + blob)
    except (WriteError, OSError) as error:
        log.warning("the compiled model is not kept, the next start will take longer: %s", error)


def _digest(blob: Any) -> bytes:
    return hashlib.blake2b(blob, digest_size=16).digest()
