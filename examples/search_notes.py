"""Embed a table, search it, find neighbours of a row, check the result. Writes to a temporary folder."""

import tempfile
from importlib.resources import files
from pathlib import Path

import vecmill

notes = Path(str(files("vecmill.cli") / "sample" / "notes.csv"))
target = Path(tempfile.mkdtemp()) / "notes.parquet"

outcome = vecmill.embed_files(notes, target, text="text", id_column="id")
print(f"{outcome.receipt['vectors']} vectors in {target}")

for hit in vecmill.search(target, "a toy to keep the cat busy", k=3).hits:
    print(f"{hit.similarity:.3f}  {hit.id:12}  {hit.columns['title']}")

nearest = vecmill.similar(target, "recipe-06", k=1).hits[0]
print(f"most like a plum cake: {nearest.columns['title']}")

report = vecmill.verify(target, sample=10)
assert report.ok, report.describe()
