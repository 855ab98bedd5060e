"""A Llama of a few thousand weights and a tokenizer of whole words: tests need no download."""

from __future__ import annotations

from typing import Any

import torch

_TEXT = """
Review : Sentiment positive negative fine dull great poor film meal song trip book was is a the very not good
bad Topic sport music good morning we all you it and of so
"""
WORDS = list(dict.fromkeys(_TEXT.split()))


def tiny_tokenizer() -> Any:
    """Splits at spaces and punctuation; pads on the left; adds nothing of its own."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {w: i for i, w in enumerate(["<pad>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>")


def tiny_llama(seed: int = 0, dtype: torch.dtype = torch.float64, tie: bool = True, layers: int = 3) -> Any:
    """A Llama with grouped queries and weights large enough for attention to matter."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(WORDS) + 2,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.3,
        tie_word_embeddings=tie,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).to(dtype).eval()


def tiny_gpt2(seed: int = 0, dtype: torch.dtype = torch.float64) -> Any:
    """A GPT-2: learned positions, fused projections, layer norms with biases."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=len(WORDS) + 2,
        n_embd=16,
        n_layer=3,
        n_head=2,
        n_positions=128,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return GPT2LMHeadModel(config).to(dtype).eval()
