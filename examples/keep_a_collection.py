"""Keep notes on disk that come and go: add, filter, search by words and meaning, change, compress, delete."""

import tempfile
from pathlib import Path

import vecmill

notes = vecmill.Collection.create(Path(tempfile.mkdtemp()) / "notes", model="minilm")
notes.add(
    ["cat", "dog", "tax", "mill"],
    [
        "A grey cat sleeps on the warm oven.",
        "The dog barks at every bicycle.",
        "Tax forms are due at the end of April.",
        "The old mill grinds wheat into flour.",
    ],
    columns={"stars": [5, 4, 1, 4], "day": ["2026-01-03", "2026-02-01", "2026-02-07", "2026-03-09"]},
)
print([hit.id for hit in notes.search("a pet", k=2).hits])
print([hit.id for hit in notes.search("a pet", k=2, where="stars >= 4 and day >= '2026-02-01'").hits])
print([hit.id for hit in notes.search("bicycle", k=1, hybrid=True).hits])

notes.update(["tax"], ["Tax forms are due in the middle of May."])
assert notes.delete(["dog", "nobody"]).missing == ("nobody",)

state = notes.build_index(precision="int8")
print(state.settings, "of", len(notes), "notes")  # so few need none: exact
assert notes.search("forms", k=1).hits[0].text == "Tax forms are due in the middle of May."
