"""A sentence encoder from any causal language model: append [EOS], read its last hidden state.

    model = causal_embedder("smollm2", prompts=prompt.as_st_prompts())
    model.encode(queries, prompt_name="query")

The result is an ordinary `SentenceTransformer`: it trains, saves, loads and is evaluated as such.

Source: LG-ANNA-Embedding, 2025, arXiv 2506.07438; the same pooling as E5-Mistral, 2023, arXiv 2401.00368.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from gradatim.models.causal_lm import DEFAULT_CAUSAL_LM, CausalLMUnavailableError, causal_lm_source
from gradatim.models.quiet import quietly

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


def causal_embedder(
    name_or_path: str = DEFAULT_CAUSAL_LM,
    *,
    pooling_mode: str = "lasttoken",
    max_seq_length: int = 512,
    prompts: Mapping[str, str] | None = None,
    normalize: bool = True,
    device: str | None = "cpu",
    dtype: torch.dtype = torch.float32,
    lora_rank: int | None = None,
    lora_alpha: int | None = None,
    cache: str | Path | None = None,
) -> SentenceTransformer:
    """A `SentenceTransformer` over the decoder of a causal language model.

    Args:
        name_or_path: as in `load_causal_lm`: "smollm2", a folder, a `.gguf` file, a Hugging Face name.
        pooling_mode: "lasttoken" (the [EOS] that every text is given) or "mean" (`InstructionPooling`).
        max_seq_length: longer texts lose their end, never the [EOS].
        prompts: texts put before the input by name, such as `InContextPrompt.as_st_prompts()`.
        normalize: vectors of length 1.
        lora_rank: trains low-rank adapters of this rank on every linear map and freezes the rest (needs
            peft); None leaves every weight trainable. `lora_alpha` is twice the rank unless given. Call
            `merge_adapters` before saving.

    Padding goes to the right: causal attention then never reaches it, and positions start at 0 in every row.
    Raises CausalLMUnavailableError with one line that says what to do, ImportError without peft.
    """
    source = causal_lm_source(name_or_path, cache)
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Transformer

    from gradatim.models.instruction_pooling import InstructionPooling

    try:
        with quietly(advice=True):
            transformer = Transformer(
                source,
                max_seq_length=max_seq_length,
                model_kwargs={"dtype": dtype, "use_safetensors": True, "trust_remote_code": False},
            )
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise CausalLMUnavailableError(
            f"{name_or_path!r} cannot be opened as an encoder ({reason})"
        ) from error
    end_with_eos(transformer.tokenizer)
    modules: list[Any] = [
        transformer,
        InstructionPooling(transformer.get_embedding_dimension(), pooling_mode),
    ]
    if normalize:
        modules.append(Normalize())
    model = SentenceTransformer(modules=modules, device=device, prompts=dict(prompts or {}))
    if lora_rank is not None:
        _add_lora(model, lora_rank, 2 * lora_rank if lora_alpha is None else lora_alpha)
    return model


def end_with_eos(tokenizer: Any) -> None:
    """Makes a fast tokenizer close every text with its end-of-sequence token and pad on the right.

    Raises ValueError for a tokenizer without such a token, or one that cannot be changed.
    """
    eos = tokenizer.eos_token
    if eos is None:
        raise ValueError("the tokenizer has no end-of-sequence token to pool; set tokenizer.eos_token")
    if not tokenizer.is_fast:
        raise ValueError("the tokenizer is not a fast one; convert it with AutoTokenizer")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = eos  # never attended to, so any token will do
    tokenizer.padding_side = "right"
    before = tokenizer("a b")["input_ids"]
    if before and before[-1] == tokenizer.eos_token_id:
        return
    from tokenizers.processors import Sequence, TemplateProcessing

    backend = tokenizer.backend_tokenizer
    # A template that writes a special token stands as it is; ours only adds the end.
    close = TemplateProcessing(
        single=f"$A {eos}", pair=f"$A $B:1 {eos}:1", special_tokens=[(eos, tokenizer.eos_token_id)]
    )
    previous = backend.post_processor
    backend.post_processor = close if previous is None else Sequence([previous, close])
    if tokenizer("a b")["input_ids"] != [*before, tokenizer.eos_token_id]:
        raise ValueError(
            "the tokenizer cannot be made to end with its end-of-sequence token; set it up to do so"
        )


def _add_lora(model: Any, rank: int, alpha: int) -> None:
    if rank < 1:
        raise ValueError(f"lora_rank={rank} must be at least 1")
    try:
        from peft import LoraConfig, TaskType, get_peft_model
    except ImportError as error:
        raise ImportError("low-rank adapters need the package peft; run: pip install peft") from error
    config = LoraConfig(
        task_type=TaskType.FEATURE_EXTRACTION, r=rank, lora_alpha=alpha, target_modules="all-linear"
    )
    # Around the network itself: transformers' own way in refuses every peft older than its next release.
    model[0].model = get_peft_model(model[0].model, config)


def merge_adapters(model: SentenceTransformer) -> SentenceTransformer:
    """Adds low-rank adapters into the weights, in place: the model then saves and loads like any other.

    A model without adapters is left as it is.
    """
    transformer: Any = model[0]
    if hasattr(transformer.model, "merge_and_unload"):
        transformer.model = transformer.model.merge_and_unload()
    return model
