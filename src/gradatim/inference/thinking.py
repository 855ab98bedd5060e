"""Thinking with an energy: more steps, several tries with the best kept, stopping, and energies as doubt.

"Energy-Based Transformers are Scalable Learners and Thinkers" (Gladstone et al. 2025, arXiv 2507.02092).
All of it is one call of the model with other arguments; what is here counts its cost and measures its use.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from gradatim.models.energy_recipe import ExtrapolatedStepsWarning


@dataclass(frozen=True)
class Thought:
    """What thinking came to, for every position.

    logits              [batch, time, V]
    energies            [batch, time, num_steps + 1] along the descent that was kept
    candidate_energies  [batch, candidates, time] final energies; one candidate's are `energies[..., -1]`
    steps_taken         [batch, time]
    evaluations         function evaluations per position: a step is a forward and a backward pass, the energy
                        of a final prediction a forward pass
    """

    logits: Float[Tensor, "batch time vocab"]
    energies: Float[Tensor, "batch time steps"]
    candidate_energies: Float[Tensor, "batch candidates time"]
    steps_taken: Int[Tensor, "batch time"]
    evaluations: int

    @property
    def uncertainty(self) -> Float[Tensor, "batch time"]:
        """The final energy: higher where the model could not find a prediction that fits.

        Compare positions with each other and with the same model only: energies have no common zero.
        """
        return self.energies[..., -1]

    @property
    def disagreement(self) -> Float[Tensor, "batch time"]:
        """Standard deviation of the candidates' final energies; 0 with one candidate."""
        return self.candidate_energies.std(dim=1, correction=0)


def think(
    model: nn.Module,
    input_ids: Int[Tensor, "batch time"],
    attention_mask: Tensor | None = None,
    *,
    num_steps: int | None = None,
    num_candidates: int = 1,
    step_size: float | None = None,
    noise_std: float = 0.0,
    tol: float | None = None,
    generator: torch.Generator | None = None,
) -> Thought:
    """Predict every next token by `num_steps` steps from `num_candidates` starts; keep the lowest energy.

    Args:
        model: an `EnergyTransformerForCausalLM` in evaluation mode.
        num_steps: None means the configuration's. More than training took is allowed (without a step
            embedding) and not always better: an energy can go on falling while the answer gets worse.
        noise_std: Langevin noise before every step.
        tol: a position stops once its energy changes by less than this.

    Raises ValueError for a model in training mode, and what the model's forward pass raises.
    """
    out = _answer(
        model,
        input_ids,
        attention_mask=attention_mask,
        num_steps=num_steps,
        num_candidates=num_candidates,
        step_size=step_size,
        langevin_noise_std=noise_std,
        tol=tol,
        generator=generator,
    )
    finals = out.candidate_energies
    finals = out.energies[..., -1].unsqueeze(1) if finals is None else finals
    steps = out.energies.shape[-1] - 1
    return Thought(out.logits, out.energies, finals, out.steps_taken, num_candidates * (2 * steps + 1))


@dataclass(frozen=True)
class ThinkingCurve:
    """Losses in nats per token by amount of thinking, averaged over tokens before any exponential.

    steps       numbers of steps, one start each, and their `step_losses`
    candidates  numbers of starts, `at_steps` steps each: `best` keeps the lowest energy, `average` averages
                the predicted probabilities (no energy needed), `oracle` keeps the lowest loss (not
                available to
                any model: the most that choosing could give)
    """

    steps: tuple[int, ...]
    step_losses: tuple[float, ...]
    candidates: tuple[int, ...]
    at_steps: int
    best: tuple[float, ...]
    average: tuple[float, ...]
    oracle: tuple[float, ...]


def thinking_curve(
    model: nn.Module,
    input_ids: Int[Tensor, "batch time"],
    *,
    steps: Sequence[int],
    candidates: Sequence[int] = (),
    at_steps: int | None = None,
) -> ThinkingCurve:
    """How the loss of the next token changes with steps and with candidates, from the model's fixed starts.

    Candidates 1 .. N - 1 are among N, so every comparison has common starts. Positions without a next token
    (the last) are not scored. Raises ValueError for numbers below 1.
    """
    if not all(n >= 1 for n in (*steps, *candidates)):
        raise ValueError(
            f"steps and candidates must be at least 1, got {tuple(steps)} and {tuple(candidates)}"
        )
    at: int = cast(Any, model.config).num_steps if at_steps is None else at_steps
    given, targets = input_ids[:, :-1], input_ids[:, 1:]
    by_steps: list[float] = []
    if steps:
        # A longer descent passes through the states of the shorter ones.
        along = _answer(model, input_ids, labels=input_ids, num_steps=max(steps)).step_losses
        by_steps = [float(along[n - 1]) for n in steps]
    best: list[float] = []
    average: list[float] = []
    oracle: list[float] = []
    for logits, energies in _tries(model, given, max(candidates, default=0), at, candidates):
        losses = torch.stack([token_losses(z, targets) for z in logits])
        chosen = torch.stack(energies).argmin(0, keepdim=True)
        best.append(float(losses.gather(0, chosen).mean()))
        mean = torch.stack([z.log_softmax(-1) for z in logits]).logsumexp(0) - math.log(len(logits))
        average.append(float(token_losses(mean, targets).mean()))
        oracle.append(float(losses.amin(0).mean()))
    return ThinkingCurve(
        tuple(steps), tuple(by_steps), tuple(candidates), at, tuple(best), tuple(average), tuple(oracle)
    )


def token_losses(logits: Float[Tensor, "batch time vocab"], targets: Int[Tensor, "batch time"]) -> Tensor:
    """-log p(target) [batch, time]."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)


def token_energies(
    model: nn.Module, input_ids: Int[Tensor, "batch time"], attention_mask: Tensor | None = None
) -> Float[Tensor, "batch time"]:
    """The energy of the model's own prediction of every next token: a doubt that costs no sampling."""
    return think(model, input_ids, attention_mask).uncertainty


def _tries(
    model: nn.Module, given: Tensor, most: int, steps: int, wanted: Iterable[int]
) -> Iterable[tuple[list[Tensor], list[Tensor]]]:
    """For each wanted number the logits and final energies of that many candidates, each computed once."""
    logits: list[Tensor] = []
    energies: list[Tensor] = []
    for c in range(most):
        start = cast(Any, model).start_state(given, c)
        out = _answer(model, given, initial_state=start, num_steps=steps)
        logits.append(out.logits)
        energies.append(out.energies[..., -1])
    for count in wanted:
        yield logits[:count], energies[:count]


def _answer(model: nn.Module, input_ids: Tensor, **arguments: Any) -> Any:
    if model.training:
        raise ValueError("thinking is for evaluation: call model.eval() first")
    with torch.no_grad(), warnings.catch_warnings():
        # Going beyond what training saw is the question here, not a slip.
        warnings.simplefilter("ignore", ExtrapolatedStepsWarning)
        return model(input_ids, output_energies=True, use_cache=False, **arguments)
