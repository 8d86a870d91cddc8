"""Keys: what is kept of them, how they are compared, and what happens to their file."""

from __future__ import annotations

import errno
import hmac
import logging
import os
import re
import stat
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import orjson
import pytest

from vecmill.core import durable
from vecmill.core.errors import (
    CorruptFileError,
    FormatVersionError,
    InputError,
    StorageError,
    UnknownNameError,
    WriteError,
)
from vecmill.server import keys as keys_module
from vecmill.server.keys import (
    Key,
    KeyFile,
    KeyStore,
    Right,
    digest,
    given_keys,
    masked,
    plain_key,
    read_keys,
)
from vecmill.testing.crash import recording, replay


@pytest.fixture
def file(tmp_path: Path) -> KeyFile:
    return KeyFile(tmp_path / "home" / "keys.json")


def test_a_key_has_256_random_bits_and_is_nowhere_in_its_file(file: KeyFile) -> None:
    secret, key = file.add("team")
    assert re.fullmatch(r"vm-[A-Za-z0-9_-]{43}", secret)
    raw = file.path.read_bytes()
    assert secret.encode() not in raw
    assert secret[8:].encode() not in raw
    entry = orjson.loads(raw)["keys"][0]
    assert entry == {
        "id": key.id,
        "name": "team",
        "sha256": digest(secret).hex(),
        "prefix": secret[:7],
        "rights": ["embed", "read"],
        "created": entry["created"],
        "expires": None,
        "disabled": False,
    }
    assert secret not in repr(key)
    assert len({file.add(f"k{i}")[0] for i in range(20)}) == 20


@pytest.mark.skipif(sys.platform == "win32", reason="modes are POSIX's")
def test_only_the_owner_may_read_the_file(file: KeyFile) -> None:
    before = os.umask(0)
    try:
        file.add("one")
        assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
        file.path.chmod(0o644)
        file.add("two")
        assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    finally:
        os.umask(before)


def test_what_was_added_is_read_again(file: KeyFile) -> None:
    _, one = file.add("one", rights=[Right.METRICS], expires=4_000_000_000)
    _, two = file.add("two")
    assert file.read() == (one, two)
    assert file.disable("one") == replace(one, disabled=True)
    assert file.disable(one.id, disabled=False) == one
    assert file.remove("one") == one
    assert file.read() == (two,)
    with pytest.raises(UnknownNameError, match="unknown key 'tow'; did you mean 'two'"):
        file.remove("tow")


@pytest.mark.parametrize(
    ("name", "rights", "expires", "match"),
    [
        ("", [Right.EMBED], None, "1 to 100 characters"),
        ("a\nb", [Right.EMBED], None, "control"),
        ("a" * 101, [Right.EMBED], None, "1 to 100"),
        ("x", [], None, "at least one of the rights embed, read, metrics, admin"),
        ("x", [Right.OPEN], None, "at least one"),
        ("x", [Right.EMBED], 1.0, "1970-01-01T00:00:01Z is past"),
        ("taken", [Right.EMBED], None, "already"),
    ],
)
def test_a_key_that_makes_no_sense_is_refused(
    file: KeyFile, name: str, rights: list[Right], expires: float | None, match: str
) -> None:
    file.add("taken")
    before = file.path.read_bytes()
    with pytest.raises(InputError, match=match):
        file.add(name, rights=rights, expires=expires)
    assert file.path.read_bytes() == before


