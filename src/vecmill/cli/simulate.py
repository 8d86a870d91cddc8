"""`vecmill simulate`: a provider of embeddings on this machine, for trying things without paying."""

from __future__ import annotations

import asyncio
import errno
import signal
from contextlib import suppress
from typing import TYPE_CHECKING

import click

from vecmill.cli.output import emit, tell
from vecmill.core.errors import InputError

if TYPE_CHECKING:
    from vecmill.testing.scenarios import Scenario
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
        await _start(simulator, host, port)
        with suppress(NotImplementedError):  # Windows: an interrupt is raised
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, ended.set)
        for line in _directions(simulator):
            tell(line)
        await ended.wait()
    finally:
        await simulator.close()


async def _start(simulator: Simulator, host: str, port: int) -> None:
    try:
        await simulator.start(host, port)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise InputError(f"cannot serve at {host}, port {port}: {error.strerror or error}") from error
        raise InputError(
            f"port {port} of {host} is taken: choose another --port, or --port 0 for a free one"
        ) from error


def _directions(simulator: Simulator) -> list[str]:
    """Return where it serves and what to set, to be pasted into a shell. The keys open nothing else."""
    key = simulator.key
    return [
        f"a simulated provider serves {_served(simulator.scenario)}; Ctrl-C ends it",
        f"  limits         {_limits(simulator.scenario)}",
        f"  OpenAI         {simulator.url}",
        f"  Azure OpenAI   {simulator.azure_url}",
        f"  GitHub Models  {simulator.github_url}",
        "",
        f"export OPENAI_BASE_URL={simulator.url} OPENAI_API_KEY={key}",
        f"export AZURE_OPENAI_ENDPOINT={simulator.azure_url} AZURE_OPENAI_API_KEY={key}",
        f"export GITHUB_TOKEN={key}",
        "# for github, in vecmill.toml of VECMILL_HOME, or of this folder and then `vecmill config trust`:",
        "[profiles.github]",
        f'base_url = "{simulator.github_url}"',
    ]


def _served(scenario: Scenario) -> str:
    return ", ".join(f"{name} ({model.dimensions} dimensions)" for name, model in scenario.models.items())


def _limits(scenario: Scenario) -> str:
    rates = (
        (scenario.requests_per_minute, "requests a minute"),
        (scenario.tokens_per_minute, "tokens a minute"),
        (scenario.requests_per_day, "requests a day"),
    )
    said = [f"{limit:,} {what}" for limit, what in rates if limit is not None] or ["no rate limits"]
    tokens = scenario.max_request_tokens
    most = f"{scenario.max_inputs:,} texts" + ("" if tokens is None else f" and {tokens:,} tokens")
    return f"{', '.join(said)}; {most} a request"
