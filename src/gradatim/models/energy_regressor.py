"""Regression by descent on a learned energy E(x, y): predict where it is low, and how sure by its height."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from numbers import Integral, Real
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data
from torch import Tensor, nn

from gradatim.models.energy_recipe import MIN_STEP_SIZE, EnergyRecipe, unrolled_loss
from gradatim.optim.energy_descent import minimize_energy

Function = TypeVar("Function", bound=Callable[..., None])


class PairEnergy(nn.Module):
    """E(x, y) = W_L silu(... silu(W_1 [x; y] + b_1)): rows of features and targets to one number each."""

    def __init__(self, inputs: int, outputs: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        widths = (inputs + outputs, *hidden)
        layers: list[nn.Module] = []
        for n, m in itertools.pairwise(widths):
            layers += [nn.Linear(n, m), nn.SiLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], 1))

    def forward(self, x: Float[Tensor, "rows d"], y: Float[Tensor, "rows k"]) -> Float[Tensor, " rows"]:
        """[rows, d], [rows, k] -> [rows]."""
        return self.layers(torch.cat([x, y], dim=-1)).squeeze(-1)


def _unchecked(function: Function) -> Function:
    """scikit-learn's contract: `__init__` takes anything, and `fit` judges it."""
    function.__no_type_check__ = True  # type: ignore[attr-defined]
    return function


