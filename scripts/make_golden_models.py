"""Make the tiny models and reference vectors under tests/data/models.

Run once by a maintainer, in an environment with the `bench` extra (torch, sentence-transformers, openvino):

    python scripts/make_golden_models.py [--out tests/data/models]

Each model is initialised at random from a fixed seed, saved as sentence-transformers saves it, and its
vectors for `TEXTS` are computed by sentence-transformers in float32. The tests read the folder and compare,
without torch.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers import models as modules
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers import models as token_models
from transformers import (
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    MPNetConfig,
    MPNetModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)

OUT = Path(__file__).resolve().parents[1] / "tests" / "data" / "models"
TEXTS = (
    "the mill turns",
    "a",
    "grain into flour, and flour into bread!",
    "water runs under the old stone bridge while the wheel of the mill turns and turns",
    "unseen zebra words 42",
    "the the the the the the the the the the the the the the the the the the the the",
    " ".join(["grain into flour and flour into bread the wheel turns"] * 4),
)
VOCABULARY = (
    "the a of and into while under old stone bridge water runs wheel mill turns grain flour bread what is "
    "query document search : , . ! ? un seen ##seen word ##s ##word ze ##bra 4 2 4 ##2"
)
HIDDEN, LAYERS, HEADS, INNER = 32, 2, 4, 64


def main() -> None:
    """Make every model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=OUT)
    out = parser.parse_args().out
    for number, (name, make) in enumerate(MODELS.items()):
        torch.manual_seed(number)
        folder = out / name
        shutil.rmtree(folder, ignore_errors=True)
        with tempfile.TemporaryDirectory() as temporary:
            make(folder, Path(temporary))
        print(f"{name}: {sum(p.stat().st_size for p in folder.rglob('*') if p.is_file()):,} bytes")


def wordpiece(folder: Path) -> PreTrainedTokenizerFast:
    """Return a BERT-like tokenizer over `VOCABULARY`."""
    words = dict.fromkeys(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *VOCABULARY.split()])
    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(token_models.WordPiece(vocabulary, unk_token="[UNK]"))  # noqa: S106 - a token's name
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return _save(tokenizer, folder, unk="[UNK]", pad="[PAD]", cls="[CLS]", sep="[SEP]")


