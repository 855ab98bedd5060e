"""A small language model of one's own that writes spans of passages: SEAL's generator, trained from scratch.

"Autoregressive Search Engines: Generating Substrings as Document Identifiers" (Bevilacqua et al. 2022, arXiv
2204.10628) fine-tunes BART-large; where no such model is at hand, a decoder of two layers learns the
collection alone, from the same pairs (`tasks.span_pairs`). It knows no other words for a thing than the
collection's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

if TYPE_CHECKING:
    from gradatim.tasks.span_pairs import SpanPairs

PAD, END = "<pad>", "<end>"


def byte_pair_tokenizer(texts: Iterable[str], units: int = 8000) -> Any:
    """A Hugging Face tokenizer of at most `units` byte-pair units of the texts: any text has ids.

    Id 0 is padding, id 1 the end of a text. Raises ValueError for fewer units than there are bytes.
    """
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    if units < 258:
        raise ValueError(f"{units} units; 256 bytes and two marks need at least 258")
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        texts, vocab_size=units, min_frequency=2, special_tokens=[PAD, END], show_progress=False
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, pad_token=PAD, eos_token=END, bos_token=END,
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


def train_span_generator(
    pairs: SpanPairs,
    tokenizer: Any,
    *,
    steps: int,
    batch_size: int = 48,
    width: int = 128,
    layers: int = 2,
    heads: int = 4,
    context: int = 320,
    max_source: int = 96,
    max_target: int = 32,
    lr: float = 2e-3,
    label_smoothing: float = 0.0,
    seed: int = 0,
    device: str | None = "cpu",
    on_step: Callable[[int], None] = lambda step: None,
) -> Any:
    """A GPT-2 of the given size, trained to write each pair's target after its source.

    AdamW, learning rate falling from `lr` to 0, gradients clipped at norm 1. Weights and batches follow from
    the seed; pairs are drawn anew (`pairs.set_epoch`) each time all have been seen. `device=None` takes the
    accelerator if there is one. `on_step` hears the number of steps done. Returns the model in eval mode, on
    the CPU.

    Raises ValueError for a step number or batch size below 1, and a context that a pair does not fit in.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    from gradatim.tasks.span_pairs import PairCollator

    if min(steps, batch_size) < 1:
        raise ValueError(f"steps and batch_size must be at least 1, got {steps} and {batch_size}")
    if max_source + max_target > context:
        raise ValueError(f"{max_source} + {max_target} tokens do not fit a context of {context}")
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    collate = PairCollator(
        tokenizer, max_source=max_source, max_target=max_target, pad=tokenizer.pad_token_id
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: Any = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=len(tokenizer), n_positions=context, n_embd=width, n_layer=layers, n_head=heads,
                bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
                resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
            )
        )  # fmt: skip
    model.to(where).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01)
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    for step, numbers in enumerate(_draws(pairs, batch_size, steps, seed), 1):
        batch = {k: v.to(where) for k, v in collate([pairs[i] for i in numbers]).items()}
        loss = target_loss(model, batch, label_smoothing)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        decay.step()
        on_step(step)
    return model.eval().cpu()


def target_loss(model: Any, batch: dict[str, Tensor], label_smoothing: float = 0.0) -> Float[Tensor, ""]:
    """Mean cross-entropy of the targets' tokens, as the model's own loss gives it.

    The output layer runs where something is to be learnt only: a few tokens of each row, where the
    vocabulary costs more than all layers of a small model.
    """
    labels = batch["labels"][:, 1:]
    learnt = labels != -100
    body = model.base_model(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
    )
    hidden = body.last_hidden_state[:, :-1][learnt]
    logits = model.get_output_embeddings()(hidden).float()
    return F.cross_entropy(logits, labels[learnt], label_smoothing=label_smoothing)


def _draws(pairs: SpanPairs, size: int, steps: int, seed: int) -> Iterator[list[int]]:
    """Numbers of the pairs of each batch: without repeats until all have been seen, then drawn anew."""
    rng = np.random.default_rng(seed)
    left: list[int] = []
    epoch = -1
    for _ in range(steps):
        while len(left) < size:
            epoch += 1
            pairs.set_epoch(epoch)
            left += rng.permutation(len(pairs)).tolist()
        drawn, left = left[:size], left[size:]
        yield sorted(drawn)  # pairs of one passage are drawn together
