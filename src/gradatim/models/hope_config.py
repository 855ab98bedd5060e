"""Sizes and switches of Hope."""

from __future__ import annotations

from typing import Any

# Not from the top of `transformers`: this module is imported while that package's own tables are being built.
from transformers.configuration_utils import PreTrainedConfig

MIXERS = ("self_modifying", "attention", "delta", "linear_attention")


class HopeConfig(PreTrainedConfig):
    """Sizes and switches of a `HopeForCausalLM`.

    "Nested Learning: The Illusion of Deep Learning Architectures" (2025, arXiv 2512.24695) publishes no layer
    counts, chunk sizes or rates of Hope: the defaults are ours.

    Args:
        vocab_size, hidden_size, num_hidden_layers, num_attention_heads, rms_norm_eps, rope_theta,
            initializer_range, tie_word_embeddings: as in `LlamaConfig`.
        intermediate_size: hidden units of each level of the continuum memory; None means
            4 * hidden_size / number of levels, so that all levels together are as large as one network.
        mixer: "self_modifying" is Hope; "attention" is Hope-Attention; "delta" and "linear_attention" put
            `DeltaRule` in its place (with one level: a recurrent baseline).
        memory, chunk_size, decay, normalize_value, conv_size, delta_gradient, momentum, memory_hidden_size,
            inner_keys, inner_values, inner_rates, inner_queries: of `SelfModifyingMemory`. Chunks are
            (memory that is read, other memories). `decay` and `conv_size` are those of the delta rule too.
        beta_max: of the delta rule.
        cms_periods: C_l of the continuum memory's levels, in steps of training, or tokens of `stream`.
        cms_kind, cms_activation: of `ContinuumMemory`.
        cms_lr: rate of writes in `stream`. Training by an optimizer does not read it.

    Raises ValueError for an unknown choice or an impossible size.
    """

    model_type = "gradatim_hope"
    keys_to_ignore_at_inference = ["cache", "memory_state"]  # noqa: RUF012

    def __init__(
        self,
        vocab_size: int = 32_000,
        hidden_size: int = 512,
        num_hidden_layers: int = 6,
        num_attention_heads: int = 8,
        intermediate_size: int | None = None,
        mixer: str = "self_modifying",
        memory: str = "linear",
        chunk_size: tuple[int, int] | list[int] = (16, 16),
        decay: bool = True,
        normalize_value: bool = True,
        conv_size: int = 4,
        delta_gradient: bool = True,
        momentum: float = 0.0,
        memory_hidden_size: int | None = None,
        inner_keys: bool = True,
        inner_values: bool = True,
        inner_rates: bool = True,
        inner_queries: bool = False,
        beta_max: float = 1.0,
        cms_periods: tuple[int, ...] | list[int] = (1, 8, 64),
        cms_kind: str = "sequential",
        cms_activation: str = "gelu",
        cms_lr: float = 1e-3,
        rms_norm_eps: float = 1e-5,
        rope_theta: float = 10_000.0,
        initializer_range: float = 0.02,
        use_cache: bool = True,
        tie_word_embeddings: bool = False,
        pad_token_id: int | None = None,
        bos_token_id: int | None = None,
        eos_token_id: int | None = None,
        **kwargs: Any,
    ) -> None:
        sizes = {
            "vocab_size": vocab_size,
            "hidden_size": hidden_size,
            "num_hidden_layers": num_hidden_layers,
            "num_attention_heads": num_attention_heads,
            "the number of cms_periods": len(cms_periods),
        }
        for name, value in sizes.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if mixer not in MIXERS:
            raise ValueError(f"mixer must be one of {', '.join(MIXERS)}, got {mixer!r}")
        if hidden_size % num_attention_heads:
            raise ValueError(f"hidden_size {hidden_size} cannot be divided among {num_attention_heads} heads")
        if mixer == "attention" and hidden_size // num_attention_heads % 2:
            raise ValueError("rotary positions need heads of even size: change num_attention_heads")
        if len(chunk_size) != 2:
            raise ValueError(f"chunk_size must be two sizes, got {chunk_size}")
        self.vocab_size, self.hidden_size = vocab_size, hidden_size
        self.num_hidden_layers, self.num_attention_heads = num_hidden_layers, num_attention_heads
        self.intermediate_size = (
            max(1, 4 * hidden_size // len(cms_periods)) if intermediate_size is None else intermediate_size
        )
        self.mixer, self.memory, self.chunk_size = mixer, memory, list(chunk_size)
        self.decay, self.normalize_value, self.conv_size = decay, normalize_value, conv_size
        self.delta_gradient, self.momentum = delta_gradient, momentum
        self.memory_hidden_size, self.beta_max = memory_hidden_size, beta_max
        self.inner_keys, self.inner_values = inner_keys, inner_values
        self.inner_rates, self.inner_queries = inner_rates, inner_queries
        self.cms_periods, self.cms_kind = list(cms_periods), cms_kind
        self.cms_activation, self.cms_lr = cms_activation, cms_lr
        self.rms_norm_eps, self.rope_theta, self.initializer_range = (
            rms_norm_eps,
            rope_theta,
            initializer_range,
        )
        self.use_cache, self.tie_word_embeddings = use_cache, tie_word_embeddings
        self.pad_token_id, self.bos_token_id, self.eos_token_id = pad_token_id, bos_token_id, eos_token_id
        super().__init__(**kwargs)
