"""Folders of OpenVINO Model Server: their layouts, and what graph.pbtxt says of the vectors."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vecmill.core.errors import ConfigError, CorruptFileError, InputError
from vecmill.models.local import ovms_layout

folders = runpy.run_path(str(Path(__file__).parent / "ovms_folders.py"))
older, newer, config, NEWER = (folders[name] for name in ("older", "newer", "config", "NEWER"))
TEXTS = ["a mill", "the mill turns grain into flour"]

Open = Callable[..., Any]


def test_the_older_layout_gives_the_first_tokens_unit_vector(
    open_local: Open, embed: Open, tmp_path: Path, golden: Path
) -> None:
    folder = older(tmp_path / "org" / "model")
    vectors = embed(open_local(folder / "embeddings" / "1"), TEXTS)
    expected = embed(open_local(golden / "bert-mean", pooling="cls", normalize=True), TEXTS)
    np.testing.assert_allclose(vectors, expected, atol=1e-5)


def test_the_newer_layout_pools_as_the_graph_says(
    open_local: Open, embed: Open, tmp_path: Path, golden: Path
) -> None:
    folder = newer(tmp_path / "model", options="pooling: MEAN, normalize_embeddings: false")
    provider = open_local(folder)
    assert provider.info.pooling == "mean"
    assert not provider.info.normalized
    np.testing.assert_allclose(
        embed(provider, TEXTS), embed(open_local(golden / "bert-mean"), TEXTS), atol=1e-5
    )


@pytest.mark.parametrize(("word", "pooling"), [("CLS", "cls"), ("LAST", "lasttoken"), ("MEAN", "mean")])
def test_every_pooling_of_the_server_is_known(
    open_local: Open, tmp_path: Path, word: str, pooling: str
) -> None:
    folder = newer(tmp_path / "model", options=f"pooling: {word}")
    assert open_local(folder).info.pooling == f"{pooling}+normalize"


def test_another_option_is_another_space(open_local: Open, tmp_path: Path) -> None:
    spaces = {
        open_local(newer(tmp_path / name, options=options)).info.space
        for name, options in {
            "a": "pooling: MEAN",
            "b": "pooling: CLS",
            "c": "pooling: MEAN normalize_embeddings: false",
        }.items()
    }
    assert len(spaces) == 3


def test_a_tokenizer_that_is_a_graph_only_says_which_file_to_copy(open_local: Open, tmp_path: Path) -> None:
    folder = older(tmp_path / "model")
    place = folder / "tokenizer" / "1"
    (place / "tokenizer.json").rename(place / "model.xml")
    with pytest.raises(
        ConfigError, match=r"as a graph only .*model\.xml.*copy tokenizer\.json.*embeddings/1"
    ):
        open_local(folder / "embeddings" / "1")


def test_a_missing_bin_is_named(open_local: Open, tmp_path: Path) -> None:
    folder = older(tmp_path / "model")
    (folder / "embeddings" / "1" / "model.bin").unlink()
    with pytest.raises(ConfigError, match=r"model\.bin is missing"):
        open_local(folder / "embeddings" / "1")


def test_the_models_path_is_followed(open_local: Open, tmp_path: Path) -> None:
    inner = newer(tmp_path / "model" / "files")
    (inner / "graph.pbtxt").rename(tmp_path / "model" / "graph.pbtxt")
    text = (tmp_path / "model" / "graph.pbtxt").read_text().replace('"./"', '"./files"')
    (tmp_path / "model" / "graph.pbtxt").write_text(text)
    assert open_local(tmp_path / "model").info.pooling == "mean+normalize"


def test_what_graph_and_subconfig_say_is_read_and_the_rest_listed(tmp_path: Path) -> None:
    options = "normalize_embeddings: false truncate: true target_device: 'GPU' max_batch: 7 colour: RED"
    folder = older(tmp_path / "model", options=options)
    said = ovms_layout.read_said(folder / "embeddings" / "1")
    assert said is not None
    assert (said.normalize, said.truncate, said.device, said.streams) == (False, True, "GPU", 2)
    assert said.ignored == ("max_batch", "colour")


def test_plugin_config_is_json_in_a_text(tmp_path: Path) -> None:
    plugin = {"NUM_STREAMS": "3", "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION": "f16"}
    options = f"plugin_config: '{json.dumps(plugin)}'"
    said = ovms_layout.read_said(newer(tmp_path / "model", options=options))
    assert said is not None
    assert said.streams == 3
    assert said.ignored == ("plugin_config.INFERENCE_PRECISION",)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ("pooling: MAX", InputError, "pooling 'MAX'"),
        ("normalize_embeddings: 3", InputError, "normalize_embeddings is true or false"),
        ("plugin_config: '{'", CorruptFileError, "is not JSON"),
        ('plugin_config: \'{"NUM_STREAMS": "many"}\'', InputError, "NUM_STREAMS 'many'"),
        ("pooling", CorruptFileError, "line 1[0-9]"),
        ("pooling: }", CorruptFileError, "where a value should be"),
        ("§", CorruptFileError, "is not understood"),
        ("a { " * 60, CorruptFileError, "too deep"),
    ],
)
def test_a_graph_that_is_not_understood_is_refused_with_its_place(
    tmp_path: Path, options: str, error: type[Exception], match: str
) -> None:
    folder = newer(tmp_path / "model", options=options)
    with pytest.raises(error, match=match):
        ovms_layout.read_said(folder)


def test_a_graph_without_embeddings_is_refused(tmp_path: Path) -> None:
    folder = newer(tmp_path / "model")
    (folder / "graph.pbtxt").write_text('node { calculator: "HttpLLMCalculator" }')
    with pytest.raises(ConfigError, match="no EmbeddingsCalculator"):
        ovms_layout.read_said(folder)


def test_text_protos_are_read() -> None:
    text = """
    # a comment
    a: 1, b: -2.5; c: "one" 'two' c: ["x", "y"]
    inner < flag: true  deep { name: LAST } >
    [type.googleapis.com / some.Extension]: { value: "\\"quoted\\"\\n" }
    """
    assert ovms_layout.parse(text, where="test") == {
        "a": [1],
        "b": [-2.5],
        "c": ["onetwo", "x", "y"],
        "inner": [{"flag": [True], "deep": [{"name": ["LAST"]}]}],
        "type.googleapis.com/some.Extension": [{"value": ['"quoted"\n']}],
    }


def test_config_json_names_models_with_what_their_files_say(tmp_path: Path) -> None:
    older(tmp_path / "Org" / "old", options="truncate: true")
    newer(tmp_path / "new", options="target_device: 'CPU' magic: 1")
    entries = ovms_layout.read_config(
        config(tmp_path / "config.json", {"Org/old": "Org/old", "short": str(tmp_path / "new")})
    )
    assert [(entry.name, entry.folder) for entry in entries] == [
        ("Org/old", tmp_path / "Org" / "old"),
        ("short", tmp_path / "new"),
    ]
    assert entries[0].said.truncate
    assert entries[0].said.streams == 2
    assert entries[1].said.ignored == ("magic",)


def test_the_plain_list_of_models_is_read_too(tmp_path: Path) -> None:
    newer(tmp_path / "new")
    given = {"name": "m", "base_path": "new", "plugin_config": {"NUM_STREAMS": 4}, "nireq": 3}
    given["model_version_policy"] = {"specific": {"versions": [2, 3]}}
    (tmp_path / "config.json").write_text(json.dumps({"model_config_list": [{"config": given}]}))
    (entry,) = ovms_layout.read_config(tmp_path / "config.json")
    assert entry.said.streams == 4
    assert entry.versions == ("2", "3")
    assert entry.said.ignored == ("nireq",)


@pytest.mark.parametrize(
    ("content", "error", "match"),
    [
        ("{", CorruptFileError, "is not JSON"),
        ("[]", CorruptFileError, "not a JSON object"),
        ("{}", ConfigError, "names no model"),
        ('{"mediapipe_config_list": {}}', CorruptFileError, "is not a list"),
        ('{"mediapipe_config_list": [{}]}', CorruptFileError, "has no name"),
        ('{"mediapipe_config_list": [{"name": "a", "base_path": "b"}]}', ConfigError, "which is no folder"),
    ],
)
def test_a_wrong_config_json_is_refused(
    tmp_path: Path, content: str, error: type[Exception], match: str
) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(error, match=match):
        ovms_layout.read_config(tmp_path / "config.json")


def test_a_missing_config_json_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        ovms_layout.read_config(tmp_path / "config.json")
