"""The energy function of the language model: a context, a prediction per position -> one energy each."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers.cache_utils import Cache, DynamicLayer

from gradatim.models.energy_attention import EnergyBlock, KeyValues, rotary
from gradatim.models.energy_config import EnergyTransformerConfig
from gradatim.models.twice_differentiable import RMSNorm


class EnergyBody(nn.Module):
    """E_r(x, y) of prediction r given the tokens x_0 .. x_r, for all r at once.

    Everything an energy depends on is: the keys and values of the context (`context`), the embedded
    prediction (`energies`), and, where landscapes are indexed by the step of descent, that index. Nothing a
    prediction does reaches the context or another prediction.
    """

    def __init__(self, config: EnergyTransformerConfig) -> None:
        super().__init__()
        width, kind = config.hidden_size, config.step_embedding
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, width, padding_idx=config.pad_token_id)
        modulated, at_zero = kind.startswith("adaln"), kind == "adaln_zero"
        self.layers = nn.ModuleList(
            EnergyBlock(
                width,
                config.num_attention_heads,
                config.intermediate_size,
                config.rms_norm_eps,
                modulated,
                at_zero,
            )
            for _ in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(width, eps=config.rms_norm_eps)
        self.energy_head = nn.Linear(width, 1, bias=False)
        self.embed_steps = nn.Embedding(config.max_trained_steps, width) if kind != "none" else None
        self.final_modulation = nn.Linear(width, 2 * width) if modulated else None
        for linear in (self.energy_head, self.final_modulation):
            # Read where weights are set: each tensor is given its start once, by its own module.
            if linear is not None:
                linear.starts_at_zero = at_zero  # type: ignore[assignment]
        # Set by PreTrainedModel.gradient_checkpointing_enable(), which looks for these two names.
        self.gradient_checkpointing = False
        self._gradient_checkpointing_func: Any = partial(checkpoint, use_reentrant=False)

    def context(
        self,
        embeddings: Float[Tensor, "batch time width"],
        positions: Int[Tensor, "batch time"],
        visible: Bool[Tensor, "#batch 1 time all_time"],
        *,
        step: int,
        cache: Cache | None = None,
    ) -> list[KeyValues]:
        """Keys and values of every layer, [batch, heads, (1 +) all_time, size]: what `energies` reads.

        `visible` says which tokens (stored ones first) a row may look at. The last block's attention and
        network are never run: nothing reads what they would add.
        """
        prefix = self._prefix(step)
        size = embeddings.shape[-1] // self.config.num_attention_heads
        rotation = rotary(positions + bool(prefix), size, self.config.rope_theta, embeddings.dtype)
        time, all_time = visible.shape[-2:]
        # A padded token sees itself: a row without any key has no softmax.
        own = torch.eye(time, dtype=torch.bool, device=visible.device)
        mask = visible | F.pad(own, (all_time - time, 0))
        if prefix:
            mask = F.pad(mask, (1, 0), value=True)
        offset = 0 if self.config.shares_context else step * len(self.layers)
        modulator = self._modulator(step)
        known: list[KeyValues] = []
        h = embeddings
        for i, layer in enumerate(self.layers):
            assert isinstance(layer, EnergyBlock)
            keys, values = layer.keys(h, rotation, modulator)
            if cache is not None:
                # generate() makes a cache of one set of layers; every step-indexed landscape needs its own.
                while len(cache.layers) <= offset + i:
                    cache.layers.append(DynamicLayer())
                keys, values = cache.update(keys, values, offset + i)
            if prefix:
                first, second = (x.expand(len(h), -1, -1, -1) for x in prefix[i])
                keys, values = torch.cat([first, keys], dim=2), torch.cat([second, values], dim=2)
            known.append((keys, values))
            if i < len(self.layers) - 1:
                h = self._run(layer.context, h, rotation, (keys, values), mask, modulator)
        return known

    def energies(
        self,
        e: Float[Tensor, "batch candidates time width"],
        known: Sequence[KeyValues],
        positions: Int[Tensor, "batch time"],
        visible: Bool[Tensor, "#batch 1 time all_time"],
        *,
        step: int,
        by_hand: bool = False,
    ) -> Float[Tensor, "batch candidates time"]:
        """Energies, in float32 or wider; `positions` are those of the last token each prediction sees."""
        prefixed = self.config.step_embedding == "prefix"
        weight = self.energy_head.weight
        size = e.shape[-1] // self.config.num_attention_heads
        rotation = rotary(positions + 1 + prefixed, size, self.config.rope_theta, weight.dtype)
        mask = F.pad(visible, (1, 0), value=True) if prefixed else visible
        modulator = self._modulator(step)
        h = e.to(weight.dtype)
        if self.config.step_embedding == "prediction" and self.embed_steps is not None:
            h = h + self.embed_steps.weight[step]
        for i, layer in enumerate(self.layers):
            assert isinstance(layer, EnergyBlock)
            arguments = (h, rotation, known[i], mask, modulator, by_hand)
            # A checkpointed block would run again outside the dual level, without its tangents.
            h = layer.predictions(*arguments) if by_hand else self._run(layer.predictions, *arguments)
        h = self.norm(h)
        if self.final_modulation is not None and modulator is not None:
            shift, scale = self.final_modulation(F.silu(modulator)).chunk(2, dim=-1)
            h = h * (1 + scale) + shift
        wide = torch.promote_types(weight.dtype, torch.float32)
        with torch.autocast(h.device.type, enabled=False):
            return (h.to(wide) @ weight[0].to(wide)).to(wide)

    def _prefix(self, step: int) -> list[KeyValues]:
        """Keys and values of the step's own token, which sees only itself; empty where there is none."""
        if self.config.step_embedding != "prefix":
            return []
        assert self.embed_steps is not None
        h = self.embed_steps.weight[step].view(1, 1, -1)
        start = torch.zeros(1, 1, dtype=torch.int64, device=h.device)
        rotation = rotary(
            start, h.shape[-1] // self.config.num_attention_heads, self.config.rope_theta, h.dtype
        )
        found: list[KeyValues] = []
        for layer in self.layers:
            assert isinstance(layer, EnergyBlock)
            found.append(layer.keys(h, rotation, None))
            h = layer.context(h, rotation, found[-1], None, None)
        return found

    def _modulator(self, step: int) -> Tensor | None:
        if self.final_modulation is None or self.embed_steps is None:
            return None
        return self.embed_steps.weight[step]

    def _run(self, function: Any, *args: Any) -> Tensor:
        if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
            # Only the non-reentrant form can be differentiated twice.
            out: Tensor = self._gradient_checkpointing_func(function, *args, use_reentrant=False)
            return out
        direct: Tensor = function(*args)
        return direct
