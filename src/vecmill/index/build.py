"""Build an index, or build and calibrate it: the two doors to codes, graphs and lists."""

from __future__ import annotations

from vecmill.index.calibrate import Calibration, calibrate
from vecmill.index.construct import build

__all__ = ["Calibration", "build", "calibrate"]