def entry(**changes: object) -> dict[str, object]:
    made: dict[str, object] = {
        "id": "a1",
        "name": "n",
        "sha256": "00" * 32,
        "prefix": "vm-",
        "rights": ["embed"],
        "created": "2026-01-01T00:00:00Z",
        "expires": None,
        "disabled": False,
    }
    return made | changes


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"keys"',
        b'{"format":1}',
        b'{"format":1,"keys":{}} x',
        b'{"format":1,"keys":[1]}',
        b'{"format":1,"keys":["k"]}',
        b'{"format":1,"keys":[{}]}',
        orjson.dumps({"format": 1, "keys": [entry(sha256="00")]}),
        orjson.dumps({"format": 1, "keys": [entry(sha256="zz" * 32)]}),
        orjson.dumps({"format": 1, "keys": [entry(sha256=5)]}),
        orjson.dumps({"format": 1, "keys": [entry(rights=["everything"])]}),
        orjson.dumps({"format": 1, "keys": [entry(rights=["open"])]}),
        orjson.dumps({"format": 1, "keys": [entry(rights="embed")]}),
        orjson.dumps({"format": 1, "keys": [entry(expires="soon")]}),
        orjson.dumps({"format": 1, "keys": [entry(expires=5)]}),
        orjson.dumps({"format": 1, "keys": [entry(expires="2026-01-01T00:00:00")]}),
        orjson.dumps({"format": 1, "keys": [entry(disabled=0)]}),
        orjson.dumps({"format": 1, "keys": [entry(id="x\ny")]}),
        orjson.dumps({"format": 1, "keys": [entry(id=7)]}),
        orjson.dumps({"format": 1, "keys": [entry(), entry(name="m")]}),
    ],
)
def test_a_file_that_is_not_whole_is_refused_and_nothing_guessed(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "keys.json"
    path.write_bytes(raw)
    with pytest.raises(CorruptFileError, match="no whole file of keys"):
        read_keys(path)


def test_a_file_of_another_version_or_size_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "keys.json"
    path.write_bytes(b'{"format":2,"keys":[]}')
    with pytest.raises(FormatVersionError, match="another format than 1"):
        read_keys(path)
    path.write_bytes(orjson.dumps({"format": 1, "keys": [entry()]}))
    assert len(read_keys(path)) == 1
    monkeypatch.setattr(keys_module, "MAX_FILE_BYTES", 20)
    with pytest.raises(CorruptFileError, match="larger than 20 bytes"):
        read_keys(path)


def store_of(file: KeyFile) -> KeyStore:
    return KeyStore(file.path)


@pytest.mark.parametrize(
    "given",
    [
        "",
        "vm-",
        "x",
        "vm-" + "a" * 43,
        "ключ",
        "é" * 10,
        "\udcff",
        "\x00",
        "a" * 512,
        "a" * 513,
        "a" * 100_000,
    ],
)
def test_wrong_keys_of_any_shape_are_only_wrong(file: KeyFile, given: str) -> None:
    file.add("one")
    assert store_of(file).find(given) is None


def test_a_longer_key_is_wrong_even_where_its_hash_is_known(tmp_path: Path) -> None:
    long = "a" * 513
    key = Key("x", "x", digest(long), "", frozenset({Right.EMBED}), 0.0)
    assert KeyStore(tmp_path / "none", extra=[key]).find(long) is None


@pytest.mark.parametrize("which", [0, 1, 2, None])
def test_every_entry_is_compared_whichever_fits(
    file: KeyFile, monkeypatch: pytest.MonkeyPatch, which: int | None
) -> None:
    secrets = [file.add(f"k{i}")[0] for i in range(3)]
    store = store_of(file)
    compared: list[bytes] = []
    genuine = hmac.compare_digest

    def watched(one: bytes, other: bytes) -> bool:
        compared.append(other)
        return genuine(one, other)

    monkeypatch.setattr(hmac, "compare_digest", watched)
    found = store.find("vm-wrong" if which is None else secrets[which])
    assert (None if found is None else found.name) == (None if which is None else f"k{which}")
    assert compared == [digest(secret) for secret in secrets]


def test_a_key_of_another_tool_is_kept_as_a_hash(tmp_path: Path) -> None:
    key, cyrillic = given_keys([plain_key("  the-key-of-another-tool\n"), plain_key("ключ-из-файла-ключей")])
    assert key.sha256.hex()[:4] not in key.id
    store = KeyStore(tmp_path / "none", extra=[key, cyrillic])
    assert store.has_keys
    assert store.find("the-key-of-another-tool") is key
    assert key.rights == frozenset({Right.EMBED, Right.READ, Right.METRICS, Right.ADMIN})
    as_in_a_header = "ключ-из-файла-ключей".encode().decode("latin-1")
    assert store.find(as_in_a_header) is cyrillic


@pytest.mark.parametrize("given", ["", " \n", "two words of a key", "a\x00bcdefghijklmnopqrstuvw", "k" * 513])
def test_a_plain_key_no_header_can_carry_is_refused(given: str) -> None:
    with pytest.raises(InputError) as caught:
        plain_key(given)
    assert given.strip() not in str(caught.value) or not given.strip()


def test_a_short_plain_key_is_warned_of_without_being_shown(caplog: pytest.LogCaptureFixture) -> None:
    plain_key("hunter2")
    assert "only 7 characters" in caplog.text
    assert "hunter2" not in caplog.text


@pytest.mark.parametrize(
    ("key", "shown"),
    [
        ("vm-abcdefghijklmnopqrstuvwxyz", "vm-a****wxyz"),
        ("sk-abcdefgh", "sk****gh"),
        ("abcd", "a****d"),
        ("abc", "****"),
        ("", "****"),
        ("é\r\nabcdefghijklmnop", "???a****mnop"),
    ],
)
def test_masked_shows_four_and_four_at_most(key: str, shown: str) -> None:
    assert masked(key) == shown


def test_a_changed_file_is_read_and_expired_keys_close_the_door_too(file: KeyFile) -> None:
    store = store_of(file)
    assert not store.has_keys
    assert not store.refresh()
    secret, key = file.add("one")
    assert store.refresh()
    assert store.has_keys
    assert store.find(secret) == key
    file.disable("one")
    assert store.refresh()
    off = store.find(secret)
    assert off is not None
    assert not off.is_valid(0.0)
    assert replace(key, expires=10.0).is_valid(9.9)
    assert not replace(key, expires=10.0).is_valid(10.0)
    file.remove("one")
    assert store.refresh()
    assert store.find(secret) is None
    assert store.has_keys, "the door opened because its last key was removed"


def test_a_removed_file_takes_its_keys_and_opens_nothing(file: KeyFile) -> None:
    secret, _ = file.add("one")
    store = store_of(file)
    file.path.unlink()
    store.refresh()
    assert store.find(secret) is None
    assert store.has_keys


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("damage", [_cut, _folder])
def test_a_damaged_file_leaves_the_last_good_keys_and_is_told_once(
    file: KeyFile, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    secret, key = file.add("one")
    store = store_of(file)
    damage(file.path)
    for _ in range(3):
        assert not store.refresh()
    assert store.find(secret) == key
    assert len([r for r in caplog.records if r.levelno == logging.ERROR]) == 1
    assert "stay in force" in caplog.text


def test_a_file_that_comes_damaged_closes_an_open_server(file: KeyFile) -> None:
    store = store_of(file)
    file.path.parent.mkdir()
    file.path.write_bytes(b"{")
    store.refresh()
    assert store.has_keys
    file.path.unlink()
    secret, _ = file.add("one")
    assert store.refresh()
    assert store.find(secret) is not None


def test_a_server_does_not_start_on_a_damaged_file(file: KeyFile) -> None:
    file.add("one")
    _cut(file.path)
    with pytest.raises(CorruptFileError):
        store_of(file)


def test_a_file_others_can_read_is_told(file: KeyFile, caplog: pytest.LogCaptureFixture) -> None:
    file.add("one")
    file.path.chmod(0o640)
    store_of(file)
    assert "chmod 600" in caplog.text


def test_threads_that_add_at_once_lose_no_key(file: KeyFile) -> None:
    failures: list[BaseException] = []

    def add(name: str) -> None:
        try:
            file.add(name)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=add, args=(f"k{i}",)) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert sorted(key.name for key in file.read()) == sorted(f"k{i}" for i in range(12))


def test_a_lock_that_stays_taken_is_an_error(file: KeyFile, monkeypatch: pytest.MonkeyPatch) -> None:
    file.add("one")
    monkeypatch.setattr(keys_module, "_LOCK_SECONDS", 0.05)
    lock = file.path.with_name(f".{file.path.name}.vecmill-lock")
    with durable.lock(lock, what="keys"), pytest.raises(StorageError, match="in use by process"):
        file.add("two")


def test_after_a_power_cut_at_any_moment_the_file_is_whole(tmp_path: Path) -> None:
    folder = tmp_path / "disk"
    folder.mkdir()
    file = KeyFile(folder / "keys.json")
    _, one = file.add("one")
    with recording(folder) as record:
        _, two = file.add("two")
        record.mark("added")
    states = 0
    for state, root in replay(record, tmp_path / "states"):
        states += 1
        found = KeyFile(root / "keys.json").read()
        assert found in ((one,), (one, two)), state.description
        if "added" in state.marks:
            assert found == (one, two), state.description
        KeyFile(root / "keys.json").add("three")  # what the crash left is in nobody's way
        assert not [path for path in root.iterdir() if durable.is_leftover(path)]
    assert states > 3


class FullDisk:
    """Fails the n-th operation."""

    def __init__(self, operation: str) -> None:
        self.operation = operation

    def before(self, operation: str, path: Path) -> None:
        if operation == self.operation:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def after(self, operation: str, path: Path) -> None:
        pass


@pytest.mark.parametrize("operation", ["create", "fsync", "rename"])
def test_a_full_disk_changes_nothing(file: KeyFile, operation: str) -> None:
    file.add("one")
    before = file.path.read_bytes()
    with (
        durable.watching(FullDisk(operation)),
        pytest.raises(WriteError, match="what was there before is intact"),
    ):
        file.add("two")
    assert file.path.read_bytes() == before
    assert [path.name for path in file.path.parent.iterdir()] == ["keys.json"]


@pytest.mark.skipif(sys.platform == "win32", reason="there are no named pipes in folders")
def test_a_pipe_in_the_files_place_is_not_waited_for(file: KeyFile) -> None:
    file.add("one")
    store = KeyStore(file.path)
    file.path.unlink()
    os.mkfifo(file.path)
    looking = threading.Thread(target=store.refresh, daemon=True)
    looking.start()
    looking.join(timeout=30)
    assert not looking.is_alive()
    assert store.has_keys
    with pytest.raises(StorageError, match="it is no file"):
        read_keys(file.path)
