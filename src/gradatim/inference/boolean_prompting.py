"""Boolean prompts as text for a language model: what it answers for every input, read in one pass.

After the prompting experiments of Bhattamishra, Patel, Blunsom and Kanade (2023, arXiv 2310.03016):

    <one line of instruction>

    Input: 0 1 1 0 1
    Label: 1

    Input: 1 1 0 0 0
    Label:

The prompt of example t is the beginning of the prompt of example t + 1, so one forward pass over the whole
text answers every input from the examples before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

INSTRUCTION = (
    "You are given examples of inputs and their labels. Find out how the label follows from the input and"
    " give the label, 0 or 1, of the last input."
)


@dataclass(frozen=True)
class PromptedAnswers:
    """What a language model answers, [batch, m] of -1, 0, +1; entry t after t examples.

    restricted   the likelier of the two labels
    free         its greedy next token: 0 where that is neither label (an answer that cannot be read)
    """

    restricted: Float[Tensor, "batch m"]
    free: Float[Tensor, "batch m"]

    @property
    def readable(self) -> float:
        """Share of greedy answers that are a label."""
        return float((self.free != 0).double().mean())


@torch.no_grad()
def prompted_answers(
    model: Any,
    tokenizer: Any,
    x: Float[Tensor, "batch m n"],
    y: Float[Tensor, "batch m"],
    instruction: str = INSTRUCTION,
) -> PromptedAnswers:
    """Ask a causal language model (Hugging Face, local) for the label of every input.

    Inputs and labels are -1 and +1 and are written as 0 and 1. Nothing is sampled. Raises ValueError where
    the two labels are one and the same token to the tokenizer.
    """
    restricted, free = torch.zeros_like(y), torch.zeros_like(y)
    for b in range(len(x)):
        ids, asked, (zero, one) = tokenized(tokenizer, x[b], y[b], instruction)
        places = torch.tensor(asked, device=model.device)
        logits = model(torch.tensor([ids], device=model.device), logits_to_keep=places).logits[0]
        restricted[b] = torch.where(logits[:, one] > logits[:, zero], 1.0, -1.0).to(y)
        best = logits.argmax(-1)
        free[b] = ((best == one).float() - (best == zero).float()).to(y)
    return PromptedAnswers(restricted, free)


def tokenized(
    tokenizer: Any, x: Float[Tensor, "m n"], y: Float[Tensor, " m"], instruction: str = INSTRUCTION
) -> tuple[list[int], list[int], tuple[int, int]]:
    """Token ids of one prompt with all labels, the places whose next token is the label, and both labels.

    Where " 0" and " 1" begin with common tokens, these are part of the question.
    """

    def encode(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    labels = [encode(" 0"), encode(" 1")]
    common = 0
    while common < min(map(len, labels)) and labels[0][common] == labels[1][common]:
        common += 1
    if common in (len(labels[0]), len(labels[1])):
        raise ValueError("the tokenizer does not tell the labels 0 and 1 apart")
    start = getattr(tokenizer, "bos_token_id", None)
    ids = ([] if start is None else [start]) + encode(f"{instruction}\n\n")
    asked = []
    for bits, label in zip((x > 0).long().tolist(), (y > 0).long().tolist(), strict=True):
        ids += encode(f"Input: {' '.join(map(str, bits))}\nLabel:")
        asked.append(len(ids) - 1 + common)
        ids += labels[label] + encode("\n\n")
    return ids, asked, (labels[0][common], labels[1][common])
