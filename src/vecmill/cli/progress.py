"""A job's progress on stderr: one live line at a terminal, one plain line every few seconds without."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from vecmill.cli.output import count, duration, plain, tell
from vecmill.core.events import Event, Notice, Progress, Rates

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

EVERY_SECONDS = 5.0
"""Between two plain lines."""


class ProgressLine:
    """Shows the events of a job while it runs; use it as a context manager and as the job's listener.

    Args:
        quiet: Show notices only.
        terminal: Whether stderr is a terminal; found out when None.
        clock: Seconds that only grow.
    """

    def __init__(
        self,
        *,
        quiet: bool = False,
        terminal: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._quiet = quiet
        self._terminal = sys.stderr.isatty() if terminal is None else terminal
        self._clock = clock
        self._rates = Rates(clock=clock)
        self._told = clock()
        self._live: RichProgress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def __call__(self, event: Event) -> None:
        """Take one event."""
        if isinstance(event, Notice):
            self._notice(event)
            return
        self._rates.add(event)
        if self._quiet:
            return
        if self._terminal:
            self._draw(event)
        elif self._clock() - self._told >= EVERY_SECONDS:
            self._told = self._clock()
            tell(describe(event, self._rates))

    def _notice(self, notice: Notice) -> None:
        if self._live is not None:
            self._live.console.print(plain(f"note: {notice.message}"), markup=False, highlight=False)
        else:
            tell(f"note: {notice.message}")

    def _draw(self, event: Progress) -> None:
        if self._live is None:
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn
            from rich.progress import Progress as RichProgress

            self._live = RichProgress(
                BarColumn(bar_width=24),
                TextColumn("{task.description}", markup=False),
                console=Console(stderr=True),
                transient=True,
            )
            self._live.start()
            self._task = self._live.add_task("", total=event.total_rows)
        if self._task is not None:
            self._live.update(
                self._task,
                completed=event.rows,
                total=event.total_rows,
                description=describe(event, self._rates),
            )


def describe(event: Progress, rates: Rates) -> str:
    """Say how far a job is, how fast, and when it may be done."""
    rows, tokens = rates.per_second()
    done = (
        f"{event.rows:,} of {count(event.total_rows, 'row')}"
        if event.total_rows
        else count(event.rows, "row")
    )
    parts = [done]
    if rows > 0:
        parts += [f"{_rate(rows)} rows/s", f"{_rate(tokens)} tokens/s"]
    left = rates.remaining_seconds()
    if left is not None and event.total_rows and event.rows < event.total_rows:
        least, most = (duration(seconds) for seconds in left)
        parts.append(f"{least} left" if least == most else f"{least} to {most} left")
    return " · ".join(parts)


def _rate(value: float) -> str:
    return f"{value:,.1f}" if value < 10 else f"{value:,.0f}"
