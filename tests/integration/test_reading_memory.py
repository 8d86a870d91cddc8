"""A million rows, and rows of any length, are read in bounded memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vecmill.data.tables import BATCH_BYTES

ROWS = 1_000_000
LIMIT_MB = 500

# ru_maxrss of a child begins at its parent's, so the peak is asked of the kernel where it tells it.
SCRIPT = """
import json, resource, sys
from pathlib import Path
from vecmill.data.readers import batches, scan
from vecmill.data.sources import resolve
sources = resolve([sys.argv[1]], spool_dir=Path(sys.argv[2]))
found = scan(sources)
rows = largest = 0
for part in batches(sources, found):
    rows, largest = rows + part.batch.num_rows, max(largest, part.batch.nbytes)
try:
    line = next(x for x in open("/proc/self/status") if x.startswith("VmHWM"))
    peak = int(line.split()[1]) / 1024
except OSError:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"rows": rows, "types": [str(t) for t in found.schema.types], "peak_mb": peak,
    "largest": largest}))
"""


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl", "rows.json", "rows.txt"])
def test_a_million_rows_are_read_below_500_mb(tmp_path: Path, name: str, slow: bool) -> None:
    rows = ROWS if slow or name in ("rows.csv", "rows.txt") else ROWS // 4
    text = "a short text of seven or eight words"
    with (tmp_path / name).open("w") as out:
        if name == "rows.csv":
            out.write("id,score,text\n")
            out.writelines(f'{i},{i % 7}.5,"{text} {i}"\n' for i in range(rows))
        elif name == "rows.txt":
            out.writelines(f"{text} {i}\n" for i in range(rows))
        else:
            record = '{{"id":{0},"score":{1}.5,"text":"' + text + ' {0}"}}'
            start, between, end = ("[", ",", "]") if name == "rows.json" else ("", "\n", "\n")
            out.write(start)
            out.writelines((between if i else "") + record.format(i, i % 7) for i in range(rows))
            out.write(end)
    told = read(tmp_path / name)
    assert told["rows"] == rows
    assert told["types"] == (["string"] if name == "rows.txt" else ["int64", "double", "string"])
    assert told["peak_mb"] < LIMIT_MB


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv", "columns.json"])
def test_rows_of_200_kb_are_read_a_few_at_a_time(tmp_path: Path, name: str, slow: bool) -> None:
    rows = 1500 if slow else 700
    text = "word and more " * 14_000
    with (tmp_path / name).open("w") as out:
        if name == "rows.csv":
            out.write("id,text\n")
            out.writelines(f"{i},{text}{i}\n" for i in range(rows))
        elif name == "columns.json":
            out.write(json.dumps({"id": list(range(rows)), "text": [f"{text}{i}" for i in range(rows)]}))
        else:
            records = (json.dumps({"id": i, "text": f"{text}{i}"}) for i in range(rows))
            array = name == "rows.json"
            out.write("[" if array else "")
            out.writelines(("," if array and i else "") + record + "\n" for i, record in enumerate(records))
            out.write("]" if array else "")
    told = read(tmp_path / name)
    assert told["rows"] == rows
    assert told["largest"] < 2 * BATCH_BYTES
    whole_mb = rows * len(text) >> 20 if name == "columns.json" else 0  # one object is held whole
    assert told["peak_mb"] < 300 + 4 * whole_mb


def read(path: Path) -> Any:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(path), str(path.parent / "spool")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)
