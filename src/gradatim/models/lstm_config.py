"""Sizes of the LSTM language model."""

from __future__ import annotations

from typing import Any

# Not from the top of `transformers`: this module is imported while that package's own tables are being built.
from transformers.configuration_utils import PreTrainedConfig


class LSTMConfig(PreTrainedConfig):
    """Sizes of an `LSTMForCausalLM`: vocab_size, hidden_size (of embedding and memory), num_hidden_layers.

    `initializer_range` is the deviation of embedding and read-out. Raises ValueError for a size below 1.
    """

    model_type = "gradatim_lstm"

    def __init__(
        self,
        vocab_size: int = 256,
        hidden_size: int = 128,
        num_hidden_layers: int = 2,
        initializer_range: float = 0.02,
        tie_word_embeddings: bool = False,
        use_cache: bool = False,
        **kwargs: Any,
    ) -> None:
        sizes = {
            "vocab_size": vocab_size,
            "hidden_size": hidden_size,
            "num_hidden_layers": num_hidden_layers,
        }
        for name, value in sizes.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
            setattr(self, name, value)
        self.initializer_range, self.use_cache = initializer_range, use_cache
        self.tie_word_embeddings = tie_word_embeddings
        super().__init__(**kwargs)
