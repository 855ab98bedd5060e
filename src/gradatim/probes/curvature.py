"""The Hessian of any loss without forming it: largest and smallest eigenvalue, trace, trace of its square.

Hutchinson's estimator with random signs z has E[zᵀHz] = Tr(H) and E|Hz|² = Tr(H²); Lanczos with full
reorthogonalisation finds both ends of the spectrum. All of it takes Hessian-vector products only.

The Gauss-Newton part G = Jᵀ (∂²L/∂f²) J stands beside the full Hessian where the model f is given apart from
the loss: with ReLU the difference H - G jumps at kinks, and is what a finite difference across them would
mix in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Weights = Mapping[str, Tensor]
MatVec = Callable[[Tensor], Tensor]
"""[m, P] -> [m, P]: the matrix times each of m vectors."""

POWER_ITERATIONS, POWER_TOLERANCE = 20, 1e-3


@dataclass(frozen=True)
class Curvature:
    """The spectrum's ends and moments at one point.

    lambda_max, lambda_min   algebraically largest and smallest eigenvalue
    trace, trace_sq          estimates of Tr(H) and Tr(H²), with their standard errors
    converged                whether both ends were found within the tolerance
    gauss_newton             the same of the Gauss-Newton part, where the model was given
    """

    lambda_max: float
    lambda_min: float
    trace: float
    trace_sq: float
    trace_se: float
    trace_sq_se: float
    n_params: int
    probes: int
    converged: bool
    gauss_newton: Curvature | None = None

    @property
    def effective_rank(self) -> float:
        """Tr(H)² / Tr(H²) of the Gauss-Newton part if there is one: about how many directions are curved."""
        part = self.gauss_newton or self
        return part.trace**2 / part.trace_sq if part.trace_sq > 0 else 0.0

    def __str__(self) -> str:
        lines = [
            f"curvature of {self.n_params} weights ({self.probes} probes"
            f"{'' if self.converged else ', ends not converged'})",
            f"{'':14s}{'λ max':>11s} {'λ min':>11s} {'Tr H':>11s} {'± se':>9s} {'Tr H²':>11s} {'± se':>9s}",
        ]
        for name, part in (("Hessian", self), ("Gauss-Newton", self.gauss_newton)):
            if part is not None:
                lines.append(
                    f"{name:14s}{part.lambda_max:11.4g} {part.lambda_min:11.4g} {part.trace:11.4g} "
                    f"{part.trace_se:9.2g} {part.trace_sq:11.4g} {part.trace_sq_se:9.2g}"
                )
        return "\n".join(lines)

    def plot(self, axis: Axes) -> None:
        """Bars of the two ends, for the Hessian and its Gauss-Newton part."""
        for k, (name, part) in enumerate((("Hessian", self), ("Gauss-Newton", self.gauss_newton))):
            if part is not None:
                axis.bar(
                    [k - 0.2, k + 0.2], [part.lambda_max, part.lambda_min], 0.35, color=f"C{k}", label=name
                )
        axis.axhline(0, color="0.5", lw=0.8)
        axis.set(xticks=(), ylabel="λ max, λ min")
        axis.legend(fontsize="small")


def curvature(
    loss_fn: Callable[..., Tensor],
    params: Weights,
    probes: int | None = 16,
    *,
    model: Callable[[Weights], Tensor] | None = None,
    iterations: int = 30,
    method: str = "lanczos",
    tolerance: float = 1e-3,
    generator: torch.Generator | None = None,
) -> Curvature:
    """Curvature of a loss at `params`.

    Args:
        loss_fn: a function of the parameters (a mapping like `params`) that gives a scalar; with `model`, a
            function of the model's outputs.
        params: tensors by name; they are not changed.
        probes: random sign vectors for the traces; None takes every unit vector, exact and only for few
            weights.
        model: the outputs as a function of the parameters, to see the Gauss-Newton part apart.
        iterations: the most Lanczos steps, one Hessian-vector product each.
        method: "lanczos"; or "power": power iteration of at most 20 steps, shifted where the eigenvalue of
            largest size is negative. It finds the largest eigenvalue less exactly, and of the smallest only
            what the shift shows.
        tolerance: relative change at which an end counts as found.

    Raises ValueError for an unknown method, probes or iterations < 1, a loss that is no scalar, or weights
    that are not floating point.
    """
    if method not in ("lanczos", "power"):
        raise ValueError(f'method must be "lanczos" or "power", got {method!r}')
    if (probes is not None and probes < 1) or iterations < 1:
        raise ValueError(f"probes and iterations must be at least 1, got {probes} and {iterations}")
    for name, value in params.items():
        if not value.is_floating_point():
            raise ValueError(f"{name} is {value.dtype}; curvature needs floating-point weights")
    operators = [hessian_operator(loss_fn, params, model)]
    if model is not None:
        operators.append(gauss_newton_operator(loss_fn, params, model))
    first = next(iter(params.values()))
    size = sum(value.numel() for value in params.values())
    generator = generator or torch.Generator().manual_seed(0)
    if probes is None:
        signs = torch.eye(size, dtype=first.dtype)
    else:
        signs = torch.randint(0, 2, (probes, size), generator=generator).to(first.dtype) * 2 - 1
    start = torch.randn(size, generator=generator, dtype=torch.float64).to(first.dtype).to(first.device)
    signs = signs.to(first.device)
    parts: list[Curvature] = []
    for matvec in operators:
        products = matvec(signs).double()
        trace, trace_se = _moment((signs.double() * products).sum(1), probes)
        square, square_se = _moment(products.square().sum(1), probes)
        ends = lanczos if method == "lanczos" else power_iteration
        high, low, converged = ends(matvec, start, iterations, tolerance)
        parts.append(Curvature(high, low, trace, square, trace_se, square_se, size, len(signs), converged))
    return parts[0] if model is None else replace(parts[0], gauss_newton=parts[1])


def _moment(values: Tensor, probes: int | None) -> tuple[float, float]:
    if probes is None:
        return float(values.sum()), 0.0
    spread = float(values.std() / math.sqrt(len(values))) if len(values) > 1 else float("nan")
    return float(values.mean()), spread


def hessian_operator(
    loss_fn: Callable[..., Tensor], params: Weights, model: Callable[[Weights], Tensor] | None = None
) -> MatVec:
    """V [m, P] -> V H [m, P], parameters concatenated in their order."""
    with torch.enable_grad():
        leaves = _leaves(params)
        loss = loss_fn(leaves if model is None else model(leaves))
        if loss.dim() != 0:
            raise ValueError(f"the loss must be a scalar, got shape {tuple(loss.shape)}")
        flat = _flat(
            torch.autograd.grad(loss, list(leaves.values()), create_graph=True, materialize_grads=True)
        )

    def product(v: Tensor) -> Tensor:
        return _flat_rows(_batched(flat, list(leaves.values()), v), len(v))

    return product


def gauss_newton_operator(
    loss_fn: Callable[[Tensor], Tensor], params: Weights, model: Callable[[Weights], Tensor]
) -> MatVec:
    """V [m, P] -> V Jᵀ (∂²L/∂f²) J [m, P], f the model's outputs."""
    with torch.enable_grad():
        leaves = _leaves(params)
        weights = list(leaves.values())
        outputs = model(leaves)
        # J v is the derivative in u of (Jᵀu)·v: two backward passes, no forward-mode rules needed.
        dummy = torch.zeros_like(outputs, requires_grad=True)
        pulled = _flat(
            torch.autograd.grad(outputs, weights, dummy, create_graph=True, materialize_grads=True)
        )
        at = outputs.detach().requires_grad_()
        slope = torch.autograd.grad(loss_fn(at), at, create_graph=True, materialize_grads=True)[0]

    def product(v: Tensor) -> Tensor:
        pushed = _batched(pulled, [dummy], v)[0]
        curved = _batched(slope, [at], pushed)[0]
        return _flat_rows(_batched(outputs, weights, curved), len(v))

    return product


