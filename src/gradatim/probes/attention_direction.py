r"""The key-query direction of the attention heads of a trained model, and the inputs they saw.

Per head W = W_K^T W_Q [d, d], so that the logits of token x for query z are x^T W z. Biases, rotary
positions, the 1/sqrt(d_head) scale and the residual stream are outside the theory: an analysis of a real
model is exploratory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn


@dataclass(frozen=True)
class HeadDirections:
    """`weight` [heads, d, d] and `inputs` [batch, t, d], the hidden states that entered the layer."""

    weight: Float[Tensor, "h d d"]
    inputs: Float[Tensor, "b t d"]


def attention_direction(model: nn.Module, batch: Any, layer: str) -> HeadDirections:
    """Read the heads of `model.get_submodule(layer)` and capture its input on `batch`.

    `layer` names an `nn.MultiheadAttention`, or an attention module of Transformers: `q_proj`/`k_proj`
    (grouped queries included), `query`/`key`, or a fused `c_attn`. `batch` is a mapping of keyword arguments,
    a tuple of positional ones, or one tensor. Nothing is trained or changed.

    Raises ValueError for a layer that does not exist, holds no weights of a known form, or did not run.
    """
    try:
        module = model.get_submodule(layer)
    except AttributeError as e:
        names = [n for n, m in model.named_modules() if _known(m)]
        raise ValueError(f"no layer {layer!r}; attention layers: {', '.join(names) or 'none found'}") from e
    weight = _heads(module, layer)
    seen: list[Tensor] = []

    def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = args[0] if args else kwargs.get("hidden_states", kwargs.get("query"))
        if isinstance(hidden, Tensor):
            seen.append(hidden.detach())

    handle = module.register_forward_pre_hook(keep, with_kwargs=True)
    training = model.training
    try:
        model.eval()
        with torch.no_grad():
            if isinstance(batch, Mapping):
                model(**batch)
            else:
                model(*batch) if isinstance(batch, tuple) else model(batch)
    finally:
        handle.remove()
        model.train(training)
    if not seen:
        raise ValueError(f"layer {layer!r} did not run on this batch")
    inputs = seen[0]
    if isinstance(module, nn.MultiheadAttention) and not module.batch_first and inputs.dim() == 3:
        inputs = inputs.transpose(0, 1)
    return HeadDirections(weight.detach().clone(), inputs)


def _known(module: nn.Module) -> bool:
    pairs = (("q_proj", "k_proj"), ("query", "key"))
    if isinstance(module, nn.MultiheadAttention) or hasattr(module, "c_attn"):
        return True
    return any(hasattr(module, q) and hasattr(module, k) for q, k in pairs)


def _heads(module: Any, layer: str) -> Tensor:
    if isinstance(module, nn.MultiheadAttention):
        if module.in_proj_weight is not None:
            q, k, _ = module.in_proj_weight.chunk(3)
        else:
            q, k = module.q_proj_weight, module.k_proj_weight
        return _per_head(q, k, module.embed_dim // module.num_heads)
    if hasattr(module, "c_attn"):
        # GPT-2's Conv1D keeps [in, 3 out], the transpose of a linear layer.
        q, k, _ = module.c_attn.weight.T.chunk(3)
        return _per_head(q, k, int(module.head_dim))
    for query, key in (("q_proj", "k_proj"), ("query", "key")):
        if hasattr(module, query) and hasattr(module, key):
            q, k = getattr(module, query).weight, getattr(module, key).weight
            size = getattr(module, "head_dim", None) or getattr(module, "attention_head_size", None)
            if size is None:
                raise ValueError(f"layer {layer!r} does not say its head size (head_dim)")
            return _per_head(q, k, int(size))
    raise ValueError(
        f"layer {layer!r} ({type(module).__name__}) has no query and key weights of a known form"
    )


def _per_head(q: Tensor, k: Tensor, size: int) -> Float[Tensor, "h d d"]:
    queries = q.view(-1, size, q.shape[-1])
    keys = k.view(-1, size, k.shape[-1])
    # Grouped queries: several query heads share one key head.
    keys = keys.repeat_interleave(len(queries) // len(keys), dim=0)
    return keys.mT @ queries
