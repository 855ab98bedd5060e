"""A boosted network as the last layers of a deep one: its features come from any backbone.

Source: "Sequential Training of Neural Networks with Gradient Boosting", 2019, arXiv 1909.12098.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn import functional

Loss = Callable[[Tensor, Tensor], Tensor]

LOSSES: dict[str, Loss] = {
    "cross_entropy": lambda scores, y: functional.cross_entropy(scores, y, reduction="none"),
    "binary_cross_entropy": lambda scores, y: functional.binary_cross_entropy_with_logits(
        scores, y.reshape(scores.shape).to(scores.dtype), reduction="none"
    ).sum(1),
    "squared_error": lambda scores, y: 0.5 * (scores - y.reshape(scores.shape)).square().sum(1),
}

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "logistic": nn.Sigmoid,
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "identity": nn.Identity,
}


@dataclass(frozen=True)
class HeadStage:
    """One added block: its step rho, the mean loss after it, and the scores it left, [n, k]."""

    step: float
    loss: float
    scores: Tensor


class BoostedHead(nn.Module):
    """F(z) = F0 + sum_t rho_t h_t(z) on features z of a backbone, grown stage by stage.

    Each h_t has `units_per_step` hidden units and is fitted by L-BFGS to the residual -dL/dF by squared
    error plus 1/2 alpha (||W1||^2 + ||W2||^2) / n. `forward(x, stages=m)` uses the first m blocks and costs
    in proportion to m.

    Weights are buffers: boosting sets them, gradient descent does not, and gradients flow through the
    head to the features. `to_sequential()` gives ordinary parameters to fine-tune. `state_dict` holds all
    stages; loading one resizes the head.

    Parameters
    ----------
    in_features, out_features : d and k. Outputs are logits (classes) or predictions.
    units_per_step : hidden units per block, J.
    loss : "cross_entropy" (integer targets), "binary_cross_entropy" (out_features=1, targets 0/1),
        "squared_error", or any `loss(scores [n, k], targets) -> [n]` without reduction, such as a module of
        `gradatim.losses` with `reduction="none"`. Its residual and its curvature along the block come from
        automatic differentiation, so it must be twice differentiable.
    learning_rate, subsample, activation, alpha, max_iter, tol : as in `BoostedMLPClassifier`.
    line_search : "newton" or "none". For the three named losses the Newton step uses the Hessian's
        diagonal, as the paper's code does, and is 1 for the squared error; for other losses it uses the
        full curvature along the block.
    """

    hidden_weight: Tensor
    hidden_bias: Tensor
    output_weight: Tensor
    stage_bias: Tensor
    step_sizes: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        units_per_step: int = 1,
        *,
        loss: str | Loss = "cross_entropy",
        learning_rate: float = 0.1,
        subsample: float = 0.5,
        activation: str = "logistic",
        alpha: float = 1e-2,
        max_iter: int = 50,
        tol: float = 1e-4,
        line_search: str = "newton",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, value in (
            ("in_features", in_features),
            ("out_features", out_features),
            ("units_per_step", units_per_step),
            ("max_iter", max_iter),
        ):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not 0.0 < subsample <= 1.0:
            raise ValueError(f"subsample must lie in (0, 1], got {subsample}")
        if learning_rate <= 0.0 or alpha < 0.0:
            raise ValueError(
                f"learning_rate must be above 0 and alpha not below, got {learning_rate} and {alpha}"
            )
        if isinstance(loss, str) and loss not in LOSSES:
            raise ValueError(f"loss must be one of {sorted(LOSSES)} or a callable, got {loss!r}")
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {sorted(ACTIVATIONS)}, got {activation!r}")
        if line_search not in ("newton", "none"):
            raise ValueError(f"line_search must be 'newton' or 'none', got {line_search!r}")
        if loss == "binary_cross_entropy" and out_features != 1:
            raise ValueError(f"binary_cross_entropy needs out_features=1, got {out_features}")
        self.in_features, self.out_features, self.units_per_step = in_features, out_features, units_per_step
        self.loss: str | Loss = loss
        self.learning_rate, self.subsample, self.alpha = learning_rate, subsample, alpha
        self.max_iter, self.tol, self.line_search = max_iter, tol, line_search
        self.activation = activation
        self._act = ACTIVATIONS[activation]()
        self._active: int | None = None
        empty: Any = {"device": device, "dtype": dtype or torch.get_default_dtype()}
        self.register_buffer("hidden_weight", torch.empty(0, in_features, **empty))
        self.register_buffer("hidden_bias", torch.empty(0, **empty))
        self.register_buffer("output_weight", torch.empty(out_features, 0, **empty))
        self.register_buffer("stage_bias", torch.zeros(1, out_features, **empty))
        self.register_buffer("step_sizes", torch.empty(0, **empty))

    @property
    def n_stages(self) -> int:
        """Stages fitted."""
        return int(self.step_sizes.shape[0])

    @property
    def n_active_stages(self) -> int:
        """Stages `forward` uses unless told otherwise; set it to switch later stages off, and back on."""
        return self.n_stages if self._active is None else min(self._active, self.n_stages)

    @n_active_stages.setter
    def n_active_stages(self, stages: int) -> None:
        self._active = None if self._checked(stages) == self.n_stages else stages

    def forward(self, x: Float[Tensor, "*batch d"], stages: int | None = None) -> Float[Tensor, "*batch k"]:
        """Scores of the first `stages` blocks (default: `n_active_stages`)."""
        m = self.n_active_stages if stages is None else self._checked(stages)
        units = m * self.units_per_step
        hidden = self._act(functional.linear(x, self.hidden_weight[:units], self.hidden_bias[:units]))
        return functional.linear(hidden, self.output_weight[:, :units], self.stage_bias[m])

    @torch.no_grad()
    def fit_stage(
        self,
        features: Float[Tensor, "n d"],
        targets: Shaped[Tensor, "n ..."],
        *,
        weight: Float[Tensor, " n"] | None = None,
        scores: Float[Tensor, "n k"] | None = None,
        generator: torch.Generator | None = None,
    ) -> HeadStage:
        """Add one block. The first call also sets F0, the constant of least loss of the named losses.

        `scores` are the current F at these rows, as the last `HeadStage` gave them; without them they are
        computed from all stages. `weight` [n] weighs rows in the block's fit and in its step. Features in
        half precision are fitted in float32. Draws come from `generator` (default: one seeded with the
        number of stages), which must live on the features' device.

        Raises ValueError on NaN or infinite features, wrong shapes, or too few rows.
        """
        z, w = self._checked_rows(features, targets, weight)
        if self.n_stages == 0 and scores is None:
            self.stage_bias[0] = self._initial(targets, w).to(self.stage_bias)
        F = (self(features, self.n_stages) if scores is None else scores).to(z.dtype)
        generator = generator or torch.Generator(device=z.device).manual_seed(self.n_stages)
        gradient = self._gradient(F, targets)
        residual = -gradient
        drawn = math.floor(self.subsample * len(z) + 1e-9)
        if drawn < self.units_per_step + 2:
            raise ValueError(
                f"subsample={self.subsample} of {len(z)} rows draws {drawn}, fewer than units_per_step + 2 = "
                f"{self.units_per_step + 2}"
            )
        rows = torch.randperm(len(z), generator=generator, device=z.device)[:drawn]
        W1, c1, W2, c2, moved = self._fit_block(z[rows], residual[rows], w[rows], generator)
        h = functional.linear(self._act(functional.linear(z, W1, c1)), W2, c2)
        rho = self.learning_rate * self._newton(F, targets, gradient, h, w) if moved else 0.0
        self._append(W1, c1, rho * W2, rho * c2, rho)
        F = F + rho * h
        return HeadStage(rho, float((w * self._losses(F, targets)).sum() / w.sum()), F)

    def fit(
        self,
        features: Float[Tensor, "n d"],
        targets: Shaped[Tensor, "n ..."],
        n_stages: int,
        *,
        weight: Float[Tensor, " n"] | None = None,
        generator: torch.Generator | None = None,
    ) -> list[float]:
        """Add `n_stages` blocks, carrying the scores along; gives the mean loss after each."""
        losses, scores = [], None
        for _ in range(n_stages):
            stage = self.fit_stage(features, targets, weight=weight, scores=scores, generator=generator)
            scores = stage.scores
            losses.append(stage.loss)
        return losses

    def to_sequential(self, stages: int | None = None) -> nn.Sequential:
        """`Linear, activation, Linear` with the first `stages` blocks as parameters."""
        m = self.n_active_stages if stages is None else self._checked(stages)
        units = m * self.units_per_step
        kind: Any = {"device": self.stage_bias.device, "dtype": self.stage_bias.dtype}
        hidden = nn.utils.skip_init(nn.Linear, self.in_features, units, **kind)
        output = nn.utils.skip_init(nn.Linear, units, self.out_features, **kind)
        with torch.no_grad():
            hidden.weight.copy_(self.hidden_weight[:units])
            hidden.bias.copy_(self.hidden_bias[:units])
            output.weight.copy_(self.output_weight[:, :units])
            output.bias.copy_(self.stage_bias[m])
        return nn.Sequential(hidden, ACTIVATIONS[self.activation](), output)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"units_per_step={self.units_per_step}, n_stages={self.n_stages}"
        )

    def _fit_block(
        self, z: Tensor, residual: Tensor, weight: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, bool]:
        """L-BFGS from a uniform start on sum_i w_i/2 ||h_i - r_i||^2 / sum w + ridge."""
        d, J, k = self.in_features, self.units_per_step, self.out_features
        inner = math.sqrt((2.0 if self.activation == "logistic" else 6.0) / (d + J))
        outer = math.sqrt((2.0 if self.activation == "logistic" else 6.0) / (J + k))
        shapes = ((J, d), (J,), (k, J), (k,))
        block = [
            ((2.0 * torch.rand(s, generator=generator, device=z.device, dtype=z.dtype) - 1.0) * b)
            for s, b in zip(shapes, (inner, inner, outer, outer), strict=True)
        ]
        start = [p.clone() for p in block]
        share = (weight / weight.sum())[:, None]
        ridge = self.alpha / float(weight.sum())
        for p in block:
            p.requires_grad_(True)
        W1, c1, W2, c2 = block
        search = torch.optim.LBFGS(
            block,
            max_iter=self.max_iter,
            tolerance_grad=self.tol,
            tolerance_change=1e-9,
            line_search_fn="strong_wolfe",
        )

        def closure() -> Tensor:
            search.zero_grad()
            h = functional.linear(self._act(functional.linear(z, W1, c1)), W2, c2)
            value = 0.5 * (share * (h - residual).square()).sum()
            value = value + 0.5 * ridge * (W1.square().sum() + W2.square().sum())
            value.backward()
            return value

        with torch.enable_grad():
            search.step(closure)
        finite = all(bool(p.isfinite().all()) for p in block)
        moved = finite and any(not torch.equal(p, s) for p, s in zip(block, start, strict=True))
        # A search that ran away leaves its start, with step 0.
        kept = block if finite else start
        W1, c1, W2, c2 = (p.detach() for p in kept)
        return W1, c1, W2, c2, moved

    def _losses(self, F: Tensor, targets: Tensor) -> Tensor:
        loss: Any = LOSSES[self.loss] if isinstance(self.loss, str) else self.loss
        losses: Tensor = loss(F, targets)
        if losses.shape != (len(F),):
            raise ValueError(
                f"loss must give one value per row, shape ({len(F)},), got {tuple(losses.shape)}; "
                'use reduction="none"'
            )
        return losses

    def _gradient(self, F: Tensor, targets: Tensor) -> Tensor:
        with torch.enable_grad():
            F = F.detach().requires_grad_(True)
            (gradient,) = torch.autograd.grad(self._losses(F, targets).sum(), F)
        return gradient.detach()

    def _newton(self, F: Tensor, targets: Tensor, gradient: Tensor, h: Tensor, weight: Tensor) -> float:
        if self.line_search == "none" or self.loss == "squared_error":
            return 1.0
        if self.loss == "cross_entropy":
            p = F.softmax(1)
            curvature = p * (1.0 - p) * h * h
        elif self.loss == "binary_cross_entropy":
            curvature = torch.sigmoid(F) * torch.sigmoid(-F) * h * h
        else:
            curvature = h * self._hessian_times(F, targets, h)
        numerator = -float((weight * (gradient * h).sum(1)).sum())
        denominator = float((weight * curvature.sum(1)).sum())
        step = numerator / max(denominator, torch.finfo(F.dtype).eps * float(weight.sum()))
        return step if math.isfinite(step) and step > 0.0 else 0.0

    def _hessian_times(self, F: Tensor, targets: Tensor, h: Tensor) -> Tensor:
        with torch.enable_grad():
            F = F.detach().requires_grad_(True)
            (gradient,) = torch.autograd.grad(self._losses(F, targets).sum(), F, create_graph=True)
            if not gradient.requires_grad:
                return torch.zeros_like(F)
            (product,) = torch.autograd.grad((gradient * h).sum(), F)
        return product.detach()

    def _initial(self, targets: Tensor, weight: Tensor) -> Tensor:
        share = (weight / weight.sum()).to(torch.float64)
        if self.loss == "cross_entropy":
            prior = torch.zeros(self.out_features, dtype=torch.float64, device=targets.device)
            prior.index_add_(0, targets, share)
            # A class without rows gets the prior of half a row.
            prior = prior.clamp_min(0.5 / len(targets)).log()
            return prior - prior.mean()
        if self.loss == "binary_cross_entropy":
            p = (share * targets.reshape(-1)).sum().clamp(0.5 / len(targets), 1.0 - 0.5 / len(targets))
            return torch.logit(p).reshape(1)
        if self.loss == "squared_error":
            return share @ targets.reshape(len(targets), -1).to(torch.float64)
        return torch.zeros(self.out_features, device=targets.device)

    def _append(self, W1: Tensor, c1: Tensor, W2: Tensor, c2: Tensor, rho: float) -> None:
        kind = self.stage_bias
        self.hidden_weight = torch.cat([self.hidden_weight, W1.to(kind)])
        self.hidden_bias = torch.cat([self.hidden_bias, c1.to(kind)])
        self.output_weight = torch.cat([self.output_weight, W2.to(kind)], dim=1)
        self.stage_bias = torch.cat([self.stage_bias, self.stage_bias[-1:] + c2.to(kind)])
        self.step_sizes = torch.cat([self.step_sizes, kind.new_tensor([rho])])

    def _checked(self, stages: int) -> int:
        if not 0 <= stages <= self.n_stages:
            raise ValueError(f"stages must lie between 0 and the {self.n_stages} fitted, got {stages}")
        return stages

    def _checked_rows(
        self, features: Tensor, targets: Tensor, weight: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        if features.shape[1] != self.in_features:
            raise ValueError(f"features have {features.shape[1]} columns, in_features is {self.in_features}")
        if not bool(features.isfinite().all()):
            raise ValueError("features contain NaN or infinity; check the backbone's output")
        z = features.detach()
        z = z.float() if z.dtype in (torch.float16, torch.bfloat16) else z
        if weight is None:
            return z, torch.ones(len(z), dtype=z.dtype, device=z.device)
        if not bool(weight.isfinite().all()) or bool((weight < 0).any()) or not bool((weight > 0).any()):
            raise ValueError("weight must be finite, not negative and not all 0")
        return z, weight.to(z.dtype)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:
        """Take on the stages of the saved head before its arrays are copied in."""
        for name in ("hidden_weight", "hidden_bias", "output_weight", "stage_bias", "step_sizes"):
            saved = state_dict.get(prefix + name)
            if saved is not None and getattr(self, name).ndim == saved.ndim:
                setattr(self, name, getattr(self, name).new_empty(self._resized(name, saved)))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _resized(self, name: str, saved: Tensor) -> torch.Size:
        """The saved shape along the growing dimension, ours along the other: a mismatch is reported."""
        shape = list(getattr(self, name).shape)
        grows = 1 if name == "output_weight" else 0
        shape[grows] = saved.shape[grows]
        return torch.Size(shape)