def lanczos(
    matvec: MatVec, start: Float[Tensor, " p"], iterations: int = 30, tolerance: float = 1e-3
) -> tuple[float, float, bool]:
    """Largest and smallest eigenvalue of a symmetric matrix, and whether both residuals are small.

    The residual of a Ritz pair is β_k |last entry of its eigenvector|: it bounds the error from above.
    """
    basis = [start / start.norm()]
    alphas: list[float] = []
    betas: list[float] = []
    high = low = 0.0
    for k in range(min(iterations, len(start))):
        w = matvec(basis[-1][None])[0]
        alphas.append(float(w.double() @ basis[-1].double()))
        stacked = torch.stack(basis)
        for _ in range(2):  # once is not enough in float32
            w = w - stacked.T @ (stacked @ w)
        beta = float(w.norm())
        small = torch.diag(torch.tensor(alphas, dtype=torch.float64))
        if betas:
            off = torch.tensor(betas, dtype=torch.float64)
            small = small + torch.diag(off, 1) + torch.diag(off, -1)
        values, vectors = torch.linalg.eigh(small)
        high, low = float(values[-1]), float(values[0])
        scale = max(abs(high), abs(low))
        residuals = beta * vectors[-1, [0, -1]].abs()
        exhausted = beta <= 1e-7 * max(scale, 1e-30)
        if exhausted or (k >= 2 and float(residuals.max()) <= tolerance * scale):
            return high, low, True
        betas.append(beta)
        basis.append(w / beta)
    return high, low, len(alphas) == len(start)


