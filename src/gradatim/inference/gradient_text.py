"""Text classification by gradient descent on the demonstrations: what in-context learning is compared with.

The loss is that of the label's token alone, -log p(word | text with the answer open), without any
demonstration in the context.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradatim.inference.gradient_scopes import decoder_layers, is_norm, scope_parameters
from gradatim.inference.in_context_text import TextPredictor, Texts
from gradatim.inference.next_token import (
    check_length,
    encode,
    keep_last,
    next_token_logits,
    pad_left,
    positions,
)
from gradatim.tasks.text_classification import PromptTemplate

FITTED_LOSS = 0.05


@dataclass(frozen=True)
class EpochState:
    """The demonstrations after an epoch: mean loss, and the share whose likeliest token is the right word."""

    epoch: int
    loss: float
    accuracy: float


class GradientPredictor(TextPredictor):
    """Fine-tunes on the demonstrations and answers without them; the model's weights come back bit for bit.

    Args:
        optimizer: "sgd" (plain, batches in the order given), "gd" (plain, all at once, hence the same for
            every order up to rounding) or "adam".
        lr: step size.
        epochs: at most so many passes.
        batch_size: demonstrations per step.
        scope: see `scope_parameters`; "layer-causal" trains every layer on the loss of its own output read
            through the final norm and the unembedding, with no gradient between layers.
        stop: end after the first epoch at which every demonstration is right over the whole vocabulary and
            the mean loss is below this; None runs all epochs.
        restore: False leaves the model trained.

    Other arguments as in TextPredictor (`batch_size` there is `items_per_batch` here). After `fit`,
    `history_` holds an EpochState per epoch.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        template: PromptTemplate | str,
        labels: Mapping[str, str],
        *,
        optimizer: str = "sgd",
        lr: float = 1e-3,
        epochs: int = 20,
        batch_size: int = 1,
        scope: str = "all",
        stop: float | None = FITTED_LOSS,
        restore: bool = True,
        first_token: bool = False,
        items_per_batch: int = 32,
    ) -> None:
        super().__init__(
            model, tokenizer, template, labels, first_token=first_token, batch_size=items_per_batch
        )
        if optimizer not in ("sgd", "gd", "adam"):
            raise ValueError(f"optimizer must be sgd, gd or adam, got {optimizer!r}")
        if not lr > 0 or not math.isfinite(lr):
            raise ValueError(f"lr must be a positive number, got {lr}")
        if epochs < 1 or batch_size < 1:
            raise ValueError(f"epochs and batch_size must be at least 1, got {epochs} and {batch_size}")
        scope_parameters(model, scope)
        self.optimizer, self.lr, self.epochs, self.scope = optimizer, lr, epochs, scope
        self.step_size, self.stop, self.restore = batch_size, stop, restore

    def fit(
        self,
        X: Texts,
        y: Texts,
        order: Sequence[int] | None = None,
        *,
        on_epoch: Callable[[EpochState], object] | None = None,
    ) -> GradientPredictor:
        """Train on the demonstrations, `order[0]` first in every epoch.

        `on_epoch` is called after every epoch while the weights are those of that epoch, so that it may ask
        this predictor. Raises RuntimeError, with the weights as they were, when the loss is not finite.
        """
        prompts, targets = self.lessons(X, y, order)
        parameters = scope_parameters(self.model, self.scope)
        base = {name: p.data for name, p in parameters.items()}
        flags = [(p, p.requires_grad) for p in self.model.parameters()]
        training, finished = self.model.training, False
        self.model.eval()
        self.history_: list[EpochState] = []
        self._live = True
        try:
            for p, _ in flags:
                p.requires_grad_(False)
            for p in parameters.values():
                p.data = p.data.clone()
                p.requires_grad_(True)
            self._train(list(parameters.values()), prompts, targets, on_epoch)
            finished = True
            self._trained = {name: p.data for name, p in parameters.items()}
        finally:
            for p, flag in flags:
                p.requires_grad_(flag)
                p.grad = None
            if self.restore or not finished:
                for name, p in parameters.items():
                    p.data = base[name]
            self.model.train(training)
            self._live = finished and not self.restore
        return self

    def lessons(
        self, X: Texts, y: Texts, order: Sequence[int] | None = None
    ) -> tuple[list[list[int]], list[int]]:
        """Token ids of the open questions, in order, and the token that answers each.

        Raises ValueError where a word and the end of the template become one token.
        """
        word_ids = {self.labels[c]: token for c, token in self.label_ids.items()}
        prompts, targets = [], []
        for text, word in self._demonstrations(X, y, order):
            ids = encode(self.tokenizer, self.template.question(text))
            whole = encode(self.tokenizer, self.template.example(text, word))
            if whole[: len(ids) + 1] != [*ids, word_ids[word]]:
                raise ValueError(
                    f"the word {word!r} does not stand as a token of its own after the template; "
                    "begin the words with a space"
                )
            prompts.append(ids)
            targets.append(word_ids[word])
        check_length(self.model, prompts)
        return prompts, targets

    @contextmanager
    def applied(self) -> Iterator[Any]:
        """The model with the trained weights, inside a with block."""
        if not hasattr(self, "_live"):
            raise RuntimeError("not fitted: call fit(X, y) with demonstrations first")
        if self._live:
            yield self.model
            return
        parameters = scope_parameters(self.model, self.scope)
        base = {name: p.data for name, p in parameters.items()}
        try:
            for name, p in parameters.items():
                p.data = self._trained[name]
            yield self.model
        finally:
            for name, p in parameters.items():
                p.data = base[name]

    def _logits(self, X: list[str]) -> Tensor:
        prompts = [encode(self.tokenizer, self.template.question(x)) for x in X]
        with self.applied():
            return next_token_logits(self.model, prompts, batch_size=self.batch_size)

    def _train(
        self,
        parameters: list[nn.Parameter],
        prompts: list[list[int]],
        targets: list[int],
        on_epoch: Callable[[EpochState], object] | None,
    ) -> None:
        rule: Any = torch.optim.Adam if self.optimizer == "adam" else torch.optim.SGD
        optimizer = rule(parameters, lr=self.lr)
        size = len(prompts) if self.optimizer == "gd" else self.step_size
        loss_of = layer_causal_loss if self.scope == "layer-causal" else answer_loss
        for epoch in range(1, self.epochs + 1):
            for start in range(0, len(prompts), size):
                optimizer.zero_grad(set_to_none=True)
                loss = loss_of(self.model, prompts[start : start + size], targets[start : start + size])
                loss.backward()
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            logits = next_token_logits(self.model, prompts, batch_size=self.batch_size)
            answers = torch.tensor(targets, device=logits.device)
            state = EpochState(
                epoch,
                float(F.cross_entropy(logits, answers)),
                float((logits.argmax(-1) == answers).double().mean()),
            )
            if not math.isfinite(state.loss):
                raise RuntimeError(f"the loss is {state.loss} at lr {self.lr:g}, epoch {epoch}; lower lr")
            self.history_.append(state)
            if on_epoch is not None:
                on_epoch(state)
            if self.stop is not None and state.accuracy == 1.0 and state.loss < self.stop:
                return