class EnergyRegressor(RegressorMixin, BaseEstimator):
    """y_0 = the mean;  y_{i+1} = y_i - alpha dE/dy(x, y_i);  answer after `num_steps` of them.

    The energy is a network on features and targets (both standardised inside), trained with AdamW by the loss
    of where the steps lead: `EnergyRecipe` has the switches, "Energy-Based Transformers are Scalable Learners
    and Thinkers" (2025, arXiv 2507.02092) the method. Numbers of targets as `y` has columns.

    Args:
        hidden_layer_sizes: of the energy network.
        step_size: alpha, in units of the standardised target. learn_step_size: as a parameter.
        num_steps: of an answer. num_steps_range: in training, drawn per batch; None: `num_steps`.
        step_size_jitter, langevin_noise_std, truncate, loss_on: as in `EnergyRecipe`.
        loss: "squared_error" or "smooth_l1" (beta = 1, in standard deviations).
        learning_rate, alpha: of AdamW, its rate and decoupled weight decay; the rate falls linearly to 0.
        max_iter: passes over the rows. batch_size: rows at a time.
        device: of training and answers, as torch names it.
        random_state: of the initial weights and all draws.

    Attributes: `energy_` (the network, float64), `step_size_`, `loss_curve_`, `n_iter_`, `n_features_in_`.
    Raises ValueError for settings out of range and for weights that are all 0.
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "hidden_layer_sizes": ["array-like"],
        "step_size": [Interval(Real, 0, None, closed="neither")],
        "learn_step_size": ["boolean"],
        "num_steps": [Interval(Integral, 1, None, closed="left")],
        "num_steps_range": [tuple, list, None],
        "step_size_jitter": [Interval(Real, 1, None, closed="left")],
        "langevin_noise_std": [Interval(Real, 0, None, closed="left")],
        "truncate": ["boolean"],
        "loss_on": [StrOptions({"last", "all"})],
        "loss": [StrOptions({"squared_error", "smooth_l1"})],
        "learning_rate": [Interval(Real, 0, None, closed="neither")],
        "alpha": [Interval(Real, 0, None, closed="left")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "device": [str],
        "random_state": ["random_state"],
    }

    @_unchecked
    def __init__(
        self,
        hidden_layer_sizes: tuple[int, ...] = (64, 64),
        *,
        step_size: float = 1.0,
        learn_step_size: bool = False,
        num_steps: int = 3,
        num_steps_range: tuple[int, int] | None = (2, 3),
        step_size_jitter: float = 2.0,
        langevin_noise_std: float = 0.0,
        truncate: bool = True,
        loss_on: str = "last",
        loss: str = "squared_error",
        learning_rate: float = 1e-2,
        alpha: float = 1e-3,
        max_iter: int = 100,
        batch_size: int = 128,
        device: str = "cpu",
        random_state: Any = None,
    ) -> None:
        self.hidden_layer_sizes = hidden_layer_sizes
        self.step_size = step_size
        self.learn_step_size = learn_step_size
        self.num_steps = num_steps
        self.num_steps_range = num_steps_range
        self.step_size_jitter = step_size_jitter
        self.langevin_noise_std = langevin_noise_std
        self.truncate = truncate
        self.loss_on = loss_on
        self.loss = loss
        self.learning_rate = learning_rate
        self.alpha = alpha
        self.max_iter = max_iter
        self.batch_size = batch_size
        self.device = device
        self.random_state = random_state

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> EnergyRegressor:
        """Train the energy on rows `X` [n, d] and targets `y` [n] or [n, k]."""
        self._validate_params()
        sizes = tuple(int(n) for n in self.hidden_layer_sizes)
        if any(n < 1 for n in sizes):
            raise ValueError(f"hidden_layer_sizes must all be at least 1, got {self.hidden_layer_sizes!r}")
        recipe = self._recipe()
        X, y = validate_data(self, X, y, dtype=np.float64, multi_output=True, y_numeric=True)
        weight = np.asarray(
            _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
        )
        present = weight > 0
        X, targets, weight = X[present], y.reshape(len(y), -1)[present], weight[present]
        self._flat = y.ndim == 1
        self.x_mean_, self.x_scale_ = _moments(X, weight)
        self.y_mean_, self.y_scale_ = _moments(targets, weight)
        seed = int(check_random_state(self.random_state).randint(np.iinfo(np.int32).max))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            energy = PairEnergy(X.shape[1], targets.shape[1], sizes).double().to(self.device)
        rows = tuple(
            self._tensor(part)
            for part in (
                (X - self.x_mean_) / self.x_scale_,
                (targets - self.y_mean_) / self.y_scale_,
                weight / weight.mean(),
            )
        )
        self.step_size_, self.loss_curve_ = self._train(energy, rows, recipe, seed)
        self.energy_, self.n_iter_ = energy.eval().requires_grad_(False), len(self.loss_curve_)
        return self

    def predict(self, X: Any, num_steps: int | None = None) -> np.ndarray:
        """Targets [n] or [n, k] after `num_steps` steps (default: the parameter), without any randomness."""
        check_is_fitted(self, "energy_")
        x = self._inputs(X)
        trace = minimize_energy(
            lambda y: self.energy_(x, y),
            torch.zeros(len(x), len(self.y_mean_), dtype=x.dtype, device=x.device),
            num_steps=self.num_steps if num_steps is None else num_steps,
            step_size=self.step_size_,
            final_energy=False,
        )
        found = trace.y.cpu().numpy() * self.y_scale_ + self.y_mean_
        return found[:, 0] if self._flat else found

    def score_samples(self, X: Any, y: Any = None) -> Float[np.ndarray, " rows"]:
        """-E(x, y) per row, higher for targets that suit the row; without `y`, of the row's own prediction.

        An energy has no unit and no zero: differences at the same x mean something, others may not.
        """
        check_is_fitted(self, "energy_")
        y = self.predict(X) if y is None else y
        x = self._inputs(X)
        targets = np.asarray(y, dtype=np.float64).reshape(len(x), -1)
        if targets.shape[1] != len(self.y_mean_):
            raise ValueError(f"y must have {len(self.y_mean_)} columns as in fit, got {targets.shape[1]}")
        with torch.no_grad():
            energies = self.energy_(x, self._tensor((targets - self.y_mean_) / self.y_scale_))
        return -energies.cpu().numpy()

    def _recipe(self) -> EnergyRecipe:
        steps = None if self.num_steps_range is None else tuple(int(n) for n in self.num_steps_range)
        if steps is not None and len(steps) != 2:
            raise ValueError(f"num_steps_range must hold two numbers, got {self.num_steps_range!r}")
        return EnergyRecipe(
            step_size=float(self.step_size),
            num_steps=int(self.num_steps),
            num_steps_range=steps,  # type: ignore[arg-type]
            learn_step_size=bool(self.learn_step_size),
            step_size_jitter=float(self.step_size_jitter),
            langevin_noise_std=float(self.langevin_noise_std),
            truncate=bool(self.truncate),
            loss_on=self.loss_on,
        )

    def _train(
        self, energy: PairEnergy, rows: tuple[Tensor, ...], recipe: EnergyRecipe, seed: int
    ) -> tuple[float, list[float]]:
        x, y, weight = rows
        generator = torch.Generator().manual_seed(seed)
        step_size = torch.tensor(recipe.step_size, dtype=x.dtype, device=x.device)
        groups: list[dict[str, Any]] = [{"params": list(energy.parameters()), "weight_decay": self.alpha}]
        if recipe.learn_step_size:
            groups.append({"params": [step_size.requires_grad_()], "weight_decay": 0.0})
        optimizer = torch.optim.AdamW(groups, lr=self.learning_rate)
        batches = -(-len(x) // self.batch_size)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, self.max_iter * batches)
        squared = self.loss == "squared_error"
        curve = []
        for _ in range(self.max_iter):
            order = torch.randperm(len(x), generator=generator).to(x.device)
            losses = []
            for at in order.split(self.batch_size):
                inputs, targets, shares = x[at], y[at], weight[at]

                def judged(found: Tensor, targets: Tensor = targets, shares: Tensor = shares) -> Tensor:
                    loss = F.mse_loss if squared else F.smooth_l1_loss
                    return (loss(found, targets, reduction="none").mean(dim=1) * shares).mean()

                out = unrolled_loss(
                    partial(energy, inputs),
                    torch.zeros_like(targets),
                    judged,
                    recipe,
                    step_size=step_size,
                    generator=generator,
                )
                optimizer.zero_grad()
                out.loss.backward()
                nn.utils.clip_grad_norm_(energy.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                if recipe.learn_step_size:
                    with torch.no_grad():
                        step_size.clamp_(min=MIN_STEP_SIZE)
                losses.append(float(out.loss.detach()) * len(at))
            curve.append(sum(losses) / len(x))
        return float(step_size.detach()), curve

    def _inputs(self, X: Any) -> Tensor:
        X = validate_data(self, X, dtype=np.float64, reset=False)
        return self._tensor((X - self.x_mean_) / self.x_scale_)

    def _tensor(self, values: np.ndarray) -> Tensor:
        return torch.tensor(np.asarray(values, dtype=np.float64), device=self.device)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags


def _moments(values: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weighted mean and deviation per column; a constant column keeps the scale 1."""
    mean = np.average(values, axis=0, weights=weight)
    scale = np.sqrt(np.average((values - mean) ** 2, axis=0, weights=weight))
    return mean, np.where(scale > 1e-12 * (1.0 + np.abs(mean)), scale, 1.0)
