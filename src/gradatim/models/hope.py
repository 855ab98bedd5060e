"""Hope: self-modifying memories and a continuum of slower ones, as a causal language model of Transformers.

"Nested Learning: The Illusion of Deep Learning Architectures" (Behrouz, Razaviyayn, Zhong, Mirrokni 2025,
arXiv 2512.24695). A block is

    h <- h + memory(norm(h));    h <- h + CMS(norm(h)),

with `SelfModifyingMemory` (fast: it changes with every token or chunk of tokens of its own input) and
`ContinuumMemory` (slow: a chain of networks, each written at a period of its own).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.utils.deprecation import deprecate_kwarg
from transformers.utils.generic import ModelOutput

from gradatim.models.continuum_memory import ContinuumMemory
from gradatim.models.delta_rule import DeltaRule
from gradatim.models.hope_attention import RotaryAttention
from gradatim.models.hope_cache import HopeCache, LayerState, pack_order, rearrange
from gradatim.models.hope_config import HopeConfig
from gradatim.models.self_modifying_memory import SelfModifyingMemory


@dataclass
class HopeCausalLMOutput(ModelOutput):
    """What a forward pass found.

    loss             mean cross-entropy of the labels
    logits           [batch, T, V]
    cache            the `HopeCache`, where one was used
    memory_state     one state per layer, after the last token; give it to the next call to read on
    hidden_states    [batch, time, D] of the embedding and every layer, where asked for
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    cache: Cache | None = None
    memory_state: tuple[LayerState, ...] | None = None
    hidden_states: tuple[Tensor, ...] | None = None


def make_mixer(config: HopeConfig) -> nn.Module:
    """The part of a block that mixes positions."""
    dim, heads = config.hidden_size, config.num_attention_heads
    if config.mixer == "attention":
        return RotaryAttention(dim, heads, config.rope_theta)
    if config.mixer in ("delta", "linear_attention"):
        return DeltaRule(dim, heads, config.mixer, config.beta_max, config.decay, config.conv_size)
    return SelfModifyingMemory(
        dim,
        heads,
        config.memory,
        (config.chunk_size[0], config.chunk_size[1]),
        config.decay,
        config.normalize_value,
        config.conv_size,
        delta_gradient=config.delta_gradient,
        momentum=config.momentum,
        hidden=config.memory_hidden_size,
        inner_keys=config.inner_keys,
        inner_values=config.inner_values,
        inner_rates=config.inner_rates,
        inner_queries=config.inner_queries,
    )


class HopeBlock(nn.Module):
    """h <- h + mixer(norm(h)); h <- h + CMS(norm(h))."""

    def __init__(self, config: HopeConfig) -> None:
        super().__init__()
        self.mixer_norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mixer = make_mixer(config)
        self.cms_norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.cms = ContinuumMemory(
            config.hidden_size,
            config.cms_periods,
            config.intermediate_size,
            config.cms_kind,  # type: ignore[arg-type]
            config.cms_activation,
            lr=config.cms_lr,
        )

    def forward(
        self, h: Tensor, state: LayerState | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, LayerState]:
        """[batch, time, D] -> [batch, time, D], and the mixer's state."""
        mixed, state_after = self.mixer(self.mixer_norm(h), state, mask)
        h = h + mixed
        return h + self.cms(self.cms_norm(h)), state_after


