"""A BART of a few thousand weights over the tokens of `tiny_causal_lm`: an encoder-decoder, not fetched."""

from __future__ import annotations

from typing import Any

import torch

from tiny_causal_lm import WORDS


def tiny_bart(seed: int = 0, dtype: torch.dtype = torch.float64) -> Any:
    """Weights large enough for what is generated to depend on the input."""
    from transformers import BartConfig, BartForConditionalGeneration

    config = BartConfig(
        vocab_size=len(WORDS) + 2,
        d_model=16,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        max_position_embeddings=128,
        init_std=0.3,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
        decoder_start_token_id=1,
        forced_eos_token_id=None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return BartForConditionalGeneration(config).to(dtype).eval()
