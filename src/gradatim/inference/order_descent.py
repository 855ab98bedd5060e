"""Gradient descent on the same demonstrations in many orders and at many rates, as one stacked run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gradatim.inference.gradient_text import GradientPredictor
from gradatim.inference.in_context_text import Texts
from gradatim.inference.next_token import encode
from gradatim.inference.stacked_descent import Deltas, StackedDescent


@dataclass(frozen=True)
class StackedState:
    """All runs after an epoch, run (rate i, order j) at place i * orders + j.

    `loss` and `accuracy` are over the run's demonstrations, accuracy over the whole vocabulary; `stopped`
    runs met the predictor's stopping rule at this epoch or before and moved no further.
    """

    epoch: int
    loss: Float[Tensor, " runs"]
    accuracy: Float[Tensor, " runs"]
    stopped: Bool[Tensor, " runs"]


Ask = Callable[[Texts], Tensor]
"""Texts to next-token distributions of every run, [runs, texts, vocabulary]."""


def descend_orders(
    predictor: GradientPredictor,
    X: Texts,
    y: Texts,
    orders: Sequence[Sequence[int]],
    *,
    lrs: Sequence[float] | None = None,
    on_epoch: Callable[[StackedState, Ask], object],
) -> StackedState:
    """Fit `predictor` once per order and rate, all at once; the same numbers as one fit after another.

    Optimizers "sgd" and "gd" alone; scope, epochs, steps and stopping rule are the predictor's, `lrs` its
    own rate unless given. After every epoch `on_epoch(state, ask)` may ask all runs for distributions;
    between their stop and the end stopped runs answer as they did. Returns the last state.

    Raises ValueError for Adam, whose steps are not linear in the gradient, and RuntimeError, naming rate and
    epoch, when a loss is not finite.
    """
    if predictor.optimizer == "adam":
        raise ValueError("stacked descent takes plain steps, sgd or gd; fit Adam one order at a time")
    rates = [predictor.lr] if lrs is None else list(lrs)
    if not rates or any(not r > 0 for r in rates):
        raise ValueError(f"lrs must be positive numbers, got {rates}")
    model = predictor.model
    once = [predictor.lessons(X, y, order) for order in orders]
    lessons = [p for p, _ in once] * len(rates)
    targets = torch.tensor([t for _, t in once] * len(rates), device=model.device)
    dtype = torch.float64 if model.dtype == torch.float64 else torch.float32
    lr = torch.tensor(rates, dtype=dtype, device=model.device).repeat_interleave(len(orders))
    count = len(lessons[0])
    size = count if predictor.optimizer == "gd" else predictor.step_size
    loss, right = torch.zeros_like(lr), torch.zeros_like(lr)
    stopped = torch.zeros(len(lessons), dtype=torch.bool, device=model.device)
    active = torch.arange(len(lessons), device=model.device)
    retired: list[_Retired] = []
    with StackedDescent(model, len(lessons), predictor.scope) as stack:

        def ask(texts: Texts) -> Tensor:
            prompts = [encode(predictor.tokenizer, predictor.template.question(str(x))) for x in texts]
            groups = [(gone.places, gone.ask(stack, prompts, predictor.batch_size)) for gone in retired]
            if len(active):
                groups.append((active, stack.answers(prompts, predictor.batch_size)))
            answers = groups[0][1]
            whole = answers.new_zeros(len(lessons), *answers.shape[1:], dtype=dtype)
            for places, logits in groups:
                whole[places] = logits.to(dtype)
            return whole.softmax(-1)

        for epoch in range(1, predictor.epochs + 1):
            mine, answers = [lessons[i] for i in active.tolist()], targets[active]
            for start in range(0, count, size):
                logits = stack([own[start : start + size] for own in mine]).to(dtype)
                stack.step(_losses(logits, answers[:, start : start + size]), lr[active])
            with torch.no_grad():
                logits = stack(mine).to(dtype)
                loss[active] = _losses(logits, answers)
                right[active] = (logits.argmax(-1) == answers).to(dtype).mean(1)
            if not bool(loss.isfinite().all()):
                bad = float(lr[~loss.isfinite()][0])
                raise RuntimeError(f"the loss is not finite at lr {bad:g}, epoch {epoch}; lower lr")
            if predictor.stop is not None:
                stopped = stopped | ((right == 1.0) & (loss < predictor.stop))
            leaving = stopped[active]
            if bool(leaving.any()):
                retired.append(_Retired(active[leaving], stack.retire(leaving)))
                active = active[~leaving]
            state = StackedState(epoch, loss.clone(), right.clone(), stopped)
            on_epoch(state, ask)
            if not len(active):
                break
    return state


class _Retired:
    """Runs that have stopped: they are asked the same questions once."""

    def __init__(self, places: Tensor, deltas: Deltas) -> None:
        self.places, self._deltas = places, deltas
        self._known: dict[tuple[tuple[int, ...], ...], Tensor] = {}

    def ask(self, stack: StackedDescent, prompts: Sequence[Sequence[int]], batch_size: int) -> Tensor:
        """Logits [runs, prompts, vocabulary]."""
        key = tuple(tuple(p) for p in prompts)
        if key not in self._known:
            self._known = {key: stack.recall(self._deltas, len(self.places), prompts, batch_size)}
        return self._known[key]


def _losses(logits: Float[Tensor, "runs n vocabulary"], targets: Tensor) -> Float[Tensor, " runs"]:
    """Mean of -log p(target) per run."""
    return -logits.log_softmax(-1).gather(2, targets[:, :, None]).mean(dim=(1, 2))
