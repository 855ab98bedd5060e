"""Descent on an energy: predicting by minimising E(y), one independent item at a time.

"Energy-Based Transformers are Scalable Learners and Thinkers" (Gladstone et al. 2025, arXiv 2507.02092),
eq. 1 and 2. Nothing here knows a model: `energy_fn` is any differentiable callable.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

EnergyFunction = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class EnergyTrace:
    """Where a descent ended, and what it saw on the way.

    y            [*items, ...] the final state
    energies     [*items, num_steps + 1] in float32 or better: entry i is the energy at which step i + 1 was
                 taken (noise included), the last one that of `y`. An item that stopped repeats its last.
    steps_taken  [*items] steps that moved each item
    """

    y: Float[Tensor, "*state"]
    energies: Float[Tensor, "*items steps"]
    steps_taken: Int[Tensor, "*items"]

    @property
    def decrease(self) -> Float[Tensor, "*items"]:
        """First energy minus last, per item."""
        return self.energies[..., 0] - self.energies[..., -1]


def minimize_energy(
    energy_fn: EnergyFunction,
    y0: Tensor,
    *,
    num_steps: int,
    step_size: float | Tensor,
    noise_std: float = 0.0,
    create_graph: bool = False,
    truncate: bool = False,
    project: Callable[[Tensor], Tensor] | None = None,
    callback: Callable[[int, Tensor, Tensor], Any] | None = None,
    tol: float | None = None,
    generator: torch.Generator | None = None,
    final_energy: bool = True,
) -> EnergyTrace:
    """y <- P(y + eta), eta ~ N(0, noise_std^2);  y <- P(y - step_size * dE(y)/dy);  num_steps times.

    Args:
        energy_fn: [*items, ...] -> [*items], lower is better. Items must not influence each other's energy:
            their sum is differentiated.
        y0: the start, of floating type. Left as it is.
        step_size: number or tensor that broadcasts with `y0`; a tensor may require a gradient.
        noise_std: Langevin noise before every step, so that what comes back carries none of its own.
        create_graph: the result can be differentiated through the steps (second order). Else it is detached.
        truncate: with `create_graph`, through the last step alone; the steps before it cost no graph.
        project: applied to the start, after the noise and after every step; energies are seen at its values.
        callback: called with (steps taken so far, y, energies [*items]) at the start and after every step.
        tol: an item stops as soon as its energy changed by less than this in its last step; others go on.
        generator: of the noise, on its own device.
        final_energy: False spares the last evaluation, and `energies` its last entry.

    Works under `torch.no_grad()` and `torch.inference_mode()` (what `energy_fn` closes over must then not be
    an inference tensor). Updates are computed in float32 where `y0` is narrower.

    Raises ValueError for num_steps < 1, a step size or tol not above 0, negative noise, truncate with tol or
    without create_graph, tol without the final energy, an energy that does not depend on y or that is not one
    per item, and a gradient that is not finite (it names the step).
    """
    _check(y0, num_steps, step_size, noise_std, create_graph, truncate, tol, final_energy)
    # An inference tensor cannot enter a graph; a clone made outside inference mode can.
    with torch.inference_mode(False), torch.enable_grad():
        y = y0.clone() if y0.is_inference() else y0
        if isinstance(step_size, Tensor) and step_size.is_inference():
            step_size = step_size.clone()
        energies: list[Tensor] = []
        active = taken = None
        y = _moved(y, project)
        for step in range(num_steps):
            graph = create_graph and (not truncate or step == num_steps - 1)
            if noise_std:
                y = _moved(_with_noise(y, noise_std, generator, active), project)
            if not graph or truncate:
                y = y.detach()
            if not y.requires_grad:
                y = y.detach().requires_grad_()
            energy = _energy(energy_fn, y)
            if active is None:
                active = torch.ones(energy.shape, dtype=torch.bool, device=energy.device)
                taken = torch.zeros(energy.shape, dtype=torch.int64, device=energy.device)
            if tol is not None and energies:
                active = active & ((energy - energies[-1]).abs() >= tol)
            _see(energies, energy, callback, step, y, graph)
            if tol is not None and not bool(active.any()):
                break
            (gradient,) = torch.autograd.grad(energy.sum(), y, create_graph=graph)
            if not bool(torch.isfinite(gradient).all()):
                raise ValueError(
                    f"the energy's gradient is not finite at step {step + 1} of {num_steps}: "
                    "use a smaller step_size, or a wider floating type"
                )
            wide = torch.promote_types(y.dtype, torch.float32)
            moved = (y.to(wide) - step_size * gradient.to(wide)).to(y.dtype)
            moved = _moved(moved, project)
            y = moved if tol is None else torch.where(_over(active, y), moved, y)
            assert taken is not None
            taken = taken + active
        else:
            if final_energy:
                with torch.set_grad_enabled(create_graph):
                    _see(
                        energies,
                        _energy(energy_fn, y, grad=create_graph),
                        callback,
                        num_steps,
                        y,
                        create_graph,
                    )
    assert taken is not None
    energies += energies[-1:] * (num_steps + final_energy - len(energies))
    return EnergyTrace(y if create_graph else y.detach(), torch.stack(energies, dim=-1), taken)


def _check(
    y0: Tensor,
    num_steps: int,
    step_size: float | Tensor,
    noise_std: float,
    create_graph: bool,
    truncate: bool,
    tol: float | None,
    final_energy: bool,
) -> None:
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    if not y0.is_floating_point():
        raise ValueError(f"y0 must be of a floating type, got {y0.dtype}")
    smallest = float(step_size.detach().min()) if isinstance(step_size, Tensor) else step_size
    if not smallest > 0:
        raise ValueError(f"step_size must be above 0, got {smallest}")
    if noise_std < 0:
        raise ValueError(f"noise_std must not be negative, got {noise_std}")
    if tol is not None and not tol > 0:
        raise ValueError(f"tol must be above 0, got {tol}: leave it out to take every step")
    if tol is not None and not final_energy:
        raise ValueError("tol compares energies: it needs final_energy=True")
    if truncate and not create_graph:
        raise ValueError("truncate says which steps enter the graph: it needs create_graph=True")
    if truncate and tol is not None:
        raise ValueError("with tol no step is known to be the last: use either truncate or tol")


def _energy(energy_fn: EnergyFunction, y: Tensor, grad: bool = True) -> Tensor:
    energy = energy_fn(y)
    if energy.shape != y.shape[: energy.ndim]:
        raise ValueError(
            f"energy_fn must give one energy per item: leading dimensions of {tuple(y.shape)}, "
            f"got {tuple(energy.shape)}"
        )
    if grad and not energy.requires_grad:
        raise ValueError("energy_fn's result does not depend on y: there is nothing to descend")
    return energy.to(torch.promote_types(energy.dtype, torch.float32))


def _see(
    energies: list[Tensor],
    energy: Tensor,
    callback: Callable[[int, Tensor, Tensor], Any] | None,
    step: int,
    y: Tensor,
    graph: bool,
) -> None:
    energies.append(energy if graph else energy.detach())
    if callback is not None:
        callback(step, y if graph else y.detach(), energies[-1])


def _moved(y: Tensor, project: Callable[[Tensor], Tensor] | None) -> Tensor:
    return y if project is None else project(y)


def _with_noise(y: Tensor, std: float, generator: torch.Generator | None, active: Tensor | None) -> Tensor:
    device = y.device if generator is None else generator.device
    wide = torch.promote_types(y.dtype, torch.float32)
    noise = torch.randn(y.shape, generator=generator, device=device, dtype=wide).to(y.device)
    noisy = (y.to(wide) + std * noise).to(y.dtype)
    return noisy if active is None else torch.where(_over(active, y), noisy, y)


def _over(items: Tensor, y: Tensor) -> Tensor:
    """[*items] -> broadcastable with [*items, ...]."""
    return items.reshape(*items.shape, *(1,) * (y.ndim - items.ndim))
