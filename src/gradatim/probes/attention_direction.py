r"""The key-query direction of the attention heads of a trained model, and the inputs they saw.

Per head W = W_K^T W_Q [d, d], so that the logits of token x for query z are x^T W z. Biases, rotary
positions, normalised queries and keys, the 1/sqrt(d_head) scale and the residual stream are outside the
theory of one attention layer (arXiv 2308.16898): an analysis of a real model is exploratory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from gradatim.probes.attention_alignment import directional_alignment
from gradatim.probes.attention_selection import first_largest
from gradatim.probes.attention_svm import AttentionSVMResult, attention_svm

# Names of separate query and key projections, as nn.Linear modules.
PAIRS = (("q_proj", "k_proj"), ("query", "key"), ("q_lin", "k_lin"), ("q", "k"))


@dataclass(frozen=True)
class HeadAlignment:
    """`cosine` between a head's W and the SVM of the tokens it looks at most, `selected` [b]."""

    cosine: float
    selected: Int[Tensor, " b"]
    svm: AttentionSVMResult


@dataclass(frozen=True)
class HeadDirections:
    """What one attention layer compares.

    `weight` [heads, d, e]; `inputs` [b, t, d] and `queries` [b, s, e] are the hidden states that its keys and
    its queries are made of (the same tensor in self-attention). `outside_theory` names what else enters the
    layer's logits and not `weight`.
    """

    weight: Float[Tensor, "h d e"]
    inputs: Float[Tensor, "b t d"]
    queries: Float[Tensor, "b s e"]
    outside_theory: tuple[str, ...]

    def alignment(
        self,
        head: int,
        *,
        position: int = -1,
        norm: str = "nuclear",
        key_padding_mask: Bool[Tensor, "b t"] | None = None,
        causal: bool = False,
    ) -> HeadAlignment:
        """How far W of `head` points along the SVM of the tokens that its own logits prefer.

        One constraint set per sequence, for the query at `position`; `causal` leaves out the tokens after
        it. Raises what `attention_svm` raises, InfeasibleError where no direction separates those tokens.
        """
        weight = self.weight[head].double()
        x, z = self.inputs.double(), self.queries[:, position].double()
        padding = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
        if key_padding_mask is not None:
            padding = padding | key_padding_mask
        if causal:
            last = position % self.queries.shape[1]
            padding = padding | (torch.arange(x.shape[1], device=x.device) > last)
        logits = torch.einsum("btd,bd->bt", x, z @ weight.T).masked_fill(padding, -torch.inf)
        selected = first_largest(logits)
        svm = attention_svm(x, z, selected, norm=norm, key_padding_mask=padding)
        return HeadAlignment(float(directional_alignment(weight, svm.weight)), selected, svm)


def attention_direction(model: nn.Module, batch: Any, layer: str) -> HeadDirections:
    """Read the heads of `model.get_submodule(layer)` and capture its inputs on `batch`.

    `layer` names an `nn.MultiheadAttention`, or an attention module of Transformers with separate
    projections (`q_proj`/`k_proj` with grouped queries, `query`/`key`, `q_lin`/`k_lin`, `q`/`k`) or fused
    ones (`c_attn`, `query_key_value`, `qkv_proj`). `batch` is a mapping of keyword arguments, a tuple of
    positional ones, or one tensor. Nothing is trained or changed.

    Raises ValueError for a layer that does not exist, holds no weights of a known form, or did not run.
    """
    try:
        module = model.get_submodule(layer)
    except AttributeError as e:
        names = [n for n, m in model.named_modules() if _known(m)]
        raise ValueError(f"no layer {layer!r}; attention layers: {', '.join(names) or 'none found'}") from e
    weight, outside = _heads(module, layer)
    seen: list[tuple[Tensor, Tensor]] = []

    def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        named = dict(zip(("query", "key"), args, strict=False)) | kwargs
        query = named.get("query", named.get("hidden_states"))
        if isinstance(module, nn.MultiheadAttention):
            key = named.get("key")
        else:
            # Transformers passes another sequence only for cross-attention.
            key = next(
                (
                    kwargs[n]
                    for n in ("encoder_hidden_states", "key_value_states")
                    if kwargs.get(n) is not None
                ),
                query,
            )
        if isinstance(query, Tensor) and isinstance(key, Tensor):
            seen.append((query.detach(), key.detach()))

    handle = module.register_forward_pre_hook(keep, with_kwargs=True)
    training = {m: m.training for m in model.modules()}
    try:
        model.eval()
        with torch.no_grad():
            if isinstance(batch, Mapping):
                model(**batch)
            else:
                model(*batch) if isinstance(batch, tuple) else model(batch)
    finally:
        handle.remove()
        for m, mode in training.items():
            m.training = mode
    if not seen:
        raise ValueError(f"layer {layer!r} did not run on this batch")
    queries, inputs = seen[0]
    if inputs.dim() == 2:
        queries, inputs = queries.unsqueeze(0), inputs.unsqueeze(0)
    elif isinstance(module, nn.MultiheadAttention) and not module.batch_first:
        queries, inputs = queries.transpose(0, 1), inputs.transpose(0, 1)
    return HeadDirections(weight.detach().clone(), inputs, queries, outside)


