"""The official client and ours get the same from the simulated provider: it speaks the vendors' language."""

from __future__ import annotations

import base64
import io
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vecmill import Embedder
from vecmill.core.config import load_settings
from vecmill.testing.scenarios import Scenario
from vecmill.testing.simulator import Simulator, simulator_thread
from vecmill.testing.simulator_batch_files import BatchRules
from vecmill.testing.simulator_faults import Fault

openai = pytest.importorskip("openai", reason="needs the official client: pip install openai")

TEXTS = ["a cat", "ein Hund", "日本語のテキスト", "a cat"]
MODEL = "text-embedding-3-small"


@pytest.fixture
def simulator() -> Iterator[Simulator]:
    quick = BatchRules(validating_seconds=0.05, seconds_per_line=0.01, finalizing_seconds=0.05)
    with simulator_thread(Scenario(deployments={"reviews": MODEL}), batch_rules=quick) as running:
        yield running


def client(simulator: Simulator, **options: Any) -> Any:
    return openai.OpenAI(base_url=simulator.url, api_key=simulator.key, max_retries=0, **options)


def test_both_clients_get_the_same_vectors_and_usage(
    simulator: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", simulator.key)
    settings = load_settings(home=str(tmp_path / "home"), cache_dir=str(tmp_path / "cache"))
    with (
        client(simulator) as theirs,
        Embedder(f"openai:{MODEL}", base_url=simulator.url, settings=settings) as ours,
    ):
        made = ours.embed(TEXTS)
        for encoding in ("base64", "float"):
            reply = theirs.embeddings.create(model=MODEL, input=TEXTS, encoding_format=encoding)
            rows = [item.embedding for item in sorted(reply.data, key=lambda item: item.index)]
            if encoding == "base64":
                rows = [np.frombuffer(base64.b64decode(row), dtype="<f4") for row in rows]
            assert np.allclose(np.array(rows, dtype=np.float32), made.vectors, atol=1e-7)
        assert reply.usage.prompt_tokens == sum(map(simulator.count, TEXTS))
        assert made.usage.tokens == sum(map(simulator.count, set(TEXTS)))  # the second cat was not sent
        default = theirs.embeddings.create(model=MODEL, input=TEXTS[0])
        assert np.allclose(default.data[0].embedding, made.vectors[0], atol=1e-7)
        short = theirs.embeddings.create(model=MODEL, input=TEXTS, dimensions=256)
    with Embedder(f"openai:{MODEL}", base_url=simulator.url, dimensions=256, settings=settings) as small:
        cut = small.embed(TEXTS)
    assert cut.usage.requests == 0
    own = np.array([item.embedding for item in short.data], dtype=np.float32)
    assert (np.einsum("ij,ij->i", own, cut.vectors) >= 0.999999).all()


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("rate_seconds", "RateLimitError"),
        ("quota", "RateLimitError"),
        ("401", "AuthenticationError"),
        ("500", "InternalServerError"),
        ("413", "APIStatusError"),
        ("reset_before", "APIConnectionError"),
    ],
)
def test_faults_are_what_the_official_client_knows(fault: str, kind: str) -> None:
    with (
        simulator_thread(replace(Scenario(), faults=(Fault(fault),))) as simulator,
        client(simulator) as theirs,
        pytest.raises(getattr(openai, kind)) as raised,
    ):
        theirs.embeddings.create(model=MODEL, input=TEXTS)
    if fault == "quota":
        assert raised.value.code == "insufficient_quota"


def test_what_the_api_refuses_is_refused_in_its_words(simulator: Simulator) -> None:
    with client(simulator) as theirs:
        for wrong in (
            {"input": ""},
            {"input": []},
            {"input": ["x"] * 2049},
            {"input": "x", "dimensions": 99_999},
        ):
            with pytest.raises(openai.BadRequestError):
                theirs.embeddings.create(model=MODEL, **wrong)
        with pytest.raises(openai.NotFoundError) as raised:
            theirs.embeddings.create(model="text-embedding-9", input="x")
        assert raised.value.code == "model_not_found"


def test_azure_is_spoken_too(simulator: Simulator) -> None:
    with openai.AzureOpenAI(
        azure_endpoint=simulator.azure_url, api_key=simulator.key, api_version="2024-10-21", max_retries=0
    ) as theirs:
        reply = theirs.embeddings.create(model="reviews", input=TEXTS)
        assert reply.model == MODEL
        with pytest.raises(openai.NotFoundError):
            theirs.embeddings.create(model="nothing", input="x")


def test_files_and_batches_work_through_the_official_client(simulator: Simulator) -> None:
    lines = [
        {
            "custom_id": f"r{i}",
            "method": "POST",
            "url": "/v1/embeddings",
            "body": {"model": MODEL, "input": text},
        }
        for i, text in enumerate(TEXTS)
    ]
    content = io.BytesIO("\n".join(json.dumps(line) for line in lines).encode())
    with client(simulator) as theirs:
        file = theirs.files.create(file=("lines.jsonl", content), purpose="batch")
        batch = theirs.batches.create(
            input_file_id=file.id, endpoint="/v1/embeddings", completion_window="24h"
        )
        assert simulator.batches is not None
        patience = time.monotonic() + 60
        while (batch := theirs.batches.retrieve(batch.id)).status != "completed":
            assert time.monotonic() < patience
            time.sleep(0.05)  # the simulated provider's states take real time here
        answers = [json.loads(line) for line in theirs.files.content(batch.output_file_id).text.splitlines()]
    assert {answer["custom_id"] for answer in answers} == {line["custom_id"] for line in lines}