def unigram(folder: Path) -> PreTrainedTokenizerFast:
    """Return a tokenizer like XLM-R's: pieces carry the space before them."""
    pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    words = dict.fromkeys(word for word in VOCABULARY.split() if not word.startswith("##") and word.isalpha())
    pieces += [("▁" + word, -3.0 - i / 10) for i, word in enumerate(words)]
    pieces += [(letter, -8.0) for letter in "abcdefghijklmnopqrstuvwxyz,.!?"]
    tokenizer = Tokenizer(token_models.Unigram(pieces, unk_id=3, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return _save(tokenizer, folder, unk="<unk>", pad="<pad>", cls="<s>", sep="</s>")


def _save(
    tokenizer: Tokenizer, folder: Path, *, unk: str, pad: str, cls: str, sep: str
) -> PreTrainedTokenizerFast:
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=unk,
        pad_token=pad,
        cls_token=cls,
        sep_token=sep,
        model_max_length=48,
    )
    fast.save_pretrained(str(folder))
    return fast


def scramble(model: torch.nn.Module) -> torch.nn.Module:
    """Spread the weights: freshly initialised ones are so small that wrong graphs give right vectors."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = 0.3 if "norm" in name.lower() else 0.15
            parameter.add_(torch.randn_like(parameter) * spread)
    return model.eval()


def transformer(network: torch.nn.Module, tokenizer: PreTrainedTokenizerFast, temporary: Path) -> Any:
    """Return a Transformer module of sentence-transformers."""
    place = temporary / "transformer"
    scramble(network).save_pretrained(place)
    tokenizer.save_pretrained(place)
    return modules.Transformer(str(place))


def save(folder: Path, parts: list[Any], prompts: dict[str, str] | None = None) -> None:
    """Save a model and its vectors; with prompts, those of queries too."""
    model = SentenceTransformer(modules=parts, device="cpu", prompts=prompts)
    model.eval().save(str(folder), create_model_card=False)
    vectors = model.encode(list(TEXTS), prompt=(prompts or {}).get("document"), batch_size=1)
    for path in folder.rglob("*.safetensors"):
        path.chmod(0o644)
    np.save(folder / "vectors.npy", vectors.astype(np.float32))
    if prompts:
        np.save(
            folder / "query_vectors.npy", model.encode(list(TEXTS), prompt=prompts["query"], batch_size=1)
        )
    (folder / "texts.json").write_text(json.dumps(TEXTS, indent=1) + "\n", "utf-8")


def bert(temporary: Path, **options: Any) -> Any:
    """Return a tiny BERT."""
    tokenizer = wordpiece(temporary)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        intermediate_size=INNER, max_position_embeddings=48, **options,
    )  # fmt: skip
    return transformer(BertModel(config, add_pooling_layer=False), tokenizer, temporary)


def make_bert_mean(folder: Path, temporary: Path) -> None:
    """BERT, mean pooling."""
    save(folder, [bert(temporary), modules.Pooling(HIDDEN, pooling_mode="mean")])


def make_bert_last(folder: Path, temporary: Path) -> None:
    """BERT with ReLU, the last token and the maximum side by side."""
    save(
        folder,
        [bert(temporary, hidden_act="relu"), modules.Pooling(HIDDEN, pooling_mode=("lasttoken", "max"))],
    )


def make_bert_prompts(folder: Path, temporary: Path) -> None:
    """BERT with gelu_new, prompts, weighted mean and mean over the root of the length, unit length."""
    pooling = modules.Pooling(HIDDEN, pooling_mode=("mean_sqrt_len_tokens", "weightedmean"))
    prompts = {"query": "query: ", "document": "document: "}
    save(folder, [bert(temporary, hidden_act="gelu_new"), pooling, modules.Normalize()], prompts)


def make_roberta_cls(folder: Path, temporary: Path) -> None:
    """RoBERTa, first token."""
    tokenizer = unigram(temporary)
    config = RobertaConfig(
        vocab_size=len(tokenizer), hidden_size=HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        intermediate_size=INNER, max_position_embeddings=50, type_vocab_size=1, pad_token_id=1,
        bos_token_id=0, eos_token_id=2,
    )  # fmt: skip
    network = transformer(RobertaModel(config, add_pooling_layer=False), tokenizer, temporary)
    save(folder, [network, modules.Pooling(HIDDEN, pooling_mode="cls")])


def make_xlm_roberta_mean(folder: Path, temporary: Path) -> None:
    """XLM-RoBERTa, mean pooling, unit length, weights in two files."""
    tokenizer = unigram(temporary)
    config = XLMRobertaConfig(
        vocab_size=len(tokenizer), hidden_size=HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        intermediate_size=INNER, max_position_embeddings=50, type_vocab_size=1, pad_token_id=1,
        bos_token_id=0, eos_token_id=2,
    )  # fmt: skip
    network = transformer(XLMRobertaModel(config, add_pooling_layer=False), tokenizer, temporary)
    save(folder, [network, modules.Pooling(HIDDEN, pooling_mode="mean"), modules.Normalize()])
    network.auto_model.save_pretrained(str(folder), max_shard_size="40KB")
    (folder / "model.safetensors").unlink()


def make_mpnet_mean(folder: Path, temporary: Path) -> None:
    """MPNet, mean pooling."""
    tokenizer = unigram(temporary)
    config = MPNetConfig(
        vocab_size=len(tokenizer), hidden_size=HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        intermediate_size=INNER, max_position_embeddings=50, pad_token_id=1, bos_token_id=0, eos_token_id=2,
    )  # fmt: skip
    network = transformer(MPNetModel(config, add_pooling_layer=False), tokenizer, temporary)
    save(folder, [network, modules.Pooling(HIDDEN, pooling_mode="mean")])


def make_distilbert_dense(folder: Path, temporary: Path) -> None:
    """DistilBERT, mean pooling, a dense layer with tanh."""
    tokenizer = wordpiece(temporary)
    config = DistilBertConfig(
        vocab_size=len(tokenizer), dim=HIDDEN, n_layers=LAYERS, n_heads=HEADS, hidden_dim=INNER,
        max_position_embeddings=48,
    )  # fmt: skip
    network = transformer(DistilBertModel(config), tokenizer, temporary)
    dense = modules.Dense(HIDDEN, 16, activation_function=torch.nn.Tanh())
    save(folder, [network, modules.Pooling(HIDDEN, pooling_mode="mean"), dense])


class TokenVectors(torch.nn.Module):
    """Gives token vectors, as an export of the bare transformer does."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any) -> Any:
        """Return (b, s, h)."""
        return self.network(input_ids, attention_mask, token_type_ids).last_hidden_state


def make_ir_tokens(folder: Path, temporary: Path) -> None:
    """An OpenVINO IR that gives token vectors; pooling comes from modules.json."""
    network = bert(temporary, attn_implementation="eager")
    save(folder, [network, modules.Pooling(HIDDEN, pooling_mode="mean"), modules.Normalize()])
    example = {name: torch.ones((2, 7), dtype=torch.int64) for name in _NAMES}
    model = openvino.convert_model(TokenVectors(network.auto_model), example_input=example)
    model.outputs[0].get_tensor().set_names({"last_hidden_state"})
    openvino.save_model(model, folder / "openvino_model.xml", compress_to_fp16=False)
    (folder / "model.safetensors").unlink()


class SentenceVectors(torch.nn.Module):
    """Gives one vector per text, as an export of the whole model does."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, input_ids: Any, attention_mask: Any) -> Any:
        """Return (b, h)."""
        tokens = self.network(input_ids, attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(tokens.dtype)
        return (tokens * mask).sum(1) / mask.sum(1)


def make_onnx_sentences(folder: Path, temporary: Path) -> None:
    """An ONNX file under onnx/ that gives (b, d) and takes no token types."""
    network = bert(temporary, attn_implementation="eager")
    save(folder, [network, modules.Pooling(HIDDEN, pooling_mode="mean")])
    (folder / "onnx").mkdir()
    ones = torch.ones((2, 7), dtype=torch.int64)
    torch.onnx.export(
        SentenceVectors(network.auto_model), (ones, ones), str(folder / "onnx" / "model.onnx"), dynamo=False,
        input_names=["input_ids", "attention_mask"], output_names=["sentence_embedding"],
        dynamic_axes={"input_ids": {0: "b", 1: "s"}, "attention_mask": {0: "b", 1: "s"}, "sentence_embedding":
        {0: "b"}},
    )  # fmt: skip
    (folder / "model.safetensors").unlink()


_NAMES = ("input_ids", "attention_mask", "token_type_ids")
MODELS: dict[str, Callable[[Path, Path], None]] = {
    "bert-mean": make_bert_mean,
    "bert-last-max": make_bert_last,
    "bert-prompts": make_bert_prompts,
    "roberta-cls": make_roberta_cls,
    "xlm-roberta-mean": make_xlm_roberta_mean,
    "mpnet-mean": make_mpnet_mean,
    "distilbert-dense": make_distilbert_dense,
    "ir-tokens": make_ir_tokens,
    "onnx-sentences": make_onnx_sentences,
}

if __name__ == "__main__":
    main()
