"""The descent inside the language model: steps on the state of every position and candidate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from gradatim.models.energy_attention import KeyValues
from gradatim.models.energy_body import EnergyBody
from gradatim.models.energy_config import EnergyTransformerConfig
from gradatim.models.energy_second_order import energy_gradient
from gradatim.models.energy_vocabulary import States, embedded, scored


@dataclass(frozen=True)
class Settings:
    """What a call asks for; None means as the configuration says (`drawn` fills it in)."""

    num_steps: int | None
    step_size: float | None
    num_candidates: int
    noise_std: float | None
    tol: float | None
    final_energy: bool
    jitter: float = 1.0
    generator: torch.Generator | None = None

    def drawn(
        self, config: EnergyTransformerConfig, training: bool, generator: torch.Generator | None
    ) -> Settings:
        """Settings of one call: training draws the number of steps and later the step sizes."""
        steps, noise, jitter = self.num_steps, self.noise_std, 1.0
        if training:
            if steps is None and config.num_steps_range is not None:
                assert generator is not None
                least, most = config.num_steps_range
                drawn = torch.randint(least, most + 1, (), generator=generator, device=generator.device)
                steps = int(drawn)
            noise = config.langevin_noise_std if noise is None else noise
            jitter = config.step_size_jitter if self.step_size is None else 1.0
        return replace(
            self,
            num_steps=steps or config.num_steps,
            noise_std=noise or 0.0,
            jitter=jitter,
            generator=generator,
        )


@dataclass(frozen=True)
class Descent:
    """Where it ended: the fields of `EnergyCausalLMOutput`, candidates already chosen among."""

    logits: Tensor | None
    energies: Tensor
    losses: Sequence[Tensor]
    candidate_energies: Tensor | None
    steps_taken: Tensor


def descend(
    body: EnergyBody,
    projection: Tensor,
    settings: Settings,
    *,
    embeddings: Tensor,
    positions: Tensor,
    visible: Tensor,
    kept: int,
    alpha: Tensor,
    start: Tensor,
    noise: Callable[[Tensor, int], Tensor],
    cache: Cache | None,
    graph: bool,
    score: Callable[[Tensor], Tensor] | None,
    training: bool,
) -> Descent:
    """Take the steps.

    Args:
        projection: W [V, D]. embeddings, positions, visible: of the new tokens; the last `kept` of them
            descend.
        start: [batch, candidates, kept, V].
        graph: the result can be differentiated, as far as the configuration's detach_steps and truncate let
            it.
        score: loss of a state [batch, kept, V].
    """
    config = body.config
    steps, rows, seen = settings.num_steps or 1, positions[:, -kept:], visible[:, :, -kept:]
    z, wide = start, start.dtype
    sizes = _step_sizes(alpha.to(wide), settings, z)
    known = _contexts(body, embeddings, positions, visible, cache, graph)
    parameters = [p for p in body.parameters() if p.requires_grad]
    active = torch.ones(z.shape[:3], dtype=torch.bool, device=z.device)
    taken = torch.zeros(z.shape[:3], dtype=torch.int64, device=z.device)
    energies: list[Tensor] = []
    losses: list[Tensor] = []
    last_landscape = 0

    for i in range(steps):
        last_landscape = i if body.embed_steps is not None else 0
        graphed = graph and (not config.truncate or i == steps - 1)
        if settings.noise_std:
            z = z + settings.noise_std * noise(z, i) * active.unsqueeze(-1)
        if config.detach_steps or config.truncate or not graph:
            z = z.detach()
        with torch.set_grad_enabled(graphed):
            p = z.softmax(dim=-1)
            e = _project(p, projection)
        g, energy = _gradient(
            body,
            e,
            known(i),
            parameters,
            rows,
            seen,
            step=last_landscape,
            route=config.second_order,
            graph=graphed,
        )
        if settings.tol is not None and energies:
            active = active & ((energy - energies[-1]).abs() >= settings.tol)
        energies.append(energy)
        if settings.tol is not None and not bool(active.any()):
            break
        _check_finite(g, i, steps)
        with torch.set_grad_enabled(graphed):
            if config.update_space == "logit":
                slope = (g.to(projection.dtype) @ projection.T).to(wide)  # dE/dp = (dE/de) W^T
                # Through the softmax: dE/dz = p * (dE/dp - <p, dE/dp>).
                slope = p * (slope - (p * slope).sum(-1, keepdim=True))
                moved = z - sizes * slope
            else:
                moved = _step(p, sizes, g, projection, in_place=not graphed)
            z = moved if settings.tol is None else torch.where(active.unsqueeze(-1), moved, z)
            taken = taken + active
            if score is not None and z.shape[1] == 1 and _scored(config, training, i, steps):
                losses.append(score(z[:, 0]))
    else:
        if settings.final_energy or z.shape[1] > 1:
            with torch.no_grad():
                e = _project(z.detach().softmax(dim=-1), projection)
                energies.append(body.energies(e, known(steps - 1), rows, seen, step=last_landscape))
    energies += energies[-1:] * (steps + int(settings.final_energy) - len(energies))
    return _chosen(z, torch.stack(energies, dim=-1), taken, losses, score)


def descend_in_chunks(
    body: EnergyBody,
    projection: Tensor,
    settings: Settings,
    *,
    embeddings: Tensor,
    positions: Tensor,
    visible: Tensor,
    alpha: Tensor,
    states: States,
    targets: Tensor,
    items: Tensor | int,
    whole: bool,
) -> Descent:
    """The steps of training, with the vocabulary met in the chunks of `states`; the same loss and gradients.

    targets: [batch x time] following tokens, -100 where none is scored. items: what the summed loss is
    divided by. whole: also the final state, which is all that is then kept of the vocabulary's size.
    """
    config, steps, shape = body.config, settings.num_steps or 1, positions.shape
    sizes = _step_sizes(alpha.to(states.wide), settings, embeddings.new_empty(shape[0], 1, shape[1]))
    known = _contexts(body, embeddings, positions, visible, None, torch.is_grad_enabled())
    parameters = [p for p in body.parameters() if p.requires_grad]
    energies: list[Tensor] = []
    losses: list[Tensor] = []
    for i in range(steps):
        graphed = torch.is_grad_enabled() and (not config.truncate or i == steps - 1)
        with torch.set_grad_enabled(graphed):
            e = embedded(states, i, projection).view(shape[0], 1, shape[1], -1)
        g, energy = _gradient(
            body,
            e,
            known(i),
            parameters,
            positions,
            visible,
            step=i if body.embed_steps is not None else 0,
            route=config.second_order,
            graph=graphed,
        )
        energies.append(energy[:, 0])
        _check_finite(g, i, steps)
        with torch.set_grad_enabled(graphed):
            move = (sizes * g).flatten(0, 2)
            if _scored(config, True, i, steps):
                losses.append(scored(states, i, move, projection, targets) / items)
        states.moves.append(move.detach())
    with torch.no_grad():
        logits = states.after(steps).view(*shape, -1) if whole else None
    taken = torch.full(shape, steps, device=positions.device)
    return Descent(logits, torch.stack(energies, dim=-1), losses, None, taken)


def _contexts(
    body: EnergyBody,
    embeddings: Tensor,
    positions: Tensor,
    visible: Tensor,
    cache: Cache | None,
    graph: bool,
) -> Callable[[int], list[KeyValues]]:
    """step -> the context's keys and values in that step's landscape, computed once."""
    contexts: dict[int, list[KeyValues]] = {}

    def known(step: int) -> list[KeyValues]:
        landscape = 0 if body.config.shares_context else step
        if landscape not in contexts:
            with torch.set_grad_enabled(graph):
                contexts[landscape] = body.context(
                    embeddings, positions, visible, step=landscape, cache=cache
                )
        return contexts[landscape]

    return known


def _check_finite(g: Tensor, step: int, steps: int) -> None:
    if not bool(torch.isfinite(g).all()):
        raise ValueError(
            f"the energy's gradient is not finite at step {step + 1} of {steps}: "
            "use a smaller step_size or learning rate"
        )


def _scored(config: EnergyTransformerConfig, training: bool, step: int, steps: int) -> bool:
    """Cross-entropy over a vocabulary costs as much as a step: training takes only those it counts."""
    return step == steps - 1 or not training or config.loss_on == "all"


def _chosen(
    z: Tensor,
    energies: Tensor,
    taken: Tensor,
    losses: list[Tensor],
    score: Callable[[Tensor], Tensor] | None,
) -> Descent:
    """Of several candidates the one of the lowest final energy, position by position."""
    if z.shape[1] == 1:
        if score is not None and not losses:
            losses.append(score(z[:, 0]))
        return Descent(z[:, 0], energies[:, 0], losses, None, taken[:, 0])
    final = energies[..., -1]
    best = final.argmin(dim=1, keepdim=True)  # [batch, 1, time]

    def pick(x: Tensor) -> Tensor:
        index = best.reshape(*best.shape, *(1,) * (x.dim() - 3)).expand(-1, -1, -1, *x.shape[3:])
        return x.gather(1, index).squeeze(1)

    logits = pick(z)
    scored = [] if score is None else [score(logits)]
    return Descent(logits, pick(energies), scored, final, pick(taken))


def _step_sizes(alpha: Tensor, settings: Settings, z: Tensor) -> Tensor:
    """Scalar, or [batch, candidates, time, 1] where training draws from [alpha / j, alpha j]."""
    if settings.step_size is not None:
        return alpha.new_tensor(settings.step_size)
    j, generator = settings.jitter, settings.generator
    if j == 1.0:
        return alpha
    assert generator is not None
    u = torch.rand(*z.shape[:3], 1, generator=generator, device=generator.device).to(z)
    return alpha * (1 / j + u * (j - 1 / j))


def _step(p: Tensor, sizes: Tensor, g: Tensor, projection: Tensor, in_place: bool) -> Tensor:
    """p - a (dE/de) W^T. The size is multiplied where the gradient is narrow, and the rest is one product."""
    if projection.dtype != p.dtype or torch.is_autocast_enabled(p.device.type):
        # In half precision a large size belongs after the product, in which it could overflow.
        return p - sizes * (g.to(projection.dtype) @ projection.T).to(p.dtype)
    rows, narrow = p.flatten(0, 2), (sizes * g).flatten(0, 2)
    moved = (rows.addmm_ if in_place else rows.addmm)(narrow, projection.T, alpha=-1)
    return moved.view_as(p)


def _project(p: Tensor, projection: Tensor) -> Tensor:
    """e = p W, kept in float32 or wider: it is what the energy is differentiated by."""
    return (p.to(projection.dtype) @ projection).to(p.dtype)


def _gradient(
    body: EnergyBody,
    e: Tensor,
    known: Sequence[KeyValues],
    parameters: Sequence[Tensor],
    rows: Tensor,
    seen: Tensor,
    *,
    step: int,
    route: str,
    graph: bool,
) -> tuple[Tensor, Tensor]:
    def energy(e: Tensor, flat: Sequence[Tensor], by_hand: bool) -> Tensor:
        pairs: Any = list(zip(flat[::2], flat[1::2], strict=True))
        return body.energies(e, pairs, rows, seen, step=step, by_hand=by_hand)

    flat = [x if graph else x.detach() for pair in known for x in pair]
    return energy_gradient(energy, e, flat, parameters, route=route, create_graph=graph)
