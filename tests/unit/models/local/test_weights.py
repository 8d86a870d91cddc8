"""Reading safetensors: types, shards, and files that are not what they claim."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vecmill.core.errors import CorruptFileError
from vecmill.models.local.weights import open_weights, read_header

ROW = np.array([[1.0, -2.5, 0.15625], [3.0, 0.0, -7.0]], dtype=np.float32)


def file_with(path: Path, header: Any, body: bytes = b"") -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + body)
    return path


def test_float_types_read_as_the_same_float32(tmp_path: Path, save_tensors: Any) -> None:
    bfloat16 = (ROW.view(np.uint32) >> 16).astype(np.uint16)
    path = tmp_path / "w.safetensors"
    save_tensors(
        path,
        {
            "f32": ("F32", ROW),
            "f16": ("F16", ROW.astype(np.float16)),
            "bf16": ("BF16", bfloat16),
            "f64": ("F64", ROW.astype(np.float64)),
        },
    )
    weights = open_weights((path,))
    for name in ("f32", "f16", "bf16", "f64"):
        np.testing.assert_array_equal(weights.float32(name), ROW)


def test_int8_with_scales_is_multiplied_out(tmp_path: Path, save_tensors: Any) -> None:
    path = tmp_path / "w.safetensors"
    levels = np.array([[1, -2], [127, 0]], dtype=np.int8)
    save_tensors(path, {"w": ("I8", levels), "w.scale": ("F32", np.array([0.5, 2.0], dtype=np.float32))})
    np.testing.assert_array_equal(open_weights((path,)).float32("w"), [[0.5, -1.0], [254.0, 0.0]])


def test_shards_read_as_one(tmp_path: Path, save_tensors: Any) -> None:
    save_tensors(tmp_path / "a", {"x": ("F32", ROW)})
    save_tensors(tmp_path / "b", {"y": ("F32", ROW * 2)})
    weights = open_weights((tmp_path / "a", tmp_path / "b"))
    assert set(weights) == {"x", "y"}
    np.testing.assert_array_equal(weights["y"], ROW * 2)


def test_a_tensor_in_two_shards_raises(tmp_path: Path, save_tensors: Any) -> None:
    for name in "ab":
        save_tensors(tmp_path / name, {"x": ("F32", ROW)})
    with pytest.raises(CorruptFileError, match="'x'"):
        open_weights((tmp_path / "a", tmp_path / "b"))


@pytest.mark.parametrize("keep", [0, 4, 8, 40, -1])
def test_truncated_file_raises_and_names_itself(tmp_path: Path, save_tensors: Any, keep: int) -> None:
    path = tmp_path / "w.safetensors"
    save_tensors(path, {"x": ("F32", ROW)})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CorruptFileError, match=r"w\.safetensors.*again"):
        read_header(path)


def test_appended_bytes_raise(tmp_path: Path, save_tensors: Any) -> None:
    path = tmp_path / "w.safetensors"
    save_tensors(path, {"x": ("F32", ROW)})
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(CorruptFileError, match="describes"):
        read_header(path)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [-1], "data_offsets": [0, -4]},
        {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]},
        {"dtype": "F32", "shape": [1]},
        {"dtype": "F32", "shape": "1", "data_offsets": "04"},
        [],
    ],
)
def test_header_that_contradicts_itself_raises(tmp_path: Path, entry: Any) -> None:
    with pytest.raises(CorruptFileError):
        read_header(file_with(tmp_path / "w", {"x": entry}, b"\0" * 8))


@pytest.mark.parametrize("header", [b"[]", b"nonsense", b"\xff\xfe", b"5"])
def test_header_that_is_no_object_raises(tmp_path: Path, header: bytes) -> None:
    with pytest.raises(CorruptFileError):
        read_header(file_with(tmp_path / "w", header))


def test_header_length_beyond_the_file_raises_without_reading_it(tmp_path: Path) -> None:
    path = tmp_path / "w"
    path.write_bytes((1 << 62).to_bytes(8, "little") + b"{}")
    with pytest.raises(CorruptFileError, match="header"):
        read_header(path)
