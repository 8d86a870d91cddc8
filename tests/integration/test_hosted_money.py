"""The price said before is the bill after, on real tables; smaller vectors equal the provider's own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vecmill.core.vectors import shorten
from vecmill.testing.scenarios import Scenario

REVIEWS = "Title: {Summary}; Content: {Text}"


@pytest.mark.parametrize(
    ("name", "options", "distinct"),
    [
        ("news/AG_news_samples.csv", {"template": "{title} {description}"}, None),
        ("reviews/fine_food_reviews_1k.csv", {"template": REVIEWS}, 762),
        ("batch/billsum-0.csv", {"text": "text"}, None),  # long texts, cut into pieces
    ],
)
def test_the_dry_run_of_a_real_table_says_the_bill(
    hosted: Any, data_dir: Path, name: str, options: dict[str, Any], distinct: int | None
) -> None:
    assert_priced(hosted, data_dir / name, options, distinct)


def test_the_dry_run_of_chinese_says_the_bill(hosted: Any, data_dir: Path) -> None:
    source = data_dir / "retrieval" / "xquad-zh"
    texts = {
        line
        for path in sorted(source.iterdir())
        for line in path.read_text("utf-8", "replace").splitlines()
        if any("\u4e00" <= sign <= "\u9fff" for sign in line)
    }
    assert len(texts) > 100
    assert_priced(hosted, hosted.texts(sorted(texts), "zh.txt"), {}, None)


def test_the_dry_run_of_code_says_the_bill(hosted: Any) -> None:
    folder = Path(__file__).resolve().parents[2] / "src" / "vecmill"
    path = hosted.folder / "code.jsonl"
    with path.open("w", encoding="utf-8") as out:
        for source in sorted(folder.rglob("*.py")):
            text = source.read_text("utf-8")
            out.writelines(
                json.dumps({"text": text[at : at + 3000]}) + "\n" for at in range(0, len(text), 3000)
            )
    assert_priced(hosted, path, {}, None)


def assert_priced(hosted: Any, source: Path, options: dict[str, Any], distinct: int | None) -> None:
    said = hosted.estimate(Scenario(), source, **options)
    ran = hosted.job(Scenario(), source, **options)
    assert ran.error is None
    assert said.usd == pytest.approx(ran.simulator.billed_usd, rel=0.02)
    assert said.usd == pytest.approx(ran.simulator.billed_usd, rel=1e-9)  # it is exact
    assert said.requests <= ran.simulator.requests <= said.requests + 1  # the probe may need one more
    assert said.send_texts + 3 == ran.simulator.billed_texts
    if distinct is not None:
        assert said.distinct == distinct
    # and now that all of it is in the cache
    again = hosted.estimate(Scenario(), source, **options)
    assert (again.send_texts, again.requests, again.usd, again.cached_share) == (0, 0, 0.0, 1.0)


def test_a_probe_to_be_made_again_is_in_the_price(hosted: Any) -> None:
    source = hosted.texts(f"row number {i}" for i in range(10))
    hosted.job(Scenario(), source)
    shutil.rmtree(hosted.settings.cache_dir / "probes")
    said = hosted.estimate(Scenario(), source, overwrite=True)
    ran = hosted.job(Scenario(), source, overwrite=True)
    assert said.send_texts == 0
    assert said.requests == ran.simulator.requests == 1
    assert said.usd == pytest.approx(ran.simulator.billed_usd, rel=1e-9)


def test_shortened_vectors_equal_the_providers_own(data_dir: Path) -> None:
    vectors = data_dir / "vectors"
    full = json.loads((vectors / "peliculas_text-embedding-3-small-1536.json").read_bytes())
    own = json.loads((vectors / "peliculas_text-embedding-3-small-256.json").read_bytes())
    assert list(full) == list(own)
    cut = shorten(np.array(list(full.values()), dtype=np.float32), 256)
    theirs = np.array(list(own.values()), dtype=np.float32)
    cosines = (
        np.einsum("ij,ij->i", cut, theirs) / np.linalg.norm(cut, axis=1) / np.linalg.norm(theirs, axis=1)
    )
    assert cosines.min() >= 0.999999
