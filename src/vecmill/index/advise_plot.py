"""The advisor's picture: bytes per vector against recall, with intervals, the front and the choice marked."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vecmill.core import durable
from vecmill.core.errors import InputError
from vecmill.core.extras import require
from vecmill.core.types import Precision
from vecmill.index.advise import Advice, Choice
from vecmill.index.settings import IndexKind

FORMATS = ("png", "svg", "pdf")
_FLOOR = 1e-4
"""Misses are drawn on a log axis; fewer than this many stand at its end."""

_COLORS = {
    Precision.FLOAT32: "#000000",
    Precision.FLOAT16: "#7f7f7f",
    Precision.INT8: "#0072b2",
    Precision.BINARY: "#009e73",
    Precision.PQ: "#d55e00",
}
_MARKERS = {IndexKind.FLAT: "o", IndexKind.HNSW: "^", IndexKind.IVF: "s"}
_MISS_TICKS = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001, 0.0005, 0.0002)


def plot(advice: Advice, path: Path) -> None:
    """Draw the choices and write the picture, whole or not at all.

    Up is better: the axis of recall is stretched towards 1, so that 0.99 and 0.999 lie as far apart as 0.9
    and 0.99. Left is cheaper. A color is a precision, a marker a kind; hollow ones are shortened.

    Args:
        advice: What to draw.
        path: Ends in .png, .svg or .pdf.

    Raises:
        InputError: The path ends otherwise.
        MissingExtraError: matplotlib is not installed.
        WriteError: The file cannot be written.
    """
    kind = kind_of(path)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 5.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    _axes(axes, advice)
    _families(axes, advice)
    _front(axes, advice)
    _chosen(axes, advice)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9, markerscale=0.8)
    data = io.BytesIO()
    figure.savefig(data, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
    durable.write_bytes(path, data.getvalue())


def kind_of(path: Path) -> str:
    """Return the kind of picture a path asks for; call it before measuring, to refuse early.

    Raises:
        InputError: The path ends otherwise.
        MissingExtraError: matplotlib is not installed.
    """
    kind = path.suffix.lower().lstrip(".")
    if kind not in FORMATS:
        raise InputError(f"{path}: a picture's name ends in {', '.join('.' + name for name in FORMATS)}")
    require("matplotlib", extra="viz")
    return kind


def _misses(recall: float) -> float:
    return max(1.0 - recall, _FLOOR)


def _axes(axes: Any, advice: Advice) -> None:
    sizes = [choice.bytes_per_vector for choice in advice.choices]
    worst = max(_misses(choice.here.recall.low) for choice in advice.choices)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlim(min(sizes) / 1.6, max(sizes) * 1.6)
    axes.set_ylim(min(max(1.6 * worst, 0.03), 1.0), _FLOOR / 1.6)
    ticks = [miss for miss in _MISS_TICKS if miss < 1.6 * worst]
    axes.set_yticks([*ticks, _FLOOR], [f"{1 - miss:g}" for miss in ticks] + ["0.9999+"])
    powers = [2**power for power in range(20) if min(sizes) / 1.5 <= 2**power <= max(sizes) * 1.5]
    axes.set_xticks(powers, [str(power) for power in powers])
    axes.minorticks_off()
    axes.grid(visible=True, color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.set_xlabel("bytes per vector in memory (float originals stay on disk)")
    axes.set_ylabel(f"recall@{advice.k} at {advice.distinct:,} rows, 95 % interval")
    target = _misses(advice.recall_target)
    axes.axhline(
        target,
        color="#666666",
        linewidth=1.0,
        linestyle=(0, (4, 3)),
        label=f"target {advice.recall_target:g}",
    )


def _families(axes: Any, advice: Advice) -> None:
    """Draw each family of choices with its intervals; families of equal size stand beside each other."""
    placed = _placed(advice)
    for place, choices in placed:
        y = [_misses(choice.here.recall.recall) for choice in choices]
        low = [_misses(choice.here.recall.low) for choice in choices]
        high = [_misses(choice.here.recall.high) for choice in choices]
        settings = choices[0].settings
        color = _COLORS[settings.precision]
        axes.errorbar(
            [place] * len(choices),
            y,
            yerr=[
                [at - end for at, end in zip(y, high, strict=True)],
                [end - at for at, end in zip(y, low, strict=True)],
            ],
            fmt="D" if settings.is_exact else _MARKERS[settings.kind],
            color=color,
            markerfacecolor="white" if settings.shorten else color,
            markersize=5.5,
            elinewidth=0.9,
            capsize=2.5,
            label=choices[0].family,
        )
        crowded = any(1.0 < other / place < 1.5 for other, _ in placed)
        _label(axes, place, choices, color, left=crowded)


def _placed(advice: Advice) -> list[tuple[float, list[Choice]]]:
    """Return the families and where each stands: at its bytes, aside a little where another has as many."""
    families: dict[str, list[Choice]] = {}
    for choice in advice.choices:
        families.setdefault(choice.family, []).append(choice)
    placed: list[tuple[float, list[Choice]]] = []
    for choices in families.values():
        at = choices[0].bytes_per_vector
        while any(abs(at / taken - 1.0) < 0.18 for taken, _ in placed):
            at *= 1.06
        placed.append((at, choices))
    return placed


def _label(axes: Any, x: float, choices: Sequence[Choice], color: str, *, left: bool) -> None:
    """Write beside each point how hard it searches, where the one before leaves room; left of neighbours."""
    last: float | None = None
    for choice in sorted(choices, key=lambda one: _misses(one.here.recall.recall)):
        y, settings = _misses(choice.here.recall.recall), choice.settings
        if settings.is_exact or (last is not None and y / last < 1.3):
            continue
        last = y
        axes.annotate(
            choice.effort.split(",")[0],
            (x, y),
            xytext=(-6 if left else 6, 0),
            textcoords="offset points",
            ha="right" if left else "left",
            va="center",
            fontsize=7,
            color=color,
        )


def _front(axes: Any, advice: Advice) -> None:
    """Join the choices that no other beats in both memory and recall."""
    best: list[Choice] = []
    for choice in sorted(advice.choices, key=lambda one: (one.bytes_per_vector, -one.here.recall.recall)):
        if not best or choice.here.recall.recall > best[-1].here.recall.recall:
            best.append(choice)
    x = [choice.bytes_per_vector for choice in best]
    y = [_misses(choice.here.recall.recall) for choice in best]
    axes.step(x, y, where="post", color="#999999", linewidth=1.2, zorder=1, label="front")


def _chosen(axes: Any, advice: Advice) -> None:
    chosen = advice.choice
    place = next(place for place, choices in _placed(advice) if chosen in choices)
    axes.plot(
        place,
        _misses(chosen.here.recall.recall),
        "o",
        markersize=15,
        markerfacecolor="none",
        markeredgecolor="#cc0000",
        markeredgewidth=1.6,
        clip_on=False,
        label="advised",
        linestyle="none",
    )
    effort = f", {chosen.effort}" if chosen.effort else ""
    axes.set_title(
        f"advised: {chosen.family}{effort} ({chosen.bytes_per_vector:,.0f} B per vector, "
        f"{1000 * chosen.here.latency:.2g} ms a query)",
        fontsize=11,
        loc="left",
    )
