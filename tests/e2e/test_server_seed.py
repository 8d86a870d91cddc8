"""The commands of OpenVINO Model Server's embeddings demo, word for word, against `vecmill serve`."""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from vecmill import Embedder

harness = runpy.run_path(str(Path(__file__).parents[1] / "integration" / "server_clients" / "harness.py"))
vecmill_serve, openai_folders = harness["vecmill_serve"], harness["openai_folders"]
free_port = harness["free_port"]

MODEL = "Alibaba-NLP/gte-large-en-v1.5"
SERVED = f"{MODEL}=minilm"

_DEFAULT_SEEDS = Path(__file__).resolve().parents[3] / "shared" / "seeds"


@pytest.fixture(scope="session")
def document() -> str:
    """The demo's text. Absent: skipped. Named by VECMILL_SEEDS but absent: failed."""
    named = os.environ.get("VECMILL_SEEDS")
    folder = Path(named) if named else _DEFAULT_SEEDS
    for path in sorted(folder.glob("*.txt")):
        text = path.read_text("utf-8")
        if "{#ovms_demos_embeddings}" in text:
            return text
    if named:
        pytest.fail(f"VECMILL_SEEDS={named} has no text of the embeddings demo")
    pytest.skip("needs the demo's document: set VECMILL_SEEDS")


def block(document: str, beginning: str) -> str:
    """Return the bash block of the document that begins so."""
    blocks = re.findall(r"```bash\n(.*?)```", document, re.DOTALL)
    found = [text for text in blocks if text.strip().startswith(beginning)]
    assert len(found) == 1, f"{len(found)} blocks begin with {beginning!r}"
    return str(found[0])


@dataclass(frozen=True, slots=True)
class Shell:
    """Runs blocks of the document where a model is served under the name it uses.

    Attributes:
        port: Where it is served: 8000 as in the document where that is free.
        folder: The current directory.
    """

    port: int
    folder: Path

    def run(self, command: str, **env: str) -> str:
        tools = self.folder / "tools"
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", self.there(command)],
            cwd=self.folder,
            capture_output=True,
            text=True,
            env={**os.environ, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}", **env},
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def there(self, text: str) -> str:
        return text.replace("localhost:8000", f"localhost:{self.port}")


def tool(folder: Path, name: str, line: str) -> None:
    """Put a command onto the path that the document takes for granted."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    port = 8000
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            port = free_port()
    with vecmill_serve("--model", SERVED, port=port) as running:
        assert running.process.poll() is None
        yield port


@pytest.fixture
def shell(port: int, tmp_path: Path) -> Shell:
    if shutil.which("bash") is None or shutil.which("curl") is None:
        pytest.skip("needs bash and curl")
    tools = tmp_path / "tools"
    tools.mkdir()
    tool(tools, "python3", f'exec "{sys.executable}" "$@"')
    if shutil.which("jq") is None:  # what the document uses of it: shows JSON, and fails where it is none
        tool(tools, "jq", f'exec "{sys.executable}" -m json.tool')
    return Shell(port, tmp_path)


def test_the_status_command_shows_the_model_as_the_document_does(document: str, shell: Shell) -> None:
    lines = block(document, "curl -s http://localhost:8000/v1/config").splitlines()
    command, shown = lines[0], json.loads(lines[1])
    answered = json.loads(shell.run(command))
    assert answered == {MODEL: shown[MODEL]}


def test_the_curl_command_gives_what_the_document_shows(document: str, shell: Shell) -> None:
    answered = json.loads(shell.run(block(document, "curl http://localhost:8000/v3/embeddings")))
    shown = re.search(r"```json\n(.*?)```", document, re.DOTALL)
    assert shown is not None
    keys = set(re.findall(r'"(\w+)":', shown[1]))
    (item,) = answered["data"]
    assert keys <= {*answered, *item}
    assert (answered["object"], item["object"], item["index"]) == ("list", "embedding", 0)
    assert answered["model"] == MODEL
    with Embedder() as embedder:
        expected = embedder.embed(["hello world"]).vectors[0]
    assert np.array_equal(np.array(item["embedding"], dtype=np.float32), expected)


@pytest.mark.parametrize("major", [1, 2, 3])
def test_openai_client_py_runs_as_it_is_written(document: str, shell: Shell, major: int) -> None:
    folders = openai_folders()
    if major not in folders:
        pytest.skip(f"needs openai {major}: name a folder of it in VECMILL_TEST_OPENAI")
    packages = {} if folders[major] is None else {"PYTHONPATH": str(folders[major])}
    written = shell.run(block(document, "echo '"), **packages)
    name, value = written.strip().rsplit(" ", 1)
    assert name == "Similarity score as cos_sim"
    with Embedder() as embedder:
        one, two = embedder.embed(["That is a happy person", "That is a happy very person"]).vectors
    assert float(value) == pytest.approx(float(np.dot(one, two)), abs=1e-6)
    assert 0.9 < float(value) < 1  # the document's model says 0.9765


OUTPUT_LINES = (
    "Number of documents",
    "Tokens",
    "Success rate",
    "Throughput - Tokens per second",
    "Mean latency",
    "Median latency",
    "Average document length",
)


def test_the_benchmark_command_writes_the_lines_the_document_shows(
    document: str, shell: Shell, port: int
) -> None:
    command = next(
        line
        for line in block(document, "popd\npushd .\ncd demos/benchmark/embeddings/").splitlines()
        if line.startswith("python benchmark_embeddings.py") and "--request_rate 10" in line
    )
    ours = command.replace("python benchmark_embeddings.py", f'"{sys.executable}" -m vecmill bench serve')
    written = shell.run(f"{ours} --request_rate inf")  # the last one counts; ten a second would take long
    found = dict(re.findall(r"^([A-Z][\w ()-]+): (.*)$", written, re.MULTILINE))
    for line in OUTPUT_LINES:
        assert f"{line}: " in document
        assert line in found
    assert found["Number of documents"] == "1000"
    assert found["Success rate"] == "100.0%. (1000/1000)"
    assert re.fullmatch(r"\d+ ms", found["Mean latency"])
    assert re.fullmatch(r"\d+ ms", found["Median latency"])
    assert re.fullmatch(r"[\d.]+ tokens?", found["Average document length"])
