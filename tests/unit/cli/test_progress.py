"""Without a terminal a plain line every few seconds; at one a live line; notices at once."""

from __future__ import annotations

import pytest

from vecmill.cli.progress import EVERY_SECONDS, ProgressLine, describe
from vecmill.core.events import Notice, Progress, Rates


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_without_a_terminal_a_line_appears_every_few_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with ProgressLine(terminal=False, clock=clock) as line:
        for second in range(21):
            clock.now = 100.0 + second
            line(Progress(second * 10, 1000, second * 200))
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 20 // EVERY_SECONDS
    assert said[0] == "50 of 1,000 rows · 10 rows/s · 200 tokens/s · 95 s left"


def test_a_notice_appears_at_once_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressLine(terminal=False) as line:
        line(Notice("x", "mind\nthe \x1b[1mgap"))
    assert capsys.readouterr().err == "note: mind the gap\n"


def test_quiet_shows_notices_only(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with ProgressLine(quiet=True, terminal=False, clock=clock) as line:
        clock.now += 60
        line(Progress(1, 2, 3))
        line(Notice("x", "hear"))
    assert capsys.readouterr().err == "note: hear\n"


def test_a_terminal_shows_a_live_line_and_leaves_nothing_but_notices(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with ProgressLine(terminal=True) as line:
        line(Progress(1, 10, 20))
        line(Notice("x", "hear [bold]me[/bold]"))
        line(Progress(10, 10, 200))
    said = capsys.readouterr()
    assert "note: hear [bold]me[/bold]" in said.err
    assert said.out == ""


def test_the_remaining_time_is_a_range() -> None:
    clock = Clock()
    rates = Rates(clock=clock)
    assert rates.remaining_seconds() is None
    for second, rows in ((0, 0), (2, 100), (4, 150)):
        clock.now = second
        rates.add(Progress(rows, 1150, rows * 3))
    text = describe(Progress(150, 1150, 450), rates)
    assert text == "150 of 1,150 rows · 38 rows/s · 112 tokens/s · 20 s to 40 s left"


def test_an_unknown_total_promises_no_end() -> None:
    assert describe(Progress(7, None, 9), Rates()) == "7 rows"
