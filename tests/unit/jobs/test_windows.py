"""Windows depend on the input alone, keep every row once and stay within their bounds."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vecmill.data.readers import FileBatch
from vecmill.data.template import TextColumn
from vecmill.jobs import windows
from vecmill.jobs.windows import cut

TEXT = TextColumn("text")


def stream(files: list[list[str]], batch_rows: int) -> Iterator[FileBatch]:
    for number, texts in enumerate(files):
        for first in range(0, len(texts), batch_rows):
            batch = pa.record_batch({"text": pa.array(texts[first : first + batch_rows], pa.string())})
            yield FileBatch(f"f{number}", first, batch, {})


@given(
    files=st.lists(st.lists(st.text(max_size=12), max_size=30), max_size=5),
    batch_rows=st.integers(1, 40),
)
def test_windows_do_not_depend_on_how_the_input_is_batched(files: list[list[str]], batch_rows: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(windows, "WINDOW_ROWS", 7)
        patch.setattr(windows, "WINDOW_BYTES", 40)
        found = list(cut(stream(files, batch_rows), TEXT))
        again = list(cut(stream(files, 3), TEXT))
    assert [window.texts for window in found] == [window.texts for window in again]
    assert [text for window in found for text in window.texts] == [text for file in files for text in file]
    where = [(f, int(r)) for window in found for f, r in zip(window.files, window.rows, strict=True)]
    assert where == [(f"f{i}", row) for i, file in enumerate(files) for row in range(len(file))]
    for number, window in enumerate(found):
        assert window.index == number
        assert 1 <= len(window) <= 7
        assert window.batch.num_rows == len(window)
        assert window.batch.column("text").to_pylist() == window.texts
        size = sum(len(text or "") + len((text or "").encode()) for text in window.texts)
        assert len(window) == 1 or size <= 40


def test_what_is_no_text_is_found_again_in_its_window() -> None:
    one = FileBatch("f", 0, pa.record_batch({"text": ["a", None, "b"]}), {1: "a list"})
    two = FileBatch("f", 3, pa.record_batch({"text": pa.array([None, "c"], pa.string())}), {0: "a number"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(windows, "WINDOW_ROWS", 2)
        found = list(cut(iter([one, two]), TEXT))
    assert [window.not_text for window in found] == [{1: "a list"}, {1: "a number"}, {}]
