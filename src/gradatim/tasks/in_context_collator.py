"""Examples drawn anew for every row of a training batch, inside the sentence-transformers trainer.

collator = InContextCollator(model.preprocess, in_context=prompt)
SentenceTransformerTrainer(model=model, ..., data_collator=collator)
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator
from torch import Tensor

from gradatim.tasks.in_context_prompt import InContextPrompt


@dataclass
class InContextCollator(SentenceTransformerDataCollator):
    """The library's collator, with an `InContextPrompt` before each row's query.

    Args:
        in_context: one prompt, or prompts by dataset name for a `DatasetDict` of tasks; a dataset without
            a prompt is left alone.
        columns: which columns carry it; default: the first. Symmetric tasks give both.
        seed: of the draws: 0 ... k examples per row, never the row's own query nor a passage of the row. They
            follow from (seed, batches so far, text); after `set_epoch` from (seed, epoch, text), which a
            resumed run repeats.
        draw: False shows the first k examples, as at serving.
        max_tokens: the limit within which a prompted text has to stay (at most the model's own); examples are
            left out until it does.

    Each prompted column gets `prompt_length`: how many tokens of each row are prompt, for
    `InstructionPooling`.
    """

    in_context: InContextPrompt | Mapping[str, InContextPrompt] | None = None
    columns: tuple[str, ...] | None = None
    seed: int = 0
    draw: bool = True
    max_tokens: int | None = None
    tokenizer: Any = None
    epoch: int | None = field(default=None, init=False)
    calls: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if self.in_context is None:
            raise ValueError(
                "in_context is missing; give an InContextPrompt, or a mapping from dataset to prompt"
            )
        owner = getattr(self.preprocess_fn, "__self__", None)
        if self.tokenizer is None:
            self.tokenizer = getattr(owner, "tokenizer", None)
        limits = [m for m in (self.max_tokens, getattr(owner, "max_seq_length", None)) if m is not None]
        self.max_tokens = min(limits, default=None)

    def set_epoch(self, epoch: int) -> None:
        """From here on examples are drawn for this epoch."""
        self.epoch = epoch

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        if not features:
            return {}
        self.calls += 1
        prompt = self._prompt(features[0].get("dataset_name"))
        if prompt is None:
            return super().__call__(features)
        labels = {*self.valid_label_columns, "dataset_name"}
        texts = [name for name in features[0] if name not in labels]
        columns = self.columns or (texts[0],)
        rows = [dict(row) for row in features]
        lengths = {name: [0] * len(rows) for name in columns}
        for i, row in enumerate(rows):
            shown = self._without(prompt, {row[name] for name in texts})
            for name in columns:
                query = row[name]
                before = shown.prefix(query, self._rng(query), self.max_tokens)
                row[name] = before + query
                lengths[name][i] = len(before)
        batch = super().__call__(rows)
        for name in columns:
            batch[f"{name}_prompt_length"] = self._prompt_tokens([row[name] for row in rows], lengths[name])
        return batch

    def _prompt(self, dataset: str | None) -> InContextPrompt | None:
        if isinstance(self.in_context, InContextPrompt):
            return self.in_context
        assert self.in_context is not None
        return self.in_context.get(dataset or "")

    def _without(self, prompt: InContextPrompt, texts: set[Any]) -> InContextPrompt:
        """The prompt less examples that hold a text of the row: they would give its answer away."""
        kept = tuple(e for e in prompt.examples if not texts & set(e))
        if len(kept) == len(prompt.examples) and prompt.tokenizer is not None:
            return prompt
        fields = {
            n: getattr(prompt, n) for n in ("task", "k", "template", "example_template", "max_example_tokens")
        }
        return InContextPrompt(**fields, examples=kept, tokenizer=prompt.tokenizer or self.tokenizer)

    def _rng(self, text: str) -> np.random.Generator | None:
        if not self.draw:
            return None
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
        when = [1, self.calls] if self.epoch is None else [0, self.epoch]
        words = np.frombuffer(digest[:16], dtype=np.uint32).tolist()
        return np.random.default_rng([self.seed, *when, *words])

    def _prompt_tokens(self, texts: list[str], characters: list[int]) -> Int[Tensor, " batch"]:
        """Tokens of each row that end within its prompt; a token across the seam belongs to the query."""
        if self.tokenizer is None:
            raise ValueError("no tokenizer to count prompts with; pass tokenizer=")
        found = self.tokenizer(
            texts, truncation=self.max_tokens is not None, max_length=self.max_tokens, verbose=False
        )
        counts = []
        for i, end in enumerate(characters):
            # The first token that reaches into the query; leading special tokens count as prompt.
            first = next(
                (t for c in range(end, len(texts[i])) if (t := found.char_to_token(i, c)) is not None), None
            )
            counts.append(len(found["input_ids"][i]) if first is None else first)
        return torch.tensor(counts)