def answer_logits(model: Any, prompts: Sequence[Sequence[int]]) -> Tensor:
    """Logits after each prompt, [prompts, vocabulary], with gradients."""
    ids, mask = pad_left(prompts, model.device)
    logits: Tensor = model(ids, use_cache=False, **positions(mask), **keep_last(model)).logits[:, -1]
    return logits


def answer_loss(model: Any, prompts: Sequence[Sequence[int]], targets: Sequence[int]) -> Tensor:
    """Mean of -log p(target | prompt)."""
    logits = answer_logits(model, prompts)
    return F.cross_entropy(logits, torch.tensor(targets, device=logits.device))


def layer_causal_loss(model: Any, prompts: Sequence[Sequence[int]], targets: Sequence[int]) -> Tensor:
    """Sum over layers of -log p(target) read off that layer's output, no gradient passing between layers."""
    norm = next(m for m in reversed(list(model.base_model.children())) if is_norm(m))
    head, found = model.get_output_embeddings(), []

    def cut(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (args[0].detach(), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": kwargs["hidden_states"].detach()}

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        found.append((output[0] if isinstance(output, tuple) else output)[:, -1])

    handles = [m.register_forward_pre_hook(cut, with_kwargs=True) for m in decoder_layers(model)]
    handles += [m.register_forward_hook(keep) for m in decoder_layers(model)]
    try:
        with torch.enable_grad():
            answer_logits(model, prompts)
    finally:
        for handle in handles:
            handle.remove()
    answers = torch.tensor(targets, device=found[0].device)
    return torch.stack([F.cross_entropy(head(norm(h)), answers) for h in found]).sum()
