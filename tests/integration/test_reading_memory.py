"""A million rows are read in bounded memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

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
rows = sum(part.batch.num_rows for part in batches(sources, found))
try:
    line = next(x for x in open("/proc/self/status") if x.startswith("VmHWM"))
    peak = int(line.split()[1]) / 1024
except OSError:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"rows": rows, "types": [str(t) for t in found.schema.types], "peak_mb": peak}))
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
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / name), str(tmp_path / "spool")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    told = json.loads(done.stdout)
    assert told["rows"] == rows
    assert told["types"] == (["string"] if name == "rows.txt" else ["int64", "double", "string"])
    assert told["peak_mb"] < LIMIT_MB
