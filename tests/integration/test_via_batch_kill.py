"""SIGKILL at durable operations of a Batch API job: nothing is paid twice, every vector arrives.

Run as a script it is the job that dies. Arguments: base URL, key, state folder, cache file, number of the
operation to die before (-1: live).
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from vecmill.core import durable
from vecmill.core.http import Session
from vecmill.core.types import InputType
from vecmill.embedder.cache.base import cache_keys
from vecmill.embedder.cache.sqlite import SqliteCache
from vecmill.jobs.batch_parts import PartLimits
from vecmill.jobs.via_batch import prefetch
from vecmill.models.base import Encoded
from vecmill.models.hosted.connection import Connection, Facts
from vecmill.models.hosted.provider import HostedProvider
from vecmill.testing.scenarios import TINY_MODELS, Scenario
from vecmill.testing.simulator import Simulator, simulator_thread
from vecmill.testing.simulator_batches import BatchFault, BatchRules

MODEL = "text-embedding-3-small"
TEXTS = [f"text {number}" for number in range(24)]
RULES = BatchRules(
    validating_seconds=0.02,
    seconds_per_line=0.01,
    finalizing_seconds=0.01,
    faults=(BatchFault("line", at=0, every=3, status=500),),
)
SEED = 11


def run_job(simulator: Simulator, folder: Path, die_at: int) -> subprocess.CompletedProcess[str]:
    arguments = [
        simulator.url,
        simulator.key,
        str(folder / "batch"),
        str(folder / "cache.sqlite"),
        str(die_at),
    ]
    command = [sys.executable, __file__, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_a_job_killed_at_any_operation_pays_for_no_text_twice(tmp_path: Path, slow: bool) -> None:
    (tmp_path / "calm").mkdir()
    with simulator_thread(Scenario(models=TINY_MODELS), batch_rules=RULES) as simulator:
        calm = run_job(simulator, tmp_path / "calm", -1)
    assert calm.returncode == 0, calm.stderr
    told = json.loads(calm.stdout)
    moments = list(range(told.pop("operations") - 3))  # two parts at once: not always exactly so many
    if not slow:
        moments = sorted(random.Random(SEED).sample(moments, 10))
    for moment in moments:
        folder = tmp_path / f"killed{moment}"
        folder.mkdir()
        with simulator_thread(Scenario(models=TINY_MODELS), batch_rules=RULES) as simulator:
            killed = run_job(simulator, folder, moment)
            assert killed.returncode == -signal.SIGKILL, f"operation {moment}: {killed.stderr}"
            resumed = run_job(simulator, folder, -1)
            assert resumed.returncode == 0, f"after operation {moment}: {resumed.stderr}"
            receipt = json.loads(resumed.stdout)
            del receipt["operations"]
            assert receipt == told, f"operation {moment}"
            assert [simulator.times_billed(text) for text in TEXTS] == [1] * len(TEXTS), f"operation {moment}"
            assert simulator.batches is not None
            assert not simulator.batches.files, f"operation {moment}"
            assert have(simulator, folder) == len(TEXTS), f"operation {moment}"
            left = [path for path in (folder / "batch").iterdir() if path.suffix not in (".json", ".keys")]
            assert not left, f"operation {moment}"


def have(simulator: Simulator, folder: Path) -> int:
    """Return how many texts have the right vector in the cache."""
    space = provider_of(simulator.url, simulator.key).info.space
    cache = SqliteCache(folder / "cache.sqlite")
    found, vectors = cache.get(space, cache_keys(space, TEXTS), dimensions=8)
    cache.close()
    right = simulator.vectors([TEXTS[at] for at in found], MODEL)
    assert (vectors == right).all()
    return len(found)


def provider_of(url: str, key: str) -> HostedProvider:
    async def login() -> dict[str, str]:
        return {"Authorization": f"Bearer {key}"}

    connection = Connection(
        provider="openai",
        name=f"openai:{MODEL}",
        model=MODEL,
        embeddings_url=f"{url}/embeddings",
        login=login,
        facts=Facts(catalogue_name=MODEL, dimensions=8, mrl=True, batch_usd_per_million_tokens=0.01),
        files_url=f"{url}/files",
        batches_url=f"{url}/batches",
        vouched=True,
    )
    return HostedProvider(connection, session=Session())


class Killer:
    """Counts operations and kills the process before one of them."""

    def __init__(self, at: int) -> None:
        self.at, self.seen = at, 0

    def before(self, operation: str, path: Path) -> None:
        """Die when it is time."""
        if self.seen == self.at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.seen += 1

    def after(self, operation: str, path: Path) -> None:
        """See that it has happened."""


async def job(url: str, key: str, state: str, cache_path: str, die_at: str) -> None:
    """Send the texts through batches, and die on the way."""
    provider, cache = provider_of(url, key), SqliteCache(Path(cache_path))
    cache.contains(provider.info.space, [bytes(16)], dimensions=8)

    async def work() -> AsyncIterator[Encoded]:
        for at in range(0, len(TEXTS), 8):
            yield provider.encode(TEXTS[at : at + 8], input_type=InputType.DOCUMENT)

    killer = Killer(int(die_at))
    with durable.watching(killer):
        receipt = await prefetch(
            work(),
            provider,
            cache,
            Path(state),
            job="killed",
            poll=(0.02, 0.02),
            limits=PartLimits(line_texts=3, texts=12),
        )
    cache.close()
    await provider._session.close()
    told = {"texts": receipt.texts, "tokens": receipt.tokens, "failed": receipt.failed_lines}
    print(
        json.dumps(
            {**told, "bought": int(receipt.bought(keys_of(provider)).sum()), "operations": killer.seen}
        )
    )


def keys_of(provider: HostedProvider) -> list[bytes]:
    return cache_keys(provider.info.space, TEXTS)


if __name__ == "__main__":
    asyncio.run(job(*sys.argv[1:]))
