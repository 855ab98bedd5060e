"""Retrieval by generating: a small language model, trained on spans of relevant passages, writes search keys.

"Autoregressive Search Engines", 2022, arXiv 2204.10628. The generator and its tokenizer are made from the
collection alone: byte-pair units of the passages, and a decoder of two layers trained from nothing on the
training queries' spans. It is far smaller than the paper's and does not learn to copy; the query's own
n-grams, which it is given a share of (`copying` of `SEALRetriever`), do much of the finding.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradatim.bench.study import Scale
from gradatim.compare.comparison import Winner, freeze
from gradatim.compare.retrieval_source import load
from gradatim.models.span_generator import byte_pair_tokenizer, train_span_generator
from gradatim.tasks.retrieval import Run, ranked

if TYPE_CHECKING:
    from gradatim.inference import SEALRetriever

UNITS = 4000
STEPS, BATCH = 400, 32
BEAMS, NGRAM = 10, 8
COPYING = 0.3
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
    pairs = SpanPairs(relevant, corpus, seed=seed)
    model = train_span_generator(
        pairs, tokenizer, steps=STEPS, batch_size=BATCH, max_source=SOURCE, context=2 * SOURCE, seed=seed
    )
    passages = list(corpus.values())
    longest = max(len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in passages)
    retriever = SEALRetriever(
        model, tokenizer, num_beams=BEAMS, ngram_length=min(NGRAM, longest), copying=COPYING, unigrams=0
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
    return byte_pair_tokenizer(load(json.loads(frozen)).task.corpus.values(), UNITS)