def power_iteration(
    matvec: MatVec,
    start: Float[Tensor, " p"],
    iterations: int = POWER_ITERATIONS,
    tolerance: float = POWER_TOLERANCE,
) -> tuple[float, float, bool]:
    """The same by repeated multiplication: the eigenvalue of largest size, then, shifted, the other end.

    The other end is λ plus the eigenvalue of largest size of H - λI.
    """
    steps = min(iterations, POWER_ITERATIONS)
    dominant, done = _power(matvec, start, steps, tolerance)
    other, shifted_done = _power(lambda v: matvec(v) - dominant * v, start, steps, tolerance)
    ends = sorted((dominant, dominant + other))
    return ends[1], ends[0], done and shifted_done


def _power(matvec: MatVec, start: Tensor, iterations: int, tolerance: float) -> tuple[float, bool]:
    v = start / start.norm()
    value = 0.0
    for k in range(iterations):
        w = matvec(v[None])[0]
        before, value = value, float(w.double() @ v.double())
        norm = float(w.norm())
        if norm == 0:
            return 0.0, True
        v = w / norm
        if k and abs(value - before) <= tolerance * abs(value):
            return value, True
    return value, False


def _leaves(params: Weights) -> dict[str, Tensor]:
    return {name: value.detach().clone().requires_grad_() for name, value in params.items()}


def _flat(parts: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([part.reshape(-1) for part in parts])


def _flat_rows(parts: list[Tensor], rows: int) -> Tensor:
    return torch.cat([part.reshape(rows, -1) for part in parts], dim=1).detach()


def _batched(outputs: Tensor, inputs: list[Tensor], vectors: Tensor) -> list[Tensor]:
    """The vector-Jacobian product of each of m vectors [m, ...]: all at once, or one by one."""
    if not outputs.requires_grad:
        return [torch.zeros(len(vectors), *i.shape, dtype=i.dtype, device=i.device) for i in inputs]
    vectors = vectors.reshape(len(vectors), *outputs.shape)

    def grad(v: Tensor, many: bool) -> tuple[Tensor, ...]:
        return torch.autograd.grad(
            outputs, inputs, v, retain_graph=True, is_grads_batched=many, materialize_grads=True
        )

    if len(vectors) == 1:
        return [g[None] for g in grad(vectors[0], False)]
    try:
        return list(grad(vectors, True))
    except RuntimeError:
        # Some operations have no batched backward: one vector after the other then.
        return [torch.stack(g) for g in zip(*(grad(v, False) for v in vectors), strict=True)]
