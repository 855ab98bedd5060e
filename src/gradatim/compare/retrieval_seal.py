"""Retrieval by generating: a small language model, trained on spans of relevant passages, writes search keys.

"Autoregressive Search Engines", 2022, arXiv 2204.10628. The generator and its tokenizer are made from the
collection
alone: byte-pair units of the passages, and a decoder of two layers trained from scratch on the training
queries' spans. It is far smaller than the paper's; the query's own n-grams, which it weighs, do much of the
finding.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gradatim.bench.study import Scale
from gradatim.compare.comparison import Winner, freeze
from gradatim.compare.retrieval_source import load
from gradatim.tasks.retrieval import Run, ranked

if TYPE_CHECKING:
    from gradatim.inference import SEALRetriever
    from gradatim.tasks.span_pairs import SpanPairs

UNITS = 4000
WIDTH, LAYERS, HEADS = 128, 2, 4
STEPS, BATCH, RATE = 400, 32, 2e-3
BEAMS, NGRAM = 10, 8
SOURCE = 64
KEPT = "gradatim.compare.retrieval_seal.open_saved reads it; model, tokenizer and index in one folder"


def fit(scale: Scale, seed: int, train: Sequence[str]) -> SEALRetriever:
    """A generator trained on these queries, and the index of every passage."""
    from gradatim.inference import SEALRetriever
    from gradatim.tasks.span_pairs import SpanPairs

    task = load(scale).task
    tokenizer = units_of(scale)
    relevant = [(task.queries[q], doc) for q in train for doc in task.relevant(q)]
    # A passage without words (an image's page, a deleted post) has no span to write.
    corpus = {doc: text if text.split() else "." for doc, text in task.corpus.items()}
    model = train_generator(tokenizer, SpanPairs(relevant, corpus, seed=seed), seed)
    passages = list(corpus.values())
    longest = max(len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in passages)
    retriever = SEALRetriever(
        model, tokenizer, num_beams=BEAMS, ngram_length=min(NGRAM, longest), unigrams=1000
    )
    return retriever.fit(passages, ids=list(task.doc_ids))


def rank(retriever: SEALRetriever, scale: Scale, queries: Sequence[str], k: int) -> Run:
    """The `k` best passages per query."""
    task = load(scale).task
    found = retriever.search([task.queries[query] for query in queries], k=k)
    return {
        query: ranked([hit.doc_id for hit in hits])
        for query, hits in zip(queries, found, strict=True)
        if hits
    }


def save(retriever: SEALRetriever, scale: Scale, folder: Path) -> None:
    """Index, model and tokenizer."""
    retriever.save(folder)
    retriever.model.save_pretrained(folder / "generator")
    retriever.tokenizer.save_pretrained(folder / "generator")


def open_saved(folder: str | Path) -> SEALRetriever:
    """The retriever that `save` wrote."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from gradatim.inference import SEALRetriever

    where = str(Path(folder) / "generator")
    model = AutoModelForCausalLM.from_pretrained(where, use_safetensors=True, trust_remote_code=False)
    tokenizer = AutoTokenizer.from_pretrained(where, trust_remote_code=False)
    return SEALRetriever.load(folder, model.eval(), tokenizer)


def code(won: Winner, scale: Scale, saved: Path | None) -> str:
    """The lines that search with it."""
    if saved is not None:
        return "\n".join(
            [
                "from gradatim.compare.retrieval_seal import open_saved",
                "",
                f"retriever = open_saved({str(saved)!r})",
                "hits = retriever.search(queries, k=10)",
            ]
        )
    return "\n".join(
        [
            "from gradatim.inference import SEALRetriever",
            "from gradatim.models import load_causal_lm",
            "",
            "# --save FOLDER keeps the small generator that was measured; these lines take a larger one.",
            "model, tokenizer = load_causal_lm('smollm2')",
            "retriever = SEALRetriever(model, tokenizer, num_beams=4, ngram_length=3).fit(passages)",
            "hits = retriever.search(queries, k=10)",
        ]
    )


def units_of(scale: Scale) -> Any:
    """A tokenizer of up to 4,000 byte-pair units of the passages, made once per process."""
    return _units(freeze(scale))


@functools.lru_cache(maxsize=1)
def _units(frozen: str) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=UNITS,
        special_tokens=["<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(load(json.loads(frozen)).task.corpus.values(), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>")


def train_generator(tokenizer: Any, data: SpanPairs, seed: int) -> Any:
    """A decoder trained from scratch; its weights and batches follow from the seed."""
    from transformers import GPT2Config, GPT2LMHeadModel

    from gradatim.bench.fit import fit as run_fit
    from gradatim.tasks.span_pairs import PairCollator

    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=WIDTH,
        n_layer=LAYERS,
        n_head=HEADS,
        n_positions=2 * SOURCE,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GPT2LMHeadModel(config)
    collate = PairCollator(tokenizer, max_source=SOURCE, max_target=SOURCE // 2, pad=tokenizer.pad_token_id)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=STEPS + 1)
    run_fit(
        model,
        optimizer,
        _Draws(data, collate, seed),
        target_loss,
        scheduler=schedule,
        steps=STEPS,
        clip=1.0,
        seed=seed,
    )
    return model.eval()


def target_loss(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """Mean cross-entropy of the target's tokens."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    logits = model(**inputs, use_cache=False).logits[:, :-1]
    return F.cross_entropy(logits.flatten(0, 1).float(), batch["labels"][:, 1:].flatten())


@dataclass(frozen=True)
class _Draws:
    """Batches of pairs drawn with replacement; spans are drawn anew every len(data) pairs."""

    data: SpanPairs
    collate: Any
    seed: int

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        rng = np.random.default_rng(self.seed)
        for step in range(STEPS):
            self.data.set_epoch(step * BATCH // len(self.data))
            yield self.collate([self.data[int(i)] for i in rng.integers(len(self.data), size=BATCH)])
