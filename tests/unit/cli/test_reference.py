"""docs/reference/cli.md says what the commands say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def test_the_command_line_reference_is_current() -> None:
    script = ROOT / "scripts" / "make_cli_reference.py"
    done = subprocess.run([sys.executable, script, "--check"], check=False)
    assert done.returncode == 0, f"run `just docs`, or python {script.name}"
