"""The distribution of the next token after many prompts that begin alike.

The common beginning of the prompts is encoded once; its keys and values serve all of them. Only the last
position meets the unembedding. Prompts are tokenised whole, so that the split changes no token.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Prefix:
    """Tokens, and their keys and values per layer, each [1, heads, tokens, head dim]."""

    ids: tuple[int, ...]
    layers: tuple[tuple[Tensor, Tensor], ...]

    def cache(self, model: Any, rows: int, length: int) -> Any:
        """The first `length` tokens as a cache for `rows` continuations; no memory is copied."""
        from transformers import DynamicCache

        parts = [
            (k[:, :, :length].expand(rows, -1, -1, -1), v[:, :, :length].expand(rows, -1, -1, -1))
            for k, v in self.layers
        ]
        return DynamicCache(ddp_cache_data=parts, config=model.config)


def encode(tokenizer: Any, prompt: str) -> list[int]:
    """Token ids of a whole prompt, with what the tokenizer puts before a text."""
    return list(tokenizer(prompt)["input_ids"])


def label_tokens(tokenizer: Any, labels: Mapping[str, str], *, first_token: bool = False) -> dict[str, int]:
    """The token of each label's word.

    Raises ValueError for fewer than two labels, a word of no or several tokens (`first_token=True` takes the
    first of several), and two words with the same token.
    """
    if len(labels) < 2:
        raise ValueError(f"classification needs two labels, got {sorted(labels)}")
    found: dict[str, int] = {}
    for label, word in labels.items():
        ids = tokenizer(word, add_special_tokens=False)["input_ids"]
        if len(ids) == 0 or (len(ids) > 1 and not first_token):
            raise ValueError(
                f"the word {word!r} of label {label!r} is {len(ids)} tokens, not one; take another word"
                + (", or first_token=True" if ids else "")
            )
        if ids[0] in found.values():
            other = next(name for name, token in found.items() if token == ids[0])
            raise ValueError(f"labels {other!r} and {label!r} begin with the same token; take other words")
        found[label] = int(ids[0])
    return found


def check_length(model: Any, ids: Sequence[Sequence[int]]) -> None:
    """Raises ValueError where a prompt is longer than the model's context."""
    limit = getattr(model.config, "max_position_embeddings", None)
    longest = max(map(len, ids))
    if limit is not None and longest > limit:
        raise ValueError(f"a prompt has {longest} tokens, but the model's context holds {limit}")


@torch.no_grad()
def encode_prefix(model: Any, ids: Sequence[int]) -> Prefix | None:
    """Keys and values of a common beginning; None where the model keeps anything but plain ones."""
    from transformers.cache_utils import DynamicLayer

    if not ids:
        return None
    check_length(model, [ids])
    tokens = torch.tensor([list(ids)], device=model.device)
    cache = model(tokens, use_cache=True, **keep_last(model)).cache
    layers = getattr(cache, "layers", None)
    # Sliding windows and recurrent states cannot be cut at an earlier token.
    if not layers or any(type(layer) is not DynamicLayer for layer in layers):
        return None
    return Prefix(tuple(ids), tuple((layer.keys, layer.values) for layer in layers))


def next_token_logits(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    prefix: Prefix | None = None,
    batch_size: int = 32,
) -> Float[Tensor, "prompts vocabulary"]:
    """Logits of the token after each prompt, float32 (float64 for a float64 model).

    `prefix` is used as far as it agrees with every prompt. Without one, the prompts' own common beginning
    is encoded first. Prompts of similar length share a batch, padded on the left.
    Raises ValueError for an empty prompt or one longer than the model's context.
    """
    if not prompts:
        raise ValueError("no prompts")
    if any(not p for p in prompts):
        raise ValueError("a prompt has no tokens")
    check_length(model, prompts)
    spare = min(map(len, prompts)) - 1  # every prompt keeps a token that has to be encoded
    if prefix is None and len(prompts) > 1:
        shared = min(common_length(prompts), spare)
        prefix = encode_prefix(model, prompts[0][:shared]) if shared > 1 else None
    cached = 0 if prefix is None else min(common_length([*prompts, prefix.ids]), spare)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    out: list[Tensor] = [torch.empty(0)] * len(prompts)
    with torch.no_grad():
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            ids, mask = pad_left([prompts[i][cached:] for i in rows], model.device)
            inputs: dict[str, Any] = positions(mask, cached)
            if prefix is not None and cached:
                inputs["cache"] = prefix.cache(model, len(rows), cached)
            logits = model(ids, use_cache=cached > 0, **inputs, **keep_last(model)).logits[:, -1]
            for i, row in zip(rows, logits, strict=True):
                out[i] = row if row.dtype == torch.float64 else row.float()
    return torch.stack(out)


def common_length(prompts: Sequence[Sequence[int]]) -> int:
    """How many tokens all sequences begin with."""
    ordered = sorted(list(p) for p in prompts)
    low, high = ordered[0], ordered[-1]
    differ = (i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b)
    return next(differ, len(low) if len(low) < len(high) else len(high))


def pad_left(
    prompts: Sequence[Sequence[int]], device: torch.device | str | None = None
) -> tuple[Tensor, Tensor]:
    """Token ids and mask, [prompts, longest]; what stands in the padding is never attended to."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + list(p) for p in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
    return ids, mask


def positions(mask: Tensor, cached: int = 0) -> dict[str, Tensor]:
    """Mask and position of every token, after `cached` tokens that all rows share."""
    where = (mask.cumsum(-1) - 1).clamp(min=0) + cached
    whole = torch.cat([mask.new_ones(len(mask), cached), mask], dim=1)
    return {"attention_mask": whole, "position_ids": where}


def keep_last(model: Any) -> dict[str, int]:
    """`logits_to_keep=1` where the model knows it."""
    return {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