class HopeForCausalLM(PreTrainedModel, GenerationMixin):
    """Hope for text: works as any causal language model of Transformers.

    Its state has a fixed size per sample and is never shared by a batch; padded positions leave it untouched.
    `config.mixer` also gives Hope-Attention and the recurrent baselines.

    `seed` fixes the initial weights without touching the global random state.
    """

    config: HopeConfig
    config_class = HopeConfig
    base_model_prefix = "hope"
    supports_gradient_checkpointing = True
    _no_split_modules = ["HopeBlock"]  # noqa: RUF012
    _supports_sdpa = True
    _is_stateful = True
    _skip_keys_device_placement = ["cache", "memory_state"]  # noqa: RUF012
    _tied_weights_keys = {"lm_head.weight": "embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: HopeConfig, *, seed: int | None = None) -> None:
        super().__init__(config)
        with torch.random.fork_rng(devices=[], enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
            self.layers = nn.ModuleList(HopeBlock(config) for _ in range(config.num_hidden_layers))
            self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
            # Set by gradient_checkpointing_enable(), which looks for these two names.
            self.gradient_checkpointing = False
            self._gradient_checkpointing_func: Any = partial(checkpoint, use_reentrant=False)
            self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if isinstance(module, nn.Linear):
            init.normal_(module.weight, std=std)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=std)
        elif isinstance(module, nn.RMSNorm):
            init.ones_(module.weight)
        elif isinstance(module, ContinuumMemory) and module.mix is not None:
            init.constant_(module.mix, 1 / len(module.levels))
        elif isinstance(module, SelfModifyingMemory | DeltaRule):
            self._init_memory(module)

    def _init_memory(self, module: SelfModifyingMemory | DeltaRule) -> None:
        """As the memory starts itself: matrices by fan in, rates sigmoid(0) and sigmoid(4)."""
        # Whole tensors only: what a checkpoint has filled is marked on the tensor, not on its parts.
        init.ones_(module.norm)
        if module.conv is not None:
            taps = torch.zeros_like(module.conv)
            taps[:, -1] = 1.0
            init.copy_(module.conv, taps)
        rates = torch.zeros(module.num_heads, 2)
        rates[:, 1] = 4.0
        if isinstance(module, DeltaRule):
            init.copy_(module.rates.bias, rates.T.flatten())
            return
        init.copy_(module.rate_bias, rates)
        for name, weight in module.initial.items():
            spread = torch.full(weight.shape[1:], weight.shape[-1] ** -0.5)
            if name == "matrices" and not module.rule.normalize_value:
                spread[module.head_dim : 2 * module.head_dim] = 1 / module.head_dim
            init.copy_(weight, torch.randn(weight.shape) * spread)

    def get_input_embeddings(self) -> nn.Module:
        """The table of tokens."""
        return self.embed_tokens

    def set_input_embeddings(self, value: Any) -> None:
        """Replace that table."""
        self.embed_tokens = value

    def get_output_embeddings(self) -> nn.Module:
        """The output layer."""
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: Any) -> None:
        """Replace it."""
        self.lm_head = new_embeddings

    @deprecate_kwarg("past_key_values", "6.0.0", new_name="cache")
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        memory_state: Sequence[LayerState] | None = None,
        inputs_embeds: Float[Tensor, "batch time dim"] | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        logits_to_keep: int = 0,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> HopeCausalLMOutput | tuple[Any, ...]:
        """Logits of the token that follows each position.

        Args:
            input_ids: [batch, time], or `inputs_embeds` [batch, time, D].
            attention_mask: [batch, time] or [batch, stored + time]; 0 where a sample has no token, on any
                side. Such positions change no state, and their logits mean nothing.
            position_ids: not read: places are counted by the states.
            cache: a `HopeCache`, carried on in place.
            memory_state: of an earlier output, to read on from there; it is not changed. Detach it
                (`state.detach()`) where training should not reach back.
            labels: [batch, time] as `input_ids`; shifted here, -100 is not scored.
            logits_to_keep: only the last so many positions (0: all).

        Raises ValueError for input that does not fit; RuntimeError, with the token's index, where a memory is
        no longer finite.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        if cache is not None and memory_state is not None:
            raise ValueError("give cache or memory_state, not both")
        if cache is not None and not isinstance(cache, HopeCache):
            raise ValueError(f"cache must be a HopeCache, got {type(cache).__name__}")
        h = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        use_cache = self.config.use_cache and not self.training if use_cache is None else use_cache
        if cache is None and use_cache:
            cache = HopeCache(len(self.layers), None if memory_state is None else list(memory_state))
        before: Sequence[LayerState | None] = [None] * len(self.layers)
        if memory_state is not None:
            before = memory_state
        elif cache is not None:
            before = cache.states
        if len(before) != len(self.layers):
            raise ValueError(f"{len(before)} states for {len(self.layers)} layers")

        mask = self._present(attention_mask, h)
        order = None if mask is None else pack_order(mask)
        if mask is not None and order is not None:
            # Memories and chunks begin at a row's first token: padding goes to its end, and back afterwards.
            h, mask = rearrange(h, order), mask.gather(1, order)
        seen, states = [h], []
        for layer, state in zip(self.layers, before, strict=True):
            if self.gradient_checkpointing and self.training:
                h, new = self._gradient_checkpointing_func(layer, h, state, mask)
            else:
                h, new = layer(h, state, mask)
            seen.append(h)
            states.append(new)
        seen[-1] = h = self.norm(h)
        if order is not None:
            back = order.argsort(dim=1)
            h = rearrange(h, back)
            seen = [rearrange(s, back) for s in seen] if output_hidden_states else seen
        if cache is not None and use_cache is not False:
            cache.states, cache.seen = list(states), cache.seen + h.shape[1]

        logits = self.lm_head(h[:, -logits_to_keep:])
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs
            )
        output = HopeCausalLMOutput(
            loss=loss,
            logits=logits,
            cache=cache if use_cache else None,
            memory_state=tuple(states),
            hidden_states=tuple(seen) if output_hidden_states else None,
        )
        return output.to_tuple() if return_dict is False else output

    def stream(
        self, input_ids: Tensor, memory_state: Sequence[LayerState] | None = None, learn: bool = True
    ) -> tuple[Tensor, tuple[LayerState, ...]]:
        """Read a text once, and write the continuum memories while reading: learning at test time.

        The text is cut into the periods' common chunks. Each is read and predicted with the networks as they
        are; then every level whose chunk of C_l tokens has ended takes the gradient of the losses in it.
        `reset_memories` undoes it.

        Args:
            input_ids: [batch, time]. Networks are shared by the batch: give one text, or texts that may
                learn from each other.
            learn: False only reads.

        Returns the losses of the tokens 2 .. time, [batch, time - 1], each from before it was learned, and
        the states after the last token. Raises ValueError for a text of one token.
        """
        time = input_ids.shape[1]
        if time < 2:
            raise ValueError("a stream needs at least two tokens: the second is the first that is predicted")
        first_block = self.layers[0]
        assert isinstance(first_block, HopeBlock)
        step = first_block.cms.clocks.chunk
        losses, state = [], memory_state
        first = 0
        while first < time - 1:
            last = min(first + step, time - 1)
            with torch.set_grad_enabled(learn):
                out = self(input_ids[:, first:last], memory_state=state, use_cache=False)
                flat = nn.functional.cross_entropy(
                    out.logits.flatten(0, 1).float(),
                    input_ids[:, first + 1 : last + 1].flatten(),
                    reduction="none",
                )
            state = tuple(s.detach() for s in out.memory_state)
            losses.append(flat.detach().view(len(input_ids), -1))
            if learn:
                self._write(flat.view(len(input_ids), -1).mean(0).sum(), last - first)
            first = last
        assert state is not None
        return torch.cat(losses, dim=1), tuple(state)

    def _write(self, loss: Tensor, steps: int) -> None:
        memories = [layer.cms for layer in self.layers]
        named = [[dict(level.named_parameters()) for level in m.levels] for m in memories]  # type: ignore[union-attr]
        flat = [p for levels in named for level in levels for p in level.values()]
        found = iter(torch.autograd.grad(loss, flat, allow_unused=True))
        for memory, levels in zip(memories, named, strict=True):
            gradients = [{n: next(found) for n in level} for level in levels]
            memory.update(gradients, steps=steps)  # type: ignore[operator, union-attr]

    def reset_memories(self) -> None:
        """Undo all that `stream` has written."""
        for layer in self.layers:
            layer.cms.reset()  # type: ignore[operator, union-attr]

    def nested_levels(self) -> list[dict[str, Any]]:
        """What `gradatim.probes.nested_levels` shows of this model: name, context flow, objective, rule,
        rate.
        """
        rows: list[dict[str, Any]] = []
        for i, layer in enumerate(self.layers):
            for row in (*mixer_levels(layer.mixer), *layer.cms.nested_levels()):  # type: ignore[operator, union-attr, arg-type]
                rows.append({**row, "name": f"layer {i + 1}: {row['name']}"})
        return rows

    def _present(self, attention_mask: Tensor | None, h: Tensor) -> Tensor | None:
        """[batch, time] where tokens are, or None where they are everywhere."""
        if attention_mask is None:
            return None
        batch, time = h.shape[:2]
        if attention_mask.dim() != 2 or len(attention_mask) != batch or attention_mask.shape[1] < time:
            raise ValueError(
                f"attention_mask must be [{batch}, stored + {time}], got {tuple(attention_mask.shape)}"
            )
        mask = attention_mask[:, -time:].bool()
        return None if bool(mask.all()) else mask

    def _prepare_cache_for_generation(  # type: ignore[override]
        self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        if generation_config.cache_implementation is not None:
            raise ValueError("Hope has one kind of cache: leave cache_implementation out")
        given = model_kwargs.get("cache")
        if given is not None:
            given._is_user_defined = True  # `generate` must not read ahead with it
        elif generation_config.use_cache is not False:
            model_kwargs["cache"] = HopeCache(len(self.layers))


def mixer_levels(mixer: nn.Module) -> list[dict[str, Any]]:
    """Rows of `nested_levels` for what a block keeps of its context."""
    if isinstance(mixer, RotaryAttention):
        return [
            {
                "name": "attention",
                "context_flow": "tokens of the context (k, v)",
                "objective": "weighted regression of v on k",
                "update_rule": "keep every pair (no step)",
                "frequency": float("inf"),
                "per": "token",
            }
        ]
    if isinstance(mixer, DeltaRule):
        size = mixer.num_heads * mixer.head_dim**2
        rule = "delta rule" if mixer.delta else "add v k^T"
        return [
            {
                "name": "matrix memory",
                "context_flow": "tokens (k, v)",
                "objective": "||M k - v||²" if mixer.delta else "-<M k, v>",
                "update_rule": rule + (" with decay" if mixer.decay else ""),
                "frequency": 1.0,
                "per": "token",
                "numbers": size,
            }
        ]
    assert isinstance(mixer, SelfModifyingMemory)
    rule = "delta gradient descent" if mixer.rule.delta_gradient else "gradient descent"
    rule += " with momentum" if mixer.rule.momentum else ""
    rule += ", decay" if mixer.rule.decay else ""
    inner = {
        "k": mixer.rule.inner_keys,
        "v": mixer.rule.inner_values,
        "eta, alpha": mixer.rule.inner_rates,
        "q": mixer.rule.inner_queries,
    }
    written = ", ".join(name for name, moves in inner.items() if moves)
    lanes = mixer.initial_state(1).lanes
    whose = f"memories of {written}" if written else ""
    if not written:
        chunks = {"memory that is read": mixer.chunk_size[0]}
    elif mixer.chunk_size[0] == mixer.chunk_size[1]:
        shared = " sharing a matrix" if mixer.memory == "linear" else ""
        chunks = {f"{whose}, and the one that is read{shared}": mixer.chunk_size[0]}
    else:
        chunks = {whose: mixer.chunk_size[1], "memory that is read": mixer.chunk_size[0]}
    # The last lanes are those of the memory that is read.
    last = 1 if mixer.memory == "linear" else 2
    parts = [lanes] if len(chunks) == 1 else [lanes[:-last], lanes[-last:]]
    return [
        {
            "name": name,
            "context_flow": "tokens (k, own target M(v))",
            "objective": "||M(k) - M(v)||²",
            "update_rule": rule + (f", gradient every {chunk} tokens" if chunk > 1 else ""),
            "frequency": 1.0,
            "per": "token",
            "numbers": sum(lane.matrix.value.numel() for lane in part),
        }
        for (name, chunk), part in zip(chunks.items(), parts, strict=True)
    ]


__all__ = ["HopeBlock", "HopeCausalLMOutput", "HopeForCausalLM"]
