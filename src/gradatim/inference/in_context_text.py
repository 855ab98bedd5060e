"""Text classification by prompting: the label's word is the next token.

Comparing in-context learning with gradient descent follows Shen, Mishra and Khashabi, "Revisiting the
Hypothesis: Do pretrained Transformers Learn In-Context by Gradient Descent?" (2023, arXiv 2310.08540).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gradatim.inference.next_token import (
    Prefix,
    common_length,
    encode,
    encode_prefix,
    label_tokens,
    next_token_logits,
)
from gradatim.tasks.text_classification import PromptTemplate

Texts = Sequence[str] | np.ndarray


class TextPredictor:
    """What all predictors share: a template, label words, and answers read off the next token.

    Args:
        model: a model with a causal head; it is used in evaluation mode and left as it is.
        tokenizer: its tokenizer.
        template: a PromptTemplate, or its pattern ("Review: {text}\\nSentiment:{label}").
        labels: the word of each class, {"0": " negative", "1": " positive"}, one token each.
        first_token: let the first token of a longer word stand for it.
        batch_size: prompts encoded together.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        template: PromptTemplate | str,
        labels: Mapping[str, str],
        *,
        first_token: bool = False,
        batch_size: int = 32,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.template = PromptTemplate(template) if isinstance(template, str) else template
        self.labels = dict(labels)
        self.label_ids = label_tokens(tokenizer, labels, first_token=first_token)
        self.batch_size = batch_size

    @property
    def classes_(self) -> np.ndarray:
        """The classes in the order of predict_proba's columns."""
        return np.array(list(self.labels))

    def next_token_proba(self, X: Texts) -> Float[Tensor, "texts vocabulary"]:
        """p(token | prompt) over the whole vocabulary, float32 (float64 for a float64 model)."""
        training = self.model.training
        self.model.eval()  # dropout would mix with what the order of the demonstrations does
        try:
            return self._logits([str(x) for x in X]).softmax(dim=-1)
        finally:
            self.model.train(training)

    def predict_proba(self, X: Texts) -> Float[Tensor, "texts classes"]:
        """Probabilities of the classes alone, adding up to 1."""
        p = self.next_token_proba(X)[:, list(self.label_ids.values())]
        return p / p.sum(dim=-1, keepdim=True)

    def predict(self, X: Texts) -> np.ndarray:
        """The likeliest class of each text."""
        return self.classes_[self.predict_proba(X).argmax(dim=-1).cpu().numpy()]

    def score(self, X: Texts, y: Texts) -> float:
        """Share of texts whose likeliest class is right."""
        return float(np.mean(self.predict(X) == np.array(y)))

    def _logits(self, X: list[str]) -> Tensor:
        raise NotImplementedError

    def _demonstrations(self, X: Texts, y: Texts, order: Sequence[int] | None) -> list[tuple[str, str]]:
        """(text, word) in the order asked for; every bad input is refused here."""
        if len(X) != len(y):
            raise ValueError(f"{len(X)} texts but {len(y)} labels")
        if not len(X):
            raise ValueError("fit needs at least one demonstration; ZeroShotPredictor does without")
        unknown = [c for c in y if c not in self.labels]
        if unknown:
            raise ValueError(f"no word for label {unknown[0]!r}; words are given for {sorted(self.labels)}")
        places = list(range(len(X))) if order is None else [int(i) for i in order]
        if sorted(places) != list(range(len(X))):
            raise ValueError(f"order {places} is not a permutation of 0..{len(X) - 1}")
        return [(str(X[i]), self.labels[y[i]]) for i in places]


class ZeroShotPredictor(TextPredictor):
    """The model's answer without demonstrations: the floor of every comparison. `fit` changes nothing."""

    def fit(self, X: Texts = (), y: Texts = (), order: Sequence[int] | None = None) -> ZeroShotPredictor:
        """Takes and ignores demonstrations."""
        return self

    def _logits(self, X: list[str]) -> Tensor:
        prompts = [encode(self.tokenizer, self.template.question(x)) for x in X]
        return next_token_logits(self.model, prompts, batch_size=self.batch_size)


class InContextPredictor(TextPredictor):
    """The demonstrations stand in the prompt; no weight changes.

    `fit` encodes the demonstrations once, in the order given; every question then pays for its own tokens
    alone. Raises ValueError for no demonstrations, an order that is no permutation, an unknown label, or a
    prompt longer than the model's context.
    """

    def fit(self, X: Texts, y: Texts, order: Sequence[int] | None = None) -> InContextPredictor:
        """Read the demonstrations, `order[0]` first."""
        self._examples = self._demonstrations(X, y, order)
        probe = [encode(self.tokenizer, self.template.prompt(self._examples, x)) for x in ("a", "b")]
        shared = common_length(probe)
        training = self.model.training
        self.model.eval()
        try:
            self._prefix: Prefix | None = encode_prefix(self.model, probe[0][:shared])
        finally:
            self.model.train(training)
        return self

    def _logits(self, X: list[str]) -> Tensor:
        if not hasattr(self, "_examples"):
            raise RuntimeError("not fitted: call fit(X, y) with demonstrations first")
        prompts = [encode(self.tokenizer, self.template.prompt(self._examples, x)) for x in X]
        return next_token_logits(self.model, prompts, prefix=self._prefix, batch_size=self.batch_size)


def orders(n: int, count: int, seed: int = 0) -> list[list[int]]:
    """`count` different orders of n demonstrations, drawn uniformly; all n! of them where there are no more.

    Raises ValueError for fewer than two orders or a single demonstration.
    """
    if n < 2 or count < 2:
        raise ValueError(f"orders need two demonstrations and two orders, got {n} and {count}")
    rng = np.random.default_rng([17, 1, seed])
    total = 1
    for i in range(2, n + 1):
        total = min(total * i, 10**9)
    found: dict[tuple[int, ...], None] = {}
    while len(found) < min(count, total):
        found[tuple(int(i) for i in rng.permutation(n))] = None
    return [list(o) for o in found]


def log_average(logits: Float[Tensor, "orders texts vocabulary"]) -> Float[Tensor, "texts vocabulary"]:
    """log of the geometric mean of the orders' distributions, normalised again."""
    return torch.log_softmax(torch.log_softmax(logits, dim=-1).mean(dim=0), dim=-1)
