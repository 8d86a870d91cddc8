"""The systems that are measured, and the processes they live in."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Self

from vecmill.core import durable
from vecmill.core.config import environment
from vecmill.core.errors import ProviderError

_HERE = Path(__file__).parent
FIRST_TEXT = "The first text a fresh process embeds."


@dataclass(frozen=True, slots=True)
class System:
    """A system under measurement.

    Attributes:
        name: As results show it.
        kind: The worker's name for it.
        python: The interpreter that has its packages.
        options: What the worker needs: model folder, precision, threads, cores.
        script: The worker.
        environment: Variables its process has besides.
    """

    name: str
    kind: str
    python: Path
    options: dict[str, Any]
    script: Path = _HERE / "worker.py"
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of one measurement: of the clock, and of the processor in all threads."""

    wall: float
    cpu: float


class Worker:
    """A process that keeps one system loaded. Close it, or use `with`.

    Args:
        system: What to load.

    Attributes:
        ready: What it said when it was up.
        start: What that took.

    Raises:
        ProviderError: It did not come up.
    """

    def __init__(self, system: System) -> None:
        self.system = system
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        began = time.perf_counter()
        self._process = subprocess.Popen(  # noqa: S603 - our own script, no shell
            [
                str(system.python),
                "-P",
                str(system.script),
                system.kind,
                json.dumps({**system.options, "first": FIRST_TEXT}),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            encoding="utf-8",
            env=_environment(system),
        )
        try:
            self.ready = ready = self._reply()
        except BaseException:
            self.close()
            raise
        self.start = Timing(time.perf_counter() - began, ready["cpu"])
        self.versions: dict[str, str] = ready["versions"]
        self.rss_bytes: int | None = ready["rss_bytes"]
        self.tokens: int | None = None

    def embed(self, texts_file: Path) -> Timing:
        """Embed the texts of a JSON file and return what it took."""
        reply = self.ask({"do": "embed", "texts": str(texts_file)})
        self.rss_bytes, self.tokens = reply["rss_bytes"], reply["tokens"]
        return Timing(reply["wall"], reply["cpu"])

    def save(self, to: Path) -> None:
        """Write the vectors of the last `embed` as npy."""
        self.ask({"do": "save", "to": str(to)})

    def close(self) -> None:
        """End the process."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            try:
                self._process.stdin.close()
            except OSError:
                self._process.kill()  # it has died with a request unread
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._errors.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send a request, JSON values all, and return the answer.

        Raises:
            ProviderError: The process has ended.
        """
        assert self._process.stdin is not None  # noqa: S101 - opened as a pipe above
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except OSError as error:
            raise self._failure() from error
        return self._reply()

    def _reply(self) -> dict[str, Any]:
        assert self._process.stdout is not None  # noqa: S101 - opened as a pipe above
        line = self._process.stdout.readline()
        if not line:
            raise self._failure()
        reply: dict[str, Any] = json.loads(line)
        return reply

    def _failure(self) -> ProviderError:
        code = self._process.wait()
        self._errors.seek(0)
        said = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        return ProviderError(
            f"{self.system.name} ended with status {code}: {said[-1] if said else 'it said nothing'}",
            provider=self.system.name,
        )


def missing_packages(python: Path, modules: Sequence[str]) -> list[str]:
    """Return which modules an interpreter cannot find.

    Raises:
        ProviderError: The interpreter does not run.
    """
    code = "import importlib.util as u, sys; print([m for m in sys.argv[1:] if u.find_spec(m) is None])"
    try:
        done = subprocess.run(  # noqa: S603 - an interpreter the caller named, no shell
            [str(python), "-P", "-c", code, *modules],
            capture_output=True,
            text=True,
            check=True,
            env=_clean_environment(),
        )
    except (OSError, subprocess.CalledProcessError) as error:
        raise ProviderError(f"{python} does not run as a Python interpreter: {error}") from error
    found: list[str] = json.loads(done.stdout.replace("'", '"'))
    return found


def export_onnx(
    python: Path, folder: Path, hashed: Sequence[Path], cache_dir: Path, *, token_types: bool
) -> Path:
    """Return the ONNX file of a model folder, made once by the peers' interpreter and kept in the cache.

    Args:
        python: The peers' interpreter.
        folder: Holds config.json and the weights.
        hashed: The files whose bytes decide it.
        cache_dir: Where made files are kept.
        token_types: Whether the model takes token types.

    Raises:
        ProviderError: The export failed.
    """
    digest = durable.digest_bytes("".join(durable.digest_file(path) for path in hashed).encode())
    out = cache_dir / "bench" / digest[:16] / "model.onnx"
    if out.is_file():
        return out
    durable.make_dir(out.parent)
    with durable.replacing(out) as beside:
        words = ["token_types"] if token_types else []
        done = subprocess.run(  # noqa: S603 - our own script, no shell
            [str(python), "-P", str(_HERE / "export_onnx.py"), str(folder), str(beside), *words],
            capture_output=True,
            text=True,
            check=False,
            env={**_clean_environment(), "HF_HUB_OFFLINE": "1"},
        )
        if done.returncode:
            said = done.stderr.strip().splitlines()
            raise ProviderError(
                f"the ONNX export of {folder} failed: {said[-1] if said else done.returncode}"
            )
    return out


def _environment(system: System) -> dict[str, str]:
    """Return a worker's environment: no network, and as many threads as it was given."""
    threads = str(system.options["threads"])
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")
    own = {"PYTHONPATH": str(_HERE.parents[1])} if system.kind == "vecmill" else {}
    return {
        **_clean_environment(),
        **own,
        **dict.fromkeys(names, threads),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false" if threads == "1" else "true",
        **system.environment,
    }


def _clean_environment() -> dict[str, str]:
    """Return the environment without what would change the imports of another interpreter."""
    kept = dict(environment())
    for name in ("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP"):
        kept.pop(name, None)
    return kept


def this_python() -> Path:
    """Return the running interpreter."""
    return Path(sys.executable)
