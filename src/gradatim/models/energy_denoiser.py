"""Denoising by descent: the noisy array is the start, and a learned energy says which way is cleaner.

"Energy-Based Transformers are Scalable Learners and Thinkers" (Gladstone et al. 2025, arXiv 2507.02092), the
bidirectional variant for images.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from gradatim.models.denoisers import learned_vector
from gradatim.models.diffusion_transformer import DiffusionTransformer
from gradatim.models.energy_recipe import (
    MIN_STEP_SIZE,
    EnergyRecipe,
    ExtrapolatedStepsWarning,
    parameter_groups,
    unrolled_loss,
)
from gradatim.optim.energy_descent import EnergyTrace, minimize_energy

DEFAULT_RECIPE = EnergyRecipe.system2(500.0)


@dataclass(frozen=True)
class EnergyDenoiserOutput:
    """What `EnergyDenoiser` gives.

    prediction   [batch, *shape]
    loss         scalar, where a target was given; step_losses [steps judged]
    energies     [batch, num_steps + 1] without a target: along the way, the last of the prediction
    steps_taken  [batch] without a target: fewer than asked for where `tol` stopped an item
    """

    prediction: Tensor
    loss: Tensor | None = None
    step_losses: Tensor | None = None
    energies: Tensor | None = None
    steps_taken: Tensor | None = None


class EnergyDenoiser(nn.Module):
    """y_0 = the noisy array;  y_{i+1} = y_i - alpha dE/dy(y_i);  E = mean over patches of a read-out.

    Args:
        shape: of one item: (C, H, W) for images, (L, D) for sequences of vectors.
        recipe: how it is trained and how many steps an answer takes. The paper's images have alpha = 3000
            at 128 x 128; the mean over patches makes the gradient of one patch smaller the more there are,
            so alpha grows with their number.
        condition_on_input: E(x, y) reads the noisy array beside the state; False: E(y), as in the paper.
        patch_size, hidden_size, num_hidden_layers, num_attention_heads, intermediate_size, conditioning:
            of `DiffusionTransformer`, conditioned on one learned vector.
        beta: of the Smooth-L1 loss.
        step_size_lr_multiplier: rate of a learned alpha over that of the weights; None: 3 alpha.
        seed: fixes the initial weights without touching the global random state.

    With "adaln_zero" the read-out starts at 0 and the energy is flat: the first answers are the noisy arrays,
    and training goes through the read-out first.
    """

    step_size: Tensor

    def __init__(
        self,
        shape: Sequence[int],
        *,
        recipe: EnergyRecipe = DEFAULT_RECIPE,
        condition_on_input: bool = False,
        patch_size: int = 2,
        hidden_size: int = 64,
        num_hidden_layers: int = 3,
        num_attention_heads: int = 4,
        intermediate_size: int | None = None,
        conditioning: str = "adaln_zero",
        beta: float = 1.0,
        step_size_lr_multiplier: float | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        self.recipe, self.condition_on_input, self.beta = recipe, condition_on_input, beta
        self.step_size_lr_multiplier = (
            3 * recipe.step_size if step_size_lr_multiplier is None else step_size_lr_multiplier
        )
        self.body = DiffusionTransformer(
            shape,
            out_features=1,
            in_arrays=2 if condition_on_input else 1,
            patch_size=patch_size,
            hidden_size=hidden_size,
            num_hidden_layers=num_hidden_layers,
            num_attention_heads=num_attention_heads,
            intermediate_size=intermediate_size,
            conditioning=conditioning,
            seed=seed,
        )
        self.condition = learned_vector(hidden_size, seed)
        alpha = torch.tensor(float(recipe.step_size))
        if recipe.learn_step_size:
            self.step_size = nn.Parameter(alpha)
        else:
            self.register_buffer("step_size", alpha)

    def energy(
        self,
        y: Float[Tensor, "batch first *rest"],
        x: Float[Tensor, "batch first *rest"] | None = None,
        *,
        twice_differentiable: bool = False,
    ) -> Float[Tensor, " batch"]:
        """E(y), or E(x, y) with `condition_on_input`. Only differences between states of one item count.

        Raises ValueError where `x` is missing or has no use.
        """
        if self.condition_on_input != (x is not None):
            raise ValueError(
                "condition_on_input=True: give x as well" if x is None else "this energy does not read x"
            )
        arrays = (y,) if x is None else (x, y)
        tokens = self.body(*arrays, condition=self.condition, twice_differentiable=twice_differentiable)
        return tokens.squeeze(-1).to(torch.promote_types(tokens.dtype, torch.float32)).mean(dim=-1)

    def forward(
        self,
        x: Float[Tensor, "batch first *rest"],
        target: Float[Tensor, "batch first *rest"] | None = None,
        *,
        num_steps: int | None = None,
        generator: torch.Generator | None = None,
        **thinking: Any,
    ) -> EnergyDenoiserOutput:
        """Without a target, the answer of `think`. With one, a training pass: Smooth-L1 of the steps.

        In training the steps, their sizes and the noise are drawn from `generator`; `num_steps` takes the
        place of the first draw.
        """
        if target is None:
            trace = self.think(x, num_steps=num_steps, generator=generator, **thinking)
            return EnergyDenoiserOutput(trace.y, energies=trace.energies, steps_taken=trace.steps_taken)
        if thinking:
            raise ValueError(f"{', '.join(thinking)} belong to an answer: leave target out")
        if self.recipe.learn_step_size:
            with torch.no_grad():
                self.step_size.clamp_(min=MIN_STEP_SIZE)
        out = unrolled_loss(
            self._energy_of(x, twice_differentiable=True),
            x,
            lambda y: F.smooth_l1_loss(y, target, beta=self.beta),
            self.recipe,
            step_size=self.step_size,
            num_steps=num_steps,
            generator=generator,
        )
        return EnergyDenoiserOutput(out.y.detach(), out.loss, out.step_losses)

    def think(
        self,
        x: Float[Tensor, "batch first *rest"],
        *,
        num_steps: int | None = None,
        step_size: float | Tensor | None = None,
        noise_std: float = 0.0,
        num_candidates: int = 1,
        tol: float | None = None,
        callback: Callable[[int, Tensor, Tensor], Any] | None = None,
        generator: torch.Generator | None = None,
    ) -> EnergyTrace:
        """The answer and its energies on the way; nothing is random but what `noise_std` asks for.

        Args:
            num_steps: default the recipe's; more than training took warns (`ExtrapolatedStepsWarning`).
            step_size: default the trained alpha.
            noise_std: Langevin noise before every step.
            num_candidates: that many noisy descents for each item; the one of lowest energy is the answer.
            tol: an item stops once its energy changes by less.
            callback: (steps taken, states, energies), with the candidates of an item next to one another.

        Raises ValueError for num_candidates < 1, or several without noise (they would be one and the same).
        """
        steps = self.recipe.num_steps if num_steps is None else num_steps
        if steps > self.recipe.trained_steps[1]:
            warnings.warn(
                f"{steps} steps, trained with at most {self.recipe.trained_steps[1]}",
                ExtrapolatedStepsWarning,
                stacklevel=2,
            )
        if num_candidates < 1:
            raise ValueError(f"num_candidates must be at least 1, got {num_candidates}")
        if num_candidates > 1 and noise_std == 0:
            raise ValueError("candidates differ by their noise alone: give noise_std")
        start = x.repeat_interleave(num_candidates, dim=0)
        alpha = self.step_size.detach() if step_size is None else step_size
        trace = minimize_energy(
            self._energy_of(start),
            start,
            num_steps=steps,
            step_size=alpha,
            noise_std=noise_std,
            tol=tol,
            callback=callback,
            generator=generator,
        )
        if num_candidates == 1:
            return trace
        last = trace.energies[:, -1].reshape(len(x), num_candidates)
        best = last.argmin(dim=1) + num_candidates * torch.arange(len(x), device=last.device)
        return EnergyTrace(trace.y[best], trace.energies[best], trace.steps_taken[best])

    def param_groups(self, lr: float, weight_decay: float = 0.01) -> list[dict[str, Any]]:
        """For an optimizer: a learned alpha apart, with its own rate and no weight decay."""
        alpha = self.step_size if self.recipe.learn_step_size else None
        return parameter_groups(
            self.named_parameters(), alpha, lr, weight_decay, self.step_size_lr_multiplier
        )

    def _energy_of(self, x: Tensor, twice_differentiable: bool = False) -> Callable[[Tensor], Tensor]:
        if self.condition_on_input:
            x = x.clone() if x.is_inference() else x
            return lambda y: self.energy(y, x, twice_differentiable=twice_differentiable)
        return lambda y: self.energy(y, twice_differentiable=twice_differentiable)