def _known(module: nn.Module) -> bool:
    if isinstance(module, nn.MultiheadAttention):
        return True
    fused = any(hasattr(module, name) for name in ("c_attn", "query_key_value", "qkv_proj"))
    return fused or any(hasattr(module, q) and hasattr(module, k) for q, k in PAIRS)


def _heads(module: Any, layer: str) -> tuple[Float[Tensor, "h d e"], tuple[str, ...]]:
    """Weights per head, and what enters the logits besides them."""
    outside = ["scale"]
    if isinstance(module, nn.MultiheadAttention):
        if module.in_proj_weight is not None:
            q, k, _ = module.in_proj_weight.chunk(3)
        else:
            q, k = module.q_proj_weight, module.k_proj_weight
        if module.in_proj_bias is not None:
            outside.append("bias")
        if module.bias_k is not None or module.add_zero_attn:
            outside.append("added key")
        return _per_head(q, k, module.embed_dim // module.num_heads), tuple(outside)
    q, k, bias, size = _projections(module, layer)
    if bias:
        outside.append("bias")
    if any(hasattr(module, name) for name in ("q_norm", "k_norm", "q_layernorm", "k_layernorm")):
        outside.append("normalised queries and keys")
    rotary = hasattr(module, "rotary_emb") or hasattr(module, "rotary_ndims")
    config = getattr(module, "config", None)
    if rotary or hasattr(config, "rope_theta") or hasattr(config, "rope_parameters"):
        outside.append("rotary position")
    if getattr(module, "has_relative_attention_bias", False):
        outside.append("relative position bias")
    return _per_head(q, k, size), tuple(outside)


def _projections(module: Any, layer: str) -> tuple[Tensor, Tensor, bool, int]:
    """W_Q and W_K [rows, d], whether they have biases, and the rows of one head."""
    for query, key in PAIRS:
        if hasattr(module, query) and hasattr(module, key):
            q, k = getattr(module, query), getattr(module, key)
            return q.weight, k.weight, q.bias is not None or k.bias is not None, _head_size(module, layer, q)
    if hasattr(module, "c_attn"):
        # GPT-2's Conv1D keeps [in, 3 out], the transpose of a linear layer.
        fused = module.c_attn
        q, k, _ = fused.weight.T.chunk(3)
        return q, k, True, _head_size(module, layer, None)
    if hasattr(module, "query_key_value"):
        fused = module.query_key_value
        size = _head_size(module, layer, None)
        if fused.weight.shape[0] % (3 * size):
            raise ValueError(f"layer {layer!r}: query_key_value with shared keys is not supported")
        # GPT-NeoX keeps query, key and value of one head together.
        q, k, _ = fused.weight.view(-1, 3, size, fused.weight.shape[1]).unbind(1)
        return q.flatten(0, 1), k.flatten(0, 1), fused.bias is not None, size
    if hasattr(module, "qkv_proj"):
        fused = module.qkv_proj
        size = _head_size(module, layer, None)
        config = getattr(module, "config", None)
        heads = getattr(config, "num_attention_heads", None)
        shared = getattr(config, "num_key_value_heads", heads)
        if heads is None or shared is None or fused.weight.shape[0] != size * (heads + 2 * shared):
            raise ValueError(f"layer {layer!r} does not say how qkv_proj divides into heads")
        q, k, _ = fused.weight.split([size * heads, size * shared, size * shared])
        return q, k, fused.bias is not None, size
    raise ValueError(
        f"layer {layer!r} ({type(module).__name__}) has no query and key weights of a known form"
    )


def _head_size(module: Any, layer: str, query: Any) -> int:
    for name in ("head_dim", "attention_head_size", "head_size", "key_value_proj_dim"):
        size = getattr(module, name, None)
        if isinstance(size, int):
            return size
    for name in ("num_heads", "n_heads", "num_attention_heads"):
        heads = getattr(module, name, None)
        if isinstance(heads, int) and query is not None:
            return int(query.weight.shape[0]) // heads
    raise ValueError(f"layer {layer!r} does not say its head size (head_dim)")


def _per_head(q: Tensor, k: Tensor, size: int) -> Float[Tensor, "h d e"]:
    """W_K^T W_Q of every head; grouped queries share one key head among several."""
    queries = q.reshape(-1, size, q.shape[-1])
    keys = k.reshape(-1, size, k.shape[-1])
    keys = keys.repeat_interleave(len(queries) // len(keys), dim=0)
    return keys.mT @ queries
