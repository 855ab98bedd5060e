"""The keys of a query that decoding does not give: its own word n-grams, and single tokens."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise, product
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from gradatim.inference.beam_model import BeamModel
from gradatim.inference.index_text import clean, token_lists
from gradatim.inference.substring_beams import Key
from gradatim.inference.substring_index import SubstringIndex, counts, ranges_of_many

MOST_WORDS = 100
"""Words of a query whose n-grams are tried."""


def query_ngrams(query: str, tokenizer: Any, longest: int = 3) -> list[tuple[int, ...]]:
    """Token ids of the query's n-grams of up to 3 words, each with every choice of capital first letters."""
    words = clean(query).split()[:MOST_WORDS]
    forms = [sorted({word, word[0].lower() + word[1:], word[0].upper() + word[1:]}) for word in words]
    texts = dict.fromkeys(
        " ".join(choice)
        for n in range(1, longest + 1)
        for i in range(len(words) - n + 1)
        for choice in product(*forms[i : i + n])
    )
    return list(dict.fromkeys(tuple(ids) for ids in token_lists(texts, tokenizer) if ids))


def occurring(
    index: SubstringIndex, ngrams: Sequence[tuple[int, ...]]
) -> tuple[list[tuple[int, ...]], Int[np.ndarray, " found"]]:
    """Those n-grams that are in the corpus, and their counts."""
    found = counts(ranges_of_many(index, ngrams)) if ngrams else np.empty(0, dtype=np.int64)
    return [ngram for ngram, count in zip(ngrams, found, strict=True) if count], found[found > 0]


@torch.no_grad()
def ngram_log_probs(
    model: Any,
    input_ids: Int[Tensor, "queries length"],
    attention_mask: Tensor | None,
    ngrams: Sequence[Sequence[tuple[int, ...]]],
    decoder_input_ids: Sequence[int] | None = None,
) -> list[list[float]]:
    """log P(n|q) of given n-grams after each prompt, by teacher forcing: all of them a token at a time."""
    flat = [ngram for of_query in ngrams for ngram in of_query]
    query = np.repeat(np.arange(len(ngrams)), [len(of_query) for of_query in ngrams])
    lengths = np.array([len(ngram) for ngram in flat], dtype=np.int64)
    total = np.zeros(len(flat))
    if len(flat):
        room = int(lengths.max())
        runner = BeamModel(model, input_ids, attention_mask, decoder_input_ids=decoder_input_ids, room=room)
        log_probs = runner.first()
        alive, parents = np.arange(len(flat)), query
        for depth in range(room):
            tokens = np.array([flat[i][depth] for i in alive], dtype=np.int64)
            on: Any = log_probs.device
            rows = torch.from_numpy(parents).to(on)
            total[alive] += log_probs[rows, torch.from_numpy(tokens).to(on)].double().cpu().numpy()
            more = lengths[alive] > depth + 1
            if not more.any():
                break
            log_probs = runner.step(torch.from_numpy(parents[more]), torch.from_numpy(tokens[more]))
            alive, parents = alive[more], np.arange(int(more.sum()))
    bounds = np.cumsum([0, *(len(of_query) for of_query in ngrams)])
    return [total[a:b].tolist() for a, b in pairwise(bounds.tolist())]


def copied_log_probs(log_probs: Sequence[float], words: int, copying: float) -> list[float]:
    """log((1 - c) P(n|q) + c / words): of a generator that copies its query with probability c."""
    with np.errstate(divide="ignore"):
        mixed = np.logaddexp(np.log1p(-copying) + np.asarray(log_probs), np.log(copying / max(1, words)))
    return np.minimum(mixed, 0.0).tolist()


def unigram_keys(
    index: SubstringIndex, log_probs: Float[np.ndarray, " vocab"], most: int, barred: Sequence[int] = ()
) -> list[Key]:
    """The `most` likeliest first tokens that are in the corpus, as keys of one token."""
    if most < 1:
        return []
    _, tokens, numbers = index.next_tokens(index.roots(1), 0)
    kept = (tokens < len(log_probs)) & ~np.isin(tokens, list(barred))
    tokens, numbers = tokens[kept], numbers[kept]
    best = np.argsort(-log_probs[tokens], kind="stable")[:most]
    return [Key((int(tokens[i]),), float(log_probs[tokens[i]]), int(numbers[i])) for i in best]
