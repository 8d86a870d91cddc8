"""`vecmill simulate`: a provider of embeddings on this machine, for trying things without paying."""

from __future__ import annotations

import asyncio
import signal
from contextlib import suppress
from typing import TYPE_CHECKING

import click

from vecmill.cli.output import emit, tell

if TYPE_CHECKING:
    from vecmill.testing.simulator import Simulator


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to serve at.")
@click.option(
    "--port", default=8099, show_default=True, type=click.IntRange(0, 65535), help="0 takes a free one."
)
@click.option(
    "--scenario",
    default="plain",
    show_default=True,
    metavar="FILE|NAME",
    help="What it is like: a TOML file, or plain, rpm_bound, tpm_bound, faulty, poisoned, modest, github.",
)
def simulate(host: str, port: int, scenario: str) -> int:
    """Serve made-up vectors as OpenAI, Azure OpenAI and GitHub Models would.

    Nothing is paid and nothing leaves the machine. Limits, latency and faults are the scenario's. Ctrl-C ends
    it; then one JSON object on stdout says what was asked, and what it would have cost.
    """
    from vecmill.testing.scenarios import load
    from vecmill.testing.simulator import Simulator

    simulator = Simulator(load(scenario))
    with suppress(KeyboardInterrupt):
        asyncio.run(_serve(simulator, host, port))
    emit(simulator.summary())
    return 0


async def _serve(simulator: Simulator, host: str, port: int) -> None:
    """Serve until an interrupt."""
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    try:
        await simulator.start(host, port)
        with suppress(NotImplementedError):  # Windows: an interrupt is raised
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, ended.set)
        for line in _directions(simulator):
            tell(line)
        await ended.wait()
    finally:
        await simulator.close()


def _directions(simulator: Simulator) -> list[str]:
    """Return where it serves and what to set, to be pasted into a shell. The keys open nothing else."""
    key = simulator.key
    names = ", ".join(simulator.scenario.models)
    return [
        f"a simulated provider serves {names}; Ctrl-C ends it",
        f"  OpenAI         {simulator.url}",
        f"  Azure OpenAI   {simulator.azure_url}",
        f"  GitHub Models  {simulator.github_url}",
        "",
        f"export OPENAI_BASE_URL={simulator.url} OPENAI_API_KEY={key}",
        f"export AZURE_OPENAI_ENDPOINT={simulator.azure_url} AZURE_OPENAI_API_KEY={key}",
        f"export GITHUB_TOKEN={key}",
        f'# for github, in vecmill.toml: [profiles.github] base_url = "{simulator.github_url}"',
    ]
