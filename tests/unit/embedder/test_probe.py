"""The probe is embedded once per space and made again when its file is damaged."""

from __future__ import annotations

import asyncio
from pathlib import Path

from vecmill.embedder.channel import Channel
from vecmill.testing.fakes import FakeProvider


def probe(provider: FakeProvider, cache: Path) -> str:
    return asyncio.run(Channel(provider, probe_dir=cache / "probes").probe())


def test_the_probe_is_embedded_once_per_space(tmp_path: Path) -> None:
    provider = FakeProvider(dimensions=8)
    first = probe(provider, tmp_path)
    assert probe(provider, tmp_path) == first
    assert len(provider.calls) == 1
    assert probe(FakeProvider(dimensions=8, name="other"), tmp_path) != first


def test_a_damaged_file_is_made_again(tmp_path: Path) -> None:
    provider = FakeProvider(dimensions=8)
    first = probe(provider, tmp_path)
    (file,) = (tmp_path / "probes").iterdir()
    for damaged in (b"", b"{}", b"[1]", file.read_bytes().replace(b'"probe": "', b'"probe": "A')):
        file.write_bytes(damaged)
        assert probe(provider, tmp_path) == first


def test_a_cache_that_cannot_be_written_costs_a_call_and_no_error(tmp_path: Path) -> None:
    (tmp_path / "probes").write_text("in the way")
    provider = FakeProvider(dimensions=8)
    assert probe(provider, tmp_path) == probe(provider, tmp_path)
