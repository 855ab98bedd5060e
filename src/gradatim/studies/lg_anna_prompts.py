"""What prompts do to an encoder that was never trained with them: MiniLM, zero-shot, over the docstrings."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from gradatim.bench.study import Scale
from gradatim.models.instruction_pooling import mean_after
from gradatim.models.text_encoder import load_text_encoder
from gradatim.studies.lg_anna_student import Bench, bench
from gradatim.tasks.in_context_prompt import InContextPrompt

TASK = "Given a one-line summary of a function, retrieve the documentation of that function."
LONGEST = 256
SHOWN = 32


def prompt_scores(kind: str, seed: int, scale: Scale) -> dict[str, float]:
    """MRR@10 of a seed's sample of test queries under a kind of prompt, in its two poolings.

    `kind` is none, instruction or examples. "mrr@10" leaves the prompt's tokens out of the mean;
    "mrr@10 prompt pooled" takes them in.
    """
    b = bench(scale["model"])
    rng = np.random.default_rng([seed, 23])
    asked = [b.test[i] for i in rng.permutation(len(b.test))[: int(scale["prompt_queries"])]]
    shown = [b.train[i] for i in rng.permutation(len(b.train))[:2]]
    encoder = encoder_of(scale["model"])
    prompt = InContextPrompt(
        TASK,
        [(b.task.queries[query], b.task.corpus[query]) for query in shown],
        k=2 if kind == "examples" else 0,
        max_example_tokens=SHOWN,
        ids=[(query, query) for query in shown],
        tokenizer=encoder.tokenizer,
    )
    prompt.check_leak(asked, asked)
    prefix = "" if kind == "none" else prompt.prefix()
    vectors: dict[bool, list[torch.Tensor]] = {True: [], False: []}
    for begin in range(0, len(asked), 16):
        texts = [b.task.queries[query] for query in asked[begin : begin + 16]]
        features = encoder.preprocess(texts, prompt=prefix or None)
        length = int(features.get("prompt_length", 0) or 0)
        with torch.inference_mode():
            states = encoder[0](features)["token_embeddings"]
        attended = features["attention_mask"].bool()
        for pooled in (True, False):
            skip = torch.full((len(texts),), 0 if pooled else length)
            vectors[pooled].append(F.normalize(mean_after(states, attended, skip), dim=1))
    return {
        "mrr@10": gold_mrr(b, torch.cat(vectors[False]), asked),
        "mrr@10 prompt pooled": gold_mrr(b, torch.cat(vectors[True]), asked),
        "prompt tokens": float(len(encoder.tokenizer(prefix, add_special_tokens=False)["input_ids"])),
    }


@lru_cache(maxsize=1)
def encoder_of(model: str) -> Any:
    """The encoder with room for two examples."""
    return load_text_encoder(model, max_seq_length=LONGEST)


def gold_mrr(b: Bench, queries: torch.Tensor, asked: list[str]) -> float:
    """MRR@10 of the own passage among all passages, which carry no prompt."""
    scores = queries @ b.miner_passages.T
    rows = torch.tensor([b.row_of[query] for query in asked])
    rank = (scores > scores.gather(1, rows[:, None])).sum(dim=1) + 1
    return float(torch.where(rank <= 10, 1.0 / rank, 0.0).mean())
