"""The model in the wheel: whole, rebuilt byte for byte, near the published one."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vecmill.models.local.files import BUILTIN_FOLDER, BUILTIN_NAME

ROOT = Path(__file__).parents[4]


@pytest.fixture
def source() -> Path:
    """The folder of the published model, named by VECMILL_TEST_MODEL_SOURCE."""
    named = os.environ.get("VECMILL_TEST_MODEL_SOURCE")
    if not named:
        pytest.skip("needs the published model's folder: set VECMILL_TEST_MODEL_SOURCE")
    return Path(named)


def test_every_file_has_the_checksum_that_is_vouched_for() -> None:
    vouched = json.loads((BUILTIN_FOLDER / "vecmill.json").read_bytes())["sha256"]
    assert set(vouched) == {"model.safetensors", "tokenizer.json", "config.json"}
    for name, digest in vouched.items():
        assert hashlib.sha256((BUILTIN_FOLDER / name).read_bytes()).hexdigest() == digest


def test_licence_and_provenance_lie_beside_the_weights() -> None:
    assert "Apache License" in (BUILTIN_FOLDER / "LICENSE").read_text()
    provenance = (BUILTIN_FOLDER / "PROVENANCE.md").read_text()
    source = json.loads((BUILTIN_FOLDER / "vecmill.json").read_bytes())["source_sha256"]
    assert source in provenance


def test_folder_stays_small_enough_for_a_wheel() -> None:
    assert sum(path.stat().st_size for path in BUILTIN_FOLDER.iterdir()) < 24_500_000


def test_script_rebuilds_the_files_byte_for_byte(source: Path, tmp_path: Path) -> None:
    script = ROOT / "scripts" / "build_builtin_model.py"
    done = subprocess.run(
        [sys.executable, str(script), str(source), "--out", str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for name in ("model.safetensors", "tokenizer.json", "config.json", "vecmill.json"):
        assert (tmp_path / name).read_bytes() == (BUILTIN_FOLDER / name).read_bytes(), name


def test_int8_stays_near_the_published_weights(
    source: Path, open_local: Any, embed: Any, data_dir: Path
) -> None:
    lines = (data_dir / "sts" / "stsb-en-test.tsv").read_text("utf-8").splitlines()[1:401]
    texts = [cell for line in lines for cell in line.split("\t")[1:3]]
    published, int8 = embed(open_local(source), texts), embed(open_local(BUILTIN_NAME), texts)
    cosines = np.einsum("ij,ij->i", published, int8)
    assert cosines.mean() >= 0.998
    assert cosines.min() >= 0.985
