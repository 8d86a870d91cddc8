"""Hosted jobs: no row lost, none paid twice, whatever the provider does."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vecmill.collection.search import search
from vecmill.core.errors import (
    AuthenticationError,
    BudgetReachedError,
    InputError,
    QuotaExhaustedError,
    SpaceMismatchError,
    UnavailableError,
)
from vecmill.core.space import PROBE_TEXTS
from vecmill.jobs.resume import read_command
from vecmill.jobs.run import embed_files
from vecmill.jobs.store import list_jobs
from vecmill.testing.scenarios import Latency, Model, Scenario
from vecmill.testing.simulator import simulator_thread
from vecmill.testing.simulator_faults import Fault

TINY = Scenario(models={"tiny": Model(8)}, latency=Latency("uniform", 0.02, 0.2))


def texts(n: int) -> list[str]:
    return [f"row number {i} of the table" for i in range(n)]


def assert_whole(ran: Any, asked: list[str]) -> None:
    """Every row is there once, in order, with its own vector or an error."""
    rows = ran.rows()
    assert [row["text"] for row in rows] == asked
    assert [row["row"] for row in rows] == list(range(len(asked)))
    expected = ran.simulator.vectors(asked)
    for row, vector in zip(rows, expected, strict=True):
        assert (row["embedding"] is None) != (row["error"] is None)
        if row["embedding"] is not None:
            assert np.allclose(row["embedding"], vector, atol=1e-6)


def assert_balanced(receipt: dict[str, Any]) -> None:
    assert receipt["rows"] == receipt["vectors"] + receipt["skipped"] + receipt["errors"]
    assert receipt["texts"] == receipt["sent"] + receipt["deduped"] + receipt["cached"]


@pytest.mark.parametrize("share", [0.3])
@given(seed=st.integers(0, 2**20), inputs=st.sampled_from([7, 32, 64]), rows=st.integers(1, 1500))
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_with_a_third_of_requests_failing_every_row_comes_once_and_in_order(
    hosted: Any, share: float, seed: int, inputs: int, rows: int
) -> None:
    asked = texts(rows)
    hosted.model = "openai:tiny"
    scenario = replace(TINY, max_inputs=inputs, faults=(Fault("mix", share=share),), seed=seed)
    ran = hosted.job(
        scenario, hosted.texts(asked), f"out-{seed}-{inputs}-{rows}.parquet", cache=False, overwrite=True
    )
    assert ran.error is None
    assert_whole(ran, asked)
    assert_balanced(ran.receipt)
    # what was billed is what the receipt says, and what it says may have been lost
    receipt, bill = ran.receipt, ran.simulator.billed_tokens
    known = receipt["tokens"] + receipt["probe_tokens"]
    assert known <= bill <= known + receipt["unsure_tokens"]


def test_a_poison_row_costs_itself_and_few_requests(hosted: Any) -> None:
    asked = texts(10_000)
    asked[7_321] = "this is POISON"
    ran = hosted.job(Scenario(poison="POISON"), hosted.texts(asked))
    assert ran.receipt["vectors"] == 9_999
    (bad,) = [row for row in ran.rows() if row["error"] is not None]
    assert (bad["row"], bad["error"]["code"] != "", bad["error"]["type"]) == (7_321, True, "RefusedError")
    plain = math.ceil(10_000 / 2_048) + 1  # the probe does not fit into the first window's only request
    assert ran.simulator.requests - plain <= 2 * math.log2(2_048)
    assert all(ran.simulator.times_billed(text) == 1 for text in asked[7_000:8_000] if "POISON" not in text)


def test_poison_rows_at_the_head_do_not_stop_the_job(hosted: Any) -> None:
    hosted.job(Scenario(), hosted.texts(texts(3)), "first.parquet")  # the probe is kept from now on
    ran = hosted.job(Scenario(poison="POISON"), hosted.texts([*(f"POISON {i}" for i in range(5)), "fine"]))
    assert (ran.receipt["errors"], ran.receipt["vectors"]) == (5, 1)
    assert ran.receipt["tokens"] + ran.receipt["probe_tokens"] == ran.simulator.billed_tokens


def test_what_was_paid_is_not_paid_again(hosted: Any) -> None:
    asked = texts(3_000)
    first = hosted.job(Scenario(), hosted.texts(asked))
    assert first.simulator.billed_texts == 3_003
    # the same again: nothing; made anew: everything from the cache
    assert hosted.job(Scenario(), hosted.texts(asked)).simulator.requests == 0
    again = hosted.job(Scenario(), hosted.texts(asked), overwrite=True)
    assert (again.simulator.requests, again.receipt["cached"], again.receipt["usd"]) == (0, 3_000, 0.0)
    assert again.vectors().vectors.tobytes() == first.vectors().vectors.tobytes()
    # seven edited: seven sent
    for at in (0, 5, 99, 1000, 2047, 2048, 2999):
        asked[at] = f"edited {at}"
    edited = hosted.job(Scenario(), hosted.texts(asked), "edited.parquet")
    assert (edited.simulator.billed_texts, edited.receipt["sent"]) == (7, 7)
    # one inserted on top: one sent, and every row has its own vector
    asked.insert(0, "a new first row")
    inserted = hosted.job(Scenario(), hosted.texts(asked), "inserted.parquet")
    assert inserted.simulator.billed_texts == 1
    assert_whole(inserted, asked)


def test_equal_texts_in_windows_on_their_way_are_sent_once(hosted: Any) -> None:
    asked = texts(1_000) * 10
    ran = hosted.job(replace(Scenario(), max_inputs=64, latency=Latency(seconds=0.3)), hosted.texts(asked))
    assert ran.simulator.billed_texts == 1_003
    assert_whole(ran, asked)
    assert_balanced(ran.receipt)
    assert ran.receipt["sent"] == 1_000


def test_dimensions_are_cut_from_the_full_vector(hosted: Any) -> None:
    source = hosted.texts(texts(50))
    full = hosted.job(Scenario(), source)
    short = hosted.job(Scenario(), source, "short.parquet", dimensions=256)
    assert short.simulator.requests == 0  # from the cache
    asked = short.vectors()
    assert asked.vectors.shape == (50, 256)
    assert np.allclose(asked.vectors, short.simulator.vectors(texts(50), dimensions=256), atol=1e-6)
    assert asked.manifest.space == full.vectors().manifest.space
    # without a cache the provider is asked for the short ones
    direct = hosted.job(Scenario(), source, "direct.parquet", dimensions=256, cache=False)
    assert direct.simulator.requests == 1
    assert np.allclose(direct.vectors().vectors, asked.vectors, atol=1e-6)


def test_a_used_up_quota_parks_and_the_same_job_goes_on(hosted: Any) -> None:
    asked = texts(5_000)
    scenario = replace(Scenario(), max_inputs=256, max_request_tokens=300_000)
    parked = hosted.job(replace(scenario, faults=(Fault("quota", at=range(9, 1000)),)), hosted.texts(asked))
    assert isinstance(parked.error, QuotaExhaustedError)
    (job,) = list_jobs(hosted.settings)
    assert job.state.startswith("parked")
    assert not parked.output.exists()
    resumed = hosted.job(scenario, hosted.texts(asked))
    assert resumed.error is None
    assert parked.simulator.billed_texts + resumed.simulator.billed_texts == 5_003  # nothing twice
    assert_whole(resumed, asked)
    assert_balanced(resumed.receipt)


def test_a_budget_pauses_before_it_is_passed(hosted: Any) -> None:
    asked = texts(4_000)
    scenario = replace(Scenario(), max_inputs=100)
    paused = hosted.job(scenario, hosted.texts(asked), max_usd=0.0004)
    assert isinstance(paused.error, BudgetReachedError)
    assert 0.0002 < paused.simulator.billed_usd <= 0.0004
    assert list_jobs(hosted.settings)[0].state == "paused"
    resumed = hosted.job(scenario, hosted.texts(asked), max_usd=1.0)
    assert paused.simulator.billed_texts + resumed.simulator.billed_texts == 4_003
    assert_whole(resumed, asked)


def test_a_cap_holds_over_runs_and_the_receipt_is_the_bill_of_all(hosted: Any) -> None:
    asked = texts(30_000)
    scenario = replace(Scenario(), max_inputs=100, latency=Latency(seconds=0.5))
    runs = [hosted.job(scenario, hosted.texts(asked), max_usd=0.002) for _ in range(3)]
    assert all(isinstance(ran.error, BudgetReachedError) for ran in runs)
    assert 0.0019 < sum(ran.simulator.billed_usd for ran in runs) <= 0.002
    runs.append(hosted.job(scenario, hosted.texts(asked)))
    receipt, bill = runs[-1].receipt, sum(ran.simulator.billed_tokens for ran in runs)
    assert receipt["tokens"] + receipt["probe_tokens"] == bill
    assert receipt["usd"] + receipt["probe_usd"] == pytest.approx(
        sum(ran.simulator.billed_usd for ran in runs)
    )
    assert_balanced(receipt)
    assert_whole(runs[-1], asked)


def test_a_cap_holds_where_answers_are_lost_that_were_billed(hosted: Any) -> None:
    scenario = replace(Scenario(), max_inputs=50, faults=(Fault("reset_after", share=0.5),))
    for _ in range(2):
        ran = hosted.job(scenario, hosted.texts(texts(12_000)), max_usd=0.001)
        assert isinstance(ran.error, BudgetReachedError)
        assert ran.simulator.billed_usd <= 0.001


def test_resume_asks_what_was_asked_last(hosted: Any) -> None:
    source, scenario = hosted.texts(texts(6_000)), replace(Scenario(), faults=(Fault("quota", at={2}),))
    assert isinstance(hosted.job(scenario, source).error, QuotaExhaustedError)
    assert isinstance(hosted.job(Scenario(), source, max_usd=0.0004).error, BudgetReachedError)
    assert read_command(None, settings=hosted.settings).options.max_usd == 0.0004


def test_a_refused_key_ends_the_job_with_one_request(hosted: Any) -> None:
    ran = hosted.job(replace(Scenario(), keys=("sk-another-key-entirely",)), hosted.texts(texts(5_000)))
    assert isinstance(ran.error, AuthenticationError)
    assert ran.simulator.requests <= 8  # one for each window on its way
    assert not list(hosted.folder.glob("out.parquet*"))


def test_a_provider_that_is_gone_stops_the_job_and_keeps_what_is_done(hosted: Any) -> None:
    asked = texts(6_000)
    scenario = replace(Scenario(), max_inputs=500)
    gone = hosted.job(replace(scenario, faults=(Fault("503", at=range(4, 10_000)),)), hosted.texts(asked))
    assert isinstance(gone.error, UnavailableError)
    again = hosted.job(scenario, hosted.texts(asked))
    assert gone.simulator.billed_texts + again.simulator.billed_texts == 6_003
    assert_whole(again, asked)


def test_each_row_says_what_it_cost_and_the_sum_is_the_bill(hosted: Any) -> None:
    asked = [*texts(2_500), *texts(100)]
    ran = hosted.job(Scenario(), hosted.texts(asked), usage=True)
    rows = ran.rows()
    tokens = sum(row["usage"]["tokens"] for row in rows)
    assert tokens == ran.receipt["tokens"]
    assert tokens + ran.receipt["probe_tokens"] == ran.simulator.billed_tokens
    dollars = sum(row["usage"]["usd"] for row in rows) + ran.receipt["probe_usd"]
    assert dollars == pytest.approx(ran.simulator.billed_usd, rel=1e-9)
    assert all(row["usage"]["tokens"] == 0 for row in rows[2_500:])
    receipt = json.loads(Path(f"{ran.output}.receipt.json").read_text())
    assert receipt["usd"] == pytest.approx(ran.receipt["usd"])


def test_long_texts_are_averaged_from_full_vectors(hosted: Any) -> None:
    long = " ".join(f"word{i}" for i in range(9_000))
    ran = hosted.job(Scenario(), hosted.texts([long, "short"]), dimensions=256)
    rows = ran.rows()
    assert rows[0]["chunks"] > 1
    assert math.isclose(float(np.linalg.norm(rows[0]["embedding"])), 1.0, abs_tol=1e-5)
    assert ran.simulator.billed_tokens == ran.receipt["tokens"] + ran.receipt["probe_tokens"]


def test_texts_that_are_one_once_truncated_are_sent_once(hosted: Any) -> None:
    long = " ".join(f"word{i}" for i in range(9_000))
    ran = hosted.job(
        Scenario(), hosted.texts([f"{long} one", "short", f"{long} other"]), long_text="truncate"
    )
    assert (ran.receipt["vectors"], ran.receipt["sent"]) == (3, 2)
    assert ran.simulator.billed_texts == 2 + 3
    assert_balanced(ran.receipt)


def test_a_job_through_batches_pays_the_batch_price_and_the_poison_row_fails_alone(hosted: Any) -> None:
    asked = texts(5_000)
    asked[1_234] = "this is POISON"
    source = hosted.texts([*asked, *asked[4_500:4_510]])
    ran = hosted.job(Scenario(poison="POISON"), source, via="batch", usage=True)
    assert ran.error is None
    rows = ran.rows()
    assert [row["row"] for row in rows if row["error"] is not None] == [1_234]
    assert_balanced(ran.receipt)
    batch = ran.receipt["batch"]
    assert batch["texts"] > 4_000
    assert ran.receipt["sent"] == 4_999
    assert (ran.receipt["cached"], ran.receipt["deduped"]) == (0, 10)
    assert batch["tokens"] + ran.receipt["tokens"] == ran.simulator.billed_tokens  # the probe too
    assert batch["usd"] + ran.receipt["usd"] == pytest.approx(ran.simulator.billed_usd)
    # the rows' costs add up to the bill but for the probe's three sentences, which came in the first batch
    probe = sum(map(ran.simulator.count, PROBE_TEXTS))
    assert sum(row["usage"]["tokens"] for row in rows) == ran.simulator.billed_tokens - probe
    again = hosted.job(Scenario(poison="POISON"), source, "again.parquet", via="batch")
    assert again.receipt["batch"]["batches"] <= 1  # the poison text, once more


def test_batches_need_a_cache_and_a_provider_that_has_them(hosted: Any) -> None:
    with pytest.raises(InputError, match="cache"):
        hosted.job(Scenario(), hosted.texts(texts(3)), via="batch", cache=False)
    with pytest.raises(InputError, match="runs here"):
        embed_files(hosted.texts(texts(3)), hosted.folder / "o.parquet", via="batch")


def test_verify_does_not_ask_another_provider_than_the_one_that_made_the_set(
    hosted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = hosted.job(Scenario(), hosted.texts(texts(5)))
    monkeypatch.delenv("OPENAI_BASE_URL")  # the name alone means another provider
    checks = {check.name: check for check in hosted.verify(Scenario(), ran.output).checks}
    assert checks["recomputed"].ok is False
    assert "space" in checks["recomputed"].detail


def test_verify_says_when_the_vendor_changed_the_model_under_its_name(hosted: Any) -> None:
    ran = hosted.job(Scenario(), hosted.texts(texts(40)))
    same = {check.name: check.ok for check in hosted.verify(Scenario(), ran.output).checks}
    assert same["vendor"] is True
    assert same["recomputed"] is True
    models = {"text-embedding-3-small": Model(1536, revision="of today")}
    changed = {check.name: check for check in hosted.verify(Scenario(models=models), ran.output).checks}
    assert changed["vendor"].ok is False
    assert "changed by its vendor" in changed["vendor"].detail


def test_a_set_made_elsewhere_is_not_asked_for_at_the_vendors_address(
    hosted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = hosted.job(Scenario(), hosted.texts(texts(20)))
    monkeypatch.delenv("OPENAI_BASE_URL")  # the name alone means api.openai.com
    with pytest.raises(SpaceMismatchError, match=r"another address.*--base-url"):
        search(ran.output, "row number 3 of the table", settings=hosted.settings)
    with simulator_thread(Scenario(), port=hosted.port) as simulator:
        found = search(ran.output, asked := texts(20)[3], base_url=simulator.url, settings=hosted.settings)
    assert found.hits[0].text == asked
