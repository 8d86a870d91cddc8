"""A collection several processes read and write at once, one may not write to, one that is moved away."""

from __future__ import annotations

import runpy
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from vecmill import Collection
from vecmill.collection.collection_items import CollectionItems
from vecmill.core.errors import InputError, WriteError
from vecmill.core.types import Metric
from vecmill.index.settings import IndexSettings
from vecmill.index.storage import Store
from vecmill.index.store_index import build_index

HERE = Path(__file__).parent
writer = SimpleNamespace(**runpy.run_path(str(HERE / "collection_writer.py")))


def started(name: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(HERE / name), *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_readers_in_other_processes_see_whole_states_while_two_processes_write(
    tmp_path: Path, slow: bool
) -> None:
    folder = tmp_path / "un año" / "films collection"
    store = Store.create(folder, dimensions=8, metric="euclidean", text_column="text")
    writer.put_round(store, 0)
    steps = 200 if slow else 25
    readers = [started("collection_reader.py", folder) for _ in range(4 if slow else 2)]
    for reader in readers:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "ready\n", reader.communicate()[1]
    writers = [started("collection_writer.py", folder, what, steps) for what in ("rounds", "others")]
    while any(process.poll() is None for process in writers):
        for reader in readers:
            assert reader.stdin is not None
            assert reader.stdout is not None
            try:
                reader.stdin.write("look\n")
                reader.stdin.flush()
            except BrokenPipeError:
                break
            assert reader.stdout.readline(), reader.communicate()[1]
    for process in writers:
        said, wrong = process.communicate()
        assert process.returncode == 0, wrong
        assert said.strip().isdigit()
    for reader in readers:
        said, wrong = reader.communicate("look\nstop\n")
        assert reader.returncode == 0, wrong
        assert said.splitlines()[0].split()[1] == str(steps), "the last round is seen in the end"
    now = Store.open(folder).snapshot()
    assert now.catalogue.live == 20 + 5 * steps, "nothing two writers acknowledged is lost"


def test_two_stores_and_many_threads_of_one_process_lose_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    stores = [Store.create(folder, dimensions=4), Store.open(folder)]
    wrong: list[BaseException] = []

    def write(number: int) -> None:
        try:
            for step in range(12):
                stores[number % 2].add([f"{number} {step}"], np.full((1, 4), number + 1.0))
                stores[number % 2].snapshot()
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    for store in (*stores, Store.open(folder)):
        now = store.snapshot()
        assert sorted(now.ids(np.flatnonzero(now.live)), key=str) == sorted(
            f"{number} {step}" for number in range(6) for step in range(12)
        )


def filled(folder: Path) -> Any:
    vectors = np.random.default_rng(0).normal(size=(2000, 8)).astype(np.float32)
    store = Store.create(folder, dimensions=8, text_column="text")
    store.add(range(2000), vectors, pa.table({"text": [f"words {at}" for at in range(2000)]}))
    build_index(store, IndexSettings(precision="int8", recall_target=0.9), k=3)  # type: ignore[arg-type]
    store.delete([5])
    return vectors


READ_ONLY = """
import os, sys
import numpy as np
from vecmill.collection.collection_items import CollectionItems
from vecmill.collection.filters import parse
from vecmill.core.errors import Error
from vecmill.core.types import Metric
from vecmill.index.storage import Store

query = np.array([[float(x) for x in sys.argv[2].split()]], np.float32)

def look(folder):
    store = Store.open(folder)
    items = CollectionItems(store.snapshot())
    assert items.ids(items.nearest(query, 1, metric=Metric.COSINE)[0].rows) == [77]
    assert items.ids(items.nearest(query, 1, metric=Metric.COSINE, where=parse("id = 8"))[0].rows) == [8]
    assert items.ids(items.ranked("1234", 1)) == [1234]
    store.verify()
    try:
        store.add([1], query, replace=True)
    except Error as error:
        print(type(error).__name__, error)

look(sys.argv[1] + "/mine")  # imports what is imported late, while this user may read it
if os.getuid() == 0:
    os.setgid(65534), os.setuid(65534)
look(sys.argv[1] + "/c")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="folders there have no modes")
def test_a_collection_one_may_not_write_to_is_searched_by_all_means() -> None:
    with tempfile.TemporaryDirectory() as made:
        root = Path(made)
        root.chmod(0o755)  # a test's own folder is closed to other users
        vectors = filled(root / "c")
        shutil.copytree(root / "c", root / "mine")
        before = sorted((root / "c").rglob("*"))
        closed = [root / "c", *before]
        for path in closed:
            path.chmod(0o555 if path.is_dir() else 0o444)
        try:
            done = subprocess.run(
                [sys.executable, "-c", READ_ONLY, str(root), " ".join(map(str, vectors[77].tolist()))],
                capture_output=True,
                text=True,
                check=False,
            )
        finally:
            for path in closed:
                path.chmod(0o755 if path.is_dir() else 0o644)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("WriteError")
        assert "may not write" in done.stdout
        assert sorted((root / "c").rglob("*")) == before


def test_a_relative_path_means_the_folder_it_meant_when_it_was_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    vectors = filled(Path("c"))
    collection = Collection("c")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    collection.add(["new"], vectors=vectors[:1])
    assert len(Collection(tmp_path / "c")) == 2000
    (tmp_path / "link").symlink_to(tmp_path / "c")
    assert len(Collection(tmp_path / "link")) == 2000
    Collection(tmp_path / "link").delete(["new"])
    assert len(collection) == 1999


def test_a_collection_that_is_moved_away_says_so_and_what_was_taken_stays_readable(tmp_path: Path) -> None:
    vectors = filled(tmp_path / "c")
    store = Store.open(tmp_path / "c")
    items = CollectionItems(store.snapshot())
    (tmp_path / "c").rename(tmp_path / "moved")
    with pytest.raises(InputError, match="there is no such folder"):
        store.snapshot()
    with pytest.raises((InputError, WriteError), match="there is no such folder"):
        store.add(["x"], vectors[:1])
    assert not (tmp_path / "c").exists()
    assert items.ids(items.nearest(vectors[77:78], 1, metric=Metric.COSINE)[0].rows) == [77]
    shutil.rmtree(tmp_path / "moved")
    assert items.ids(items.nearest(vectors[78:79], 1, metric=Metric.COSINE, exact=True)[0].rows) == [78]
