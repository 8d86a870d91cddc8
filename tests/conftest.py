"""Fixtures every suite uses: where real data lies, and a home of its own for every test."""

from __future__ import annotations

import os
import runpy
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest

Float32Array = npt.NDArray[np.float32]

_DEFAULT_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


_SETTINGS = ("VECMILL_", "OPENAI_", "AZURE_", "GITHUB_")
"""Variables of the person who runs the tests that no test may see."""


_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
"""With them even requests to this machine may go elsewhere."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the full counts of suites shortened by default")


@pytest.fixture(scope="session")
def slow(request: pytest.FixtureRequest) -> bool:
    """Whether the full counts were asked for."""
    return bool(request.config.getoption("--slow"))


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data. Absent: skipped. Named by VECMILL_TEST_DATA but absent: failed."""
    named = os.environ.get("VECMILL_TEST_DATA")
    folder = Path(named) if named else _DEFAULT_DATA
    if folder.is_dir():
        return folder
    if named:
        pytest.fail(f"VECMILL_TEST_DATA={named} is not a folder")
    pytest.skip("needs the real data: set VECMILL_TEST_DATA")


@pytest.fixture(scope="session")
def real_vectors(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Float32Array:
    """The built-in model's vectors of 22,000 distinct captions, (22000, 384) unit length. Made once a run.

    The captions of one image lie next to each other, so the last 1,000 rows are fit as held-back queries.
    """
    from vecmill import Embedder

    texts = pq.read_table(data_dir / "scale" / "multi30k_captions_en.parquet").column("text").to_pylist()
    distinct = list(dict.fromkeys(text.strip() for text in texts))[:22_000]
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("real-vectors-home")
        patch.setenv("VECMILL_HOME", str(home))
        patch.setenv("VECMILL_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "vecmill-cache"))
        with Embedder() as embedder:
            vectors: Float32Array = embedder.embed(distinct).vectors
    vectors.setflags(write=False)
    return vectors


postgres = runpy.run_path(str(Path(__file__).parent / "integration" / "postgres_server.py"))["postgres"]


@pytest.fixture(autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give every test a home of its own; the cache of compiled models is shared by the session."""
    home = tmp_path_factory.mktemp("home")
    for name in [name for name in os.environ if name.startswith(_SETTINGS) and "VECMILL_TEST" not in name]:
        monkeypatch.delenv(name)
    for name in _PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("VECMILL_HOME", str(home))
    monkeypatch.setenv("VECMILL_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "vecmill-cache"))
    return home


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = [r for r in terminalreporter.stats.get("skipped", []) if "VECMILL_TEST_DATA" in str(r.longrepr)]
    if skipped:
        terminalreporter.write_line(f"{len(skipped)} tests skipped: no real data (set VECMILL_TEST_DATA)")
