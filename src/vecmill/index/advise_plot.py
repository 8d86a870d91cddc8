"""The advisor's picture: bytes per vector against recall, with intervals, the front and the choice marked."""

from __future__ import annotations

import io
from itertools import pairwise
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
_Box = tuple[float, float, float, float]

_SAME_SIZE = 0.05
"""Families whose bytes differ by less lie on each other."""

_SIDES = (
    (-6, 6, "right", "bottom"),
    (6, 6, "left", "bottom"),
    (6, -6, "left", "top"),
    (-6, -6, "right", "top"),
    (0, 11, "center", "bottom"),
    (0, -11, "center", "top"),
    (12, 0, "left", "center"),
    (-12, 0, "right", "center"),
    (0, 20, "center", "bottom"),
    (0, -20, "center", "top"),
)
"""Where a label may stand beside its marker: points to the right, points up, what of the words is there."""

_MISS_TICKS = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001, 0.0005, 0.0002)


def plot(advice: Advice, path: Path) -> None:
    """Draw the choices and write the picture, whole or not at all.

    Up is better: the axis of recall is stretched towards 1, so that 0.99 and 0.999 lie as far apart as 0.9
    and 0.99. Left is cheaper. A color is a precision, a marker a kind; hollow ones are shortened.
    Every marker stands at the bytes of its choice; only the front and the choice have words beside them.

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

    figure = Figure(figsize=(9.0, 5.6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    _axes(axes, advice)
    _families(axes, advice)
    _front(axes, advice)
    _chosen(axes, advice)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9, markerscale=0.8)
    _labels(axes, advice)
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
    """Draw each family of choices at its bytes, with its intervals.

    Of families of equal size the later ones lie below in larger markers and wider ends of intervals, so that
    all can be seen.
    """
    taken: list[float] = []
    for choices in _by_family(advice):
        place = choices[0].bytes_per_vector
        below = sum(abs(place / other - 1.0) < _SAME_SIZE for other in taken)
        taken.append(place)
        y = [_misses(choice.here.recall.recall) for choice in choices]
        low = [_misses(choice.here.recall.low) for choice in choices]
        high = [_misses(choice.here.recall.high) for choice in choices]
        settings = choices[0].settings
        color = _COLORS[settings.precision]
        axes.errorbar(
            [choice.bytes_per_vector for choice in choices],
            y,
            yerr=[
                [at - end for at, end in zip(y, high, strict=True)],
                [end - at for at, end in zip(y, low, strict=True)],
            ],
            fmt="D" if settings.is_exact else _MARKERS[settings.kind],
            color=color,
            markerfacecolor="white" if settings.shorten else color,
            markersize=5.5 + 3.0 * below,
            elinewidth=0.9 + 1.5 * below,
            ecolor=(color, 0.7 if below == 0 else 0.4),
            capsize=2.5 + 2.0 * below,
            zorder=3.0 - 0.1 * below,
            label=choices[0].family,
        )


def _by_family(advice: Advice) -> list[list[Choice]]:
    families: dict[str, list[Choice]] = {}
    for choice in advice.choices:
        families.setdefault(choice.family, []).append(choice)
    return list(families.values())


def _labels(axes: Any, advice: Advice) -> None:
    """Name the front and the choice, each where its words cover no marker and no other words."""
    figure = axes.figure
    figure.draw_without_rendering()  # places are known from here on
    covered = [box for choice in advice.choices for box in _covered(axes, choice)]
    covered += [_around(axes, advice.choice, 18.0), *_front_boxes(axes, advice)]
    named = {id(choice): choice for choice in (advice.choice, *_best(advice))}
    inside = axes.get_window_extent()
    for choice in named.values():
        words = f"{choice.family}, {choice.effort}" if choice.effort else choice.family
        text = axes.annotate(
            words,
            (choice.bytes_per_vector, _misses(choice.here.recall.recall)),
            xytext=(0, 0),
            textcoords="offset points",
            fontsize=8,
            color=_COLORS[choice.settings.precision],
        )
        tried = []
        for x, y, ha, va in _SIDES:
            text.set(position=(x, y), ha=ha, va=va)
            box = text.get_window_extent()
            bounds = (box.x0, box.y0, box.x1, box.y1)
            outside = box.x0 < inside.x0 or box.x1 > inside.x1
            tried.append((sum(_overlap(bounds, other) for other in covered) + 1e6 * outside, bounds))
        at = min(range(len(tried)), key=lambda one: tried[one][0])
        x, y, ha, va = _SIDES[at]
        text.set(position=(x, y), ha=ha, va=va)
        covered.append(tried[at][1])


def _dots(axes: Any, size_bytes: float, recall: float) -> tuple[float, float]:
    x, y = axes.transData.transform((size_bytes, _misses(recall)))
    return float(x), float(y)


def _around(axes: Any, choice: Choice, dots: float) -> _Box:
    """Return the box of a marker."""
    x, y = _dots(axes, choice.bytes_per_vector, choice.here.recall.recall)
    return x - dots, y - dots, x + dots, y + dots


def _covered(axes: Any, choice: Choice) -> list[_Box]:
    """Return what a choice covers: its marker and its interval."""
    x, low = _dots(axes, choice.bytes_per_vector, choice.here.recall.low)
    _, high = _dots(axes, choice.bytes_per_vector, choice.here.recall.high)
    return [_around(axes, choice, 8.0), (x - 3.0, low, x + 3.0, high)]


def _front_boxes(axes: Any, advice: Advice) -> list[_Box]:
    """Return what the line of the front covers."""
    at = [_dots(axes, one.bytes_per_vector, one.here.recall.recall) for one in _best(advice)]
    boxes = []
    for (x0, y0), (x1, y1) in pairwise(at):
        boxes += [(x0, y0 - 2.0, x1, y0 + 2.0), (x1 - 2.0, y0, x1 + 2.0, y1)]
    return boxes


def _overlap(one: _Box, other: _Box) -> float:
    """Return the area two boxes share."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, width) * max(0.0, height)


def _best(advice: Advice) -> list[Choice]:
    """Return the choices that no other beats in both memory and recall, by rising memory."""
    best: list[Choice] = []
    for choice in sorted(advice.choices, key=lambda one: (one.bytes_per_vector, -one.here.recall.recall)):
        if not best or choice.here.recall.recall > best[-1].here.recall.recall:
            best.append(choice)
    return best


def _front(axes: Any, advice: Advice) -> None:
    best = _best(advice)
    x = [choice.bytes_per_vector for choice in best]
    y = [_misses(choice.here.recall.recall) for choice in best]
    axes.step(x, y, where="post", color="#999999", linewidth=1.2, zorder=1, label="front")


def _chosen(axes: Any, advice: Advice) -> None:
    chosen = advice.choice
    axes.plot(
        chosen.bytes_per_vector,
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
