"""Encoding many texts that begin alike: read the common beginning once, keep its keys and values.

With causal attention the states of a prefix do not depend on what follows. For a prefix of P tokens and texts
of L more, the work per text falls from P + L tokens to L, and the vectors are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-8}


def encode_with_prefix(
    model: SentenceTransformer,
    texts: Sequence[str],
    prompt: str | None = None,
    prompt_name: str | None = None,
    batch_size: int = 32,
    check: bool = True,
) -> Float[np.ndarray, "texts dim"]:
    """What `model.encode(texts, prompt=prompt)` gives, for a causal decoder such as `causal_embedder`'s.

    The prefix is the longest common beginning of the texts' own tokens (prompt included), so that a token
    that spans the seam between prompt and text is no concern. `check` compares one text with the plain way.

    Raises ValueError for no texts, an unknown prompt name, a prompt that fills max_seq_length, and a model
    whose attention is not causal or that keeps no keys and values.
    """
    if not len(texts):
        raise ValueError("no texts to encode")
    if prompt is None and prompt_name is not None:
        if prompt_name not in model.prompts:
            raise ValueError(f"prompt_name={prompt_name!r} is none of {sorted(model.prompts)}")
        prompt = model.prompts[prompt_name]
    rows, prompt_length = _tokens(model, texts, prompt)
    prefix = _common(rows)
    if getattr(model[1], "pooling_mode", "lasttoken") != "lasttoken":
        # A mean needs the states of every token it covers: share no more than the prompt it leaves out.
        prefix = 0 if getattr(model[1], "include_prompt", True) else min(prefix, prompt_length)
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            cache = _read(model, rows[0][:prefix]) if prefix else None
            order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
            found: list[Tensor | None] = [None] * len(rows)
            for begin in range(0, len(order), batch_size):
                block = order[begin : begin + batch_size]
                vectors = _encode(model, [rows[i][prefix:] for i in block], cache, prefix, prompt_length)
                for i, vector in zip(block, vectors, strict=True):
                    found[i] = vector
            result = torch.stack([v for v in found if v is not None]).cpu()
            result = result if result.dtype == torch.float64 else result.float()
    finally:
        model.train(was_training)
    if check and cache is not None:
        _compare(model, texts[order[-1]], prompt, result[order[-1]])
    return result.numpy()


def _tokens(model: Any, texts: Sequence[str], prompt: str | None) -> tuple[list[list[int]], int]:
    """Token ids of every text with its prompt, and how many tokens the prompt has."""
    rows: list[list[int]] = []
    length = 0
    for begin in range(0, len(texts), 1024):
        features = model.preprocess(list(texts[begin : begin + 1024]), prompt=prompt)
        length = int(features.get("prompt_length", 0) or 0)
        rows += [
            ids[mask.bool()].tolist()
            for ids, mask in zip(features["input_ids"], features["attention_mask"], strict=True)
        ]
    limit = model.max_seq_length
    if prompt is not None and limit is not None and length >= limit - 1:
        raise ValueError(
            f"the prompt has {length} tokens and max_seq_length is {limit}: nothing of the text is left"
        )
    return rows, length


def _common(rows: Sequence[list[int]]) -> int:
    """Length of the common beginning; at least one token of every row is left out of it."""
    first, last = min(rows), max(rows)  # in lexicographic order the extremes differ earliest
    shared = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    return min(shared, min(len(row) for row in rows) - 1)


def _read(model: Any, prefix: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    network = model[0].model
    ids = torch.tensor([list(prefix)], device=model.device)
    kept = getattr(network(input_ids=ids, use_cache=True), "cache", None)
    if kept is None:
        raise ValueError(
            f"{type(network).__name__} keeps no keys and values; only causal decoders can share a prefix"
        )
    return [(layer.keys, layer.values) for layer in kept.layers]


def _encode(
    model: Any,
    rest: Sequence[Sequence[int]],
    cache: list[tuple[Tensor, Tensor]] | None,
    prefix: int,
    prompt_length: int,
) -> Float[Tensor, "block dim"]:
    from transformers import DynamicCache

    device, width, count = model.device, max(len(row) for row in rest), len(rest)
    ids = torch.zeros(count, width, dtype=torch.long, device=device)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rest):
        ids[i, : len(row)] = torch.tensor(row, device=device)
        mask[i, : len(row)] = 1
    network = model[0].model
    options: dict[str, Any] = {}
    if cache is not None:
        expanded = [(k.expand(count, -1, -1, -1), v.expand(count, -1, -1, -1)) for k, v in cache]
        options["cache"] = DynamicCache(expanded, config=network.config)
        options["use_cache"] = True
    states = network(
        input_ids=ids,
        attention_mask=torch.cat([mask.new_ones(count, prefix), mask], dim=1),
        position_ids=torch.arange(prefix, prefix + width, device=device).expand(count, -1),
        **options,
    ).last_hidden_state
    features: dict[str, Any] = {
        "token_embeddings": states,
        "attention_mask": mask,
        "prompt_length": max(0, prompt_length - prefix),
    }
    for module in list(model)[1:]:
        features = module(features)
    return features["sentence_embedding"]


def _compare(model: Any, text: str, prompt: str | None, ours: Tensor) -> None:
    plain = model.encode([text], prompt=prompt, convert_to_tensor=True, show_progress_bar=False)[0].to(ours)
    tolerance = TOLERANCE.get(next(model.parameters()).dtype, 3e-2)
    if not torch.allclose(ours, plain, atol=tolerance * float(plain.abs().max()), rtol=0):
        raise ValueError(
            f"sharing the prefix changes a vector by {float((ours - plain).abs().max()):.2g}: the model's "
            "attention is not causal; use encode"
        )
