"""A sentence encoder of a few thousand weights, built on the spot: tests need no download."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

_VOCABULARY = """
sum mean matrix vector array norm axis sort sparse dense kernel fit predict score tree forest linear logistic
fourier signal filter wave sample random normal gamma beta test file read write the a of and to in for with
over along returns computes given each two
"""
WORDS = _VOCABULARY.split()


def tiny_encoder(folder: Path, seed: int = 0, dropout: float = 0.0, layers: int = 1) -> Any:
    """A SentenceTransformer: BERT of width 16 with mean pooling over a vocabulary of `WORDS`."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    vocabulary = {w: i for i, w in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {"unk": "[UNK]", "pad": "[PAD]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=64, **{f"{k}_token": v for k, v in special.items()}
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        bert = BertModel(
            BertConfig(
                vocab_size=len(vocabulary),
                hidden_size=16,
                num_hidden_layers=layers,
                num_attention_heads=2,
                intermediate_size=32,
                max_position_embeddings=64,
                hidden_dropout_prob=dropout,
                attention_probs_dropout_prob=dropout,
            )
        )
    path = folder / f"bert-{seed}-{dropout}-{layers}"
    bert.save_pretrained(path)
    fast.save_pretrained(path)
    transformer = Transformer(str(path), max_seq_length=32)
    pooling = Pooling(transformer.get_embedding_dimension(), "mean")
    return SentenceTransformer(modules=[transformer, pooling], device="cpu")


def toy_rows(batch: int, n: int, seed: int = 0) -> dict[str, list[Any]]:
    """Random short texts as columns query, doc_1 ... doc_n and a label list with 1-3 positives per row."""
    generator = torch.Generator().manual_seed(seed)

    def text() -> str:
        length = int(torch.randint(2, 9, (1,), generator=generator))
        return " ".join(
            WORDS[i] for i in torch.randint(0, len(WORDS), (length,), generator=generator).tolist()
        )

    columns: dict[str, list[Any]] = {"query": [text() for _ in range(batch)]}
    for i in range(n):
        columns[f"doc_{i + 1}"] = [text() for _ in range(batch)]
    columns["label"] = [
        [int(j <= int(torch.randint(0, min(3, n - 1), (1,), generator=generator))) for j in range(n)]
        for _ in range(batch)
    ]
    for row in columns["label"]:
        row[0] = 1
    return columns


def collate(model: Any, columns: dict[str, list[Any]]) -> tuple[list[dict[str, Any]], torch.Tensor]:
    """What the trainer's collator hands to a loss: features per column, and labels."""
    features = [dict(model.preprocess(texts)) for name, texts in columns.items() if name != "label"]
    return features, torch.tensor(columns["label"])
