"""Jobs with a simulated provider, on virtual time."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from vecmill.core.config import Settings, load_settings
from vecmill.core.errors import Error
from vecmill.data.vector_set import VectorSet, read_vectors
from vecmill.jobs.estimate import Estimate, estimate
from vecmill.jobs.plan import JobOptions, make_plan
from vecmill.jobs.run import run
from vecmill.jobs.verify import Report, verify_async
from vecmill.testing.clock import run_virtual
from vecmill.testing.scenarios import Scenario
from vecmill.testing.simulator import Simulator


@dataclass(slots=True)
class Hosted:
    """Runs jobs against one simulated provider after another; home and cache stay.

    Attributes:
        folder: Where inputs and outputs lie.
        settings: The home and cache of these jobs.
        port: Where every simulator listens: another address would be another space.
        model: Which model jobs name.
    """

    folder: Path
    settings: Settings
    port: int
    model: str = "openai:text-embedding-3-small"

    def texts(self, texts: Iterable[str], name: str = "in.txt") -> Path:
        """Write one text a line."""
        path = self.folder / name
        path.write_text("".join(f"{text}\n" for text in texts), "utf-8")
        return path

    def job(
        self,
        scenario: Scenario,
        source: Path,
        output: str = "out.parquet",
        **options: Any,
    ) -> Ran:
        """Run a job to its end or its error, on virtual time."""

        async def go() -> Ran:
            async with self._simulator(scenario) as simulator:
                asked = JobOptions(model=self.model, base_url=simulator.url, **options)
                seconds = asyncio.get_running_loop().time()
                plan = await make_plan([source], self.folder / output, asked, settings=self.settings)
                try:
                    outcome = await run(plan)
                    receipt, error = outcome.receipt, None
                except Error as failure:
                    receipt, error = {}, failure
                finally:
                    await plan.provider.close()
                seconds = asyncio.get_running_loop().time() - seconds
                return Ran(simulator, receipt, error, self.folder / output, seconds)

        return run_virtual(go())

    def estimate(self, scenario: Scenario, source: Path, **options: Any) -> Estimate:
        """Count a job without running it."""

        async def go() -> Estimate:
            async with self._simulator(scenario) as simulator:
                asked = JobOptions(model=self.model, base_url=simulator.url, **options)
                plan = await make_plan(
                    [source], self.folder / "o.parquet", asked, settings=self.settings, ask=False
                )
                try:
                    found = await estimate(plan)
                    assert simulator.requests == 0
                    return found
                finally:
                    plan.discard()
                    await plan.provider.close()

        return run_virtual(go())

    def verify(self, scenario: Scenario, path: Path) -> Report:
        """Verify a set against the model that answers now."""

        async def go() -> Report:
            async with self._simulator(scenario):
                return await verify_async(path, sample=5, settings=self.settings)

        return run_virtual(go())

    @asynccontextmanager
    async def _simulator(self, scenario: Scenario) -> AsyncIterator[Simulator]:
        simulator = Simulator(scenario)
        await simulator.start(port=self.port)
        try:
            yield simulator
        finally:
            await simulator.close()


@dataclass(slots=True)
class Ran:
    """What became of a job: the provider's book, the receipt, the error it ended with."""

    simulator: Simulator
    receipt: dict[str, Any]
    error: Error | None
    output: Path
    seconds: float

    def vectors(self) -> VectorSet:
        """Read the output."""
        return read_vectors(self.output)

    def rows(self) -> list[dict[str, Any]]:
        """Read the output's rows."""
        import pyarrow.parquet as pq

        found: list[dict[str, Any]] = pq.read_table(self.output).to_pylist()
        return found


@pytest.fixture
def hosted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hosted:
    monkeypatch.setenv("OPENAI_API_KEY", Scenario().keys[0])
    folder = tmp_path / "work"
    folder.mkdir()
    settings = load_settings(home=str(tmp_path / "home"), cache_dir=str(tmp_path / "cache"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{port}/v1")
    return Hosted(folder, settings, port)
