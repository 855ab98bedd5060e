"""Trials of study 01 on pictures: denoising by descent on an energy, and three other ways of equal compute.

All arms share a transformer body of one size and see the same number of training FLOPs (matrix products of
forward and backward passes, `probes.count_flops`): the energy model takes `scale["energy_steps"]` updates,
and every other arm as many as that compute buys. Images are scikit-learn's digits, noise is added at t = 99
of a linear schedule of 1000; t = 199 and 299 are never trained. (Diffusion trains on all times up to 99.)

Metrics of every arm, for t in `scale["times"]`:
    noisy_t{t}          PSNR (dB) of what is given
    psnr_t{t}_p{k}      PSNR after k passes: k in `scale["passes"]`; for diffusion 100, 200, 300
    best_passes_t{t}    the number of passes that is best on validation images
    best_psnr_t{t}      PSNR of the test images with that number
    updates, parameters, train_gflops, pass_mflops (one pass for one image; an energy's includes its gradient)
of the energy arms as well:
    thinking_gain_t{t}  best_psnr minus the PSNR after as many steps as training took at most
    past_minimum_t{t}   best_psnr minus the PSNR after the most passes (positive: it got worse)
    energy_fall_t{t}    share of images whose energy still fell from the best number of passes to the most
    energy_rank_t{t}    Spearman correlation over images of final energy and squared error, after 3 passes
Curves: "psnr t={t}" over passes; of the energy arms "energy t={t}", the mean above its last value; "loss"; of
every arm "figure/picture t={t} p{k}", the pixels of one test image (0: as given), beside
"figure/picture clean".

Settled on seeds 0 to 2: rates of 1e-3 and 3e-3 for every arm, step sizes of 200, 500 and 1500. 6e-3 was tried
on seed 0 for the energies and the feed-forward network.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from gradatim.bench import Arm, Curve, Outcome, Scale
from gradatim.models.denoisers import DiffusionDenoiser, FeedForwardDenoiser
from gradatim.models.energy_denoiser import EnergyDenoiser
from gradatim.models.energy_recipe import EnergyRecipe, ExtrapolatedStepsWarning
from gradatim.probes.compute import count_flops
from gradatim.tasks.image_denoising import NoiseSchedule, digit_images, psnr

SHAPE = (1, 8, 8)
TRAINED_TIME = 99

DENOISING_ARMS = (
    Arm("denoising/ebt", {"kind": "energy"}, label="energy, 3 descent steps"),
    Arm("denoising/dit", {"kind": "diffusion"}, label="diffusion (DiT, DDIM)", role="baseline"),
    Arm(
        "denoising/feed-forward",
        {"kind": "feed-forward", "rate": 6e-3},
        label="feed-forward, one pass",
        role="control",
    ),
    Arm(
        "denoising/recurrent",
        {"kind": "feed-forward", "steps": (2, 3)},
        label="feed-forward, 2 or 3 passes",
        role="control",
    ),
)
ABLATIONS = (
    Arm(
        "denoising/ebt-one-size",
        {"kind": "energy", "recipe": {"step_size_jitter": 1.0}},
        label="energy without random step sizes",
    ),
    Arm(
        "denoising/ebt-three-steps",
        {"kind": "energy", "recipe": {"num_steps_range": None}},
        label="energy, always 3 steps",
    ),
    Arm(
        "denoising/ebt-noise",
        {"kind": "energy", "recipe": {"langevin_noise_std": 0.1}},
        label="energy with Langevin noise",
    ),
    Arm(
        "denoising/ebt-whole",
        {"kind": "energy", "recipe": {"truncate": False}},
        label="energy, all steps differentiated",
    ),
    Arm("denoising/ebt-system1", {"kind": "energy", "system": 1}, label="energy, the S1 recipe"),
    Arm(
        "denoising/ebt-input",
        {"kind": "energy", "condition_on_input": True},
        label="energy that reads the noisy image",
    ),
)

QUICK = {
    "width": 32,
    "layers": 3,
    "heads": 4,
    "batch": 32,
    "energy_steps": 200,
    "step_size": 500.0,
    "rates": {"energy": 3e-3, "diffusion": 3e-3, "feed-forward": 3e-3},
    "times": (99, 199, 299),
    "passes": (1, 2, 3, 4, 6, 10, 15, 20),
    "n_valid": 64,
    "n_test": 100,
}
STANDARD = {**QUICK, "width": 64, "batch": 64, "energy_steps": 1000, "n_valid": 150, "n_test": 297}
PAPER = {**STANDARD, "width": 256, "layers": 8, "heads": 8, "batch": 128, "energy_steps": 100_000}


@dataclass(frozen=True)
class Pictures:
    """Clean images and their noisy versions by time."""

    clean: Tensor
    noisy: Mapping[int, Tensor]


def denoise(arm: Arm, seed: int, scale: Scale) -> Outcome:
    """Train one arm with its share of compute, then count PSNR against passes."""
    parts = digit_images(seed, valid=scale["n_valid"], test=scale["n_test"])
    generator = torch.Generator().manual_seed(seed)
    valid, test = (_pictures(part, scale["times"], generator) for part in (parts.valid, parts.test))
    model = make_denoiser(arm, scale, seed)
    updates = updates_of(arm, scale)
    losses = _train(model, parts.train, updates, arm, scale, generator)
    cost = training_flops(arm, scale)
    metrics: dict[str, float] = {
        "updates": float(updates),
        "parameters": float(sum(p.numel() for p in model.parameters())),
        "train_gflops": updates * cost / 1e9,
        "pass_mflops": _pass_flops(model, test.clean[:1]) / 1e6,
    }
    curves = {"loss": _smoothed(losses)}
    for t in scale["times"]:
        found, lines = _judged(model, valid, test, t, scale)
        metrics |= found
        curves |= lines
    return Outcome(metrics, curves)


def make_denoiser(arm: Arm, scale: Scale, seed: int) -> nn.Module:
    """The untrained model of an arm; bodies of all arms have one size."""
    settings = arm.settings
    sizes = {
        "hidden_size": scale["width"],
        "num_hidden_layers": scale["layers"],
        "num_attention_heads": scale["heads"],
        "seed": seed,
    }
    if settings["kind"] == "diffusion":
        return DiffusionDenoiser(SHAPE, max_time=TRAINED_TIME, **sizes)
    if settings["kind"] == "feed-forward":
        return FeedForwardDenoiser(SHAPE, num_steps_range=tuple(settings.get("steps", (1, 1))), **sizes)
    system = EnergyRecipe.system1 if settings.get("system") == 1 else EnergyRecipe.system2
    recipe = system(scale["step_size"], **settings.get("recipe", {}))
    return EnergyDenoiser(
        SHAPE, recipe=recipe, condition_on_input=settings.get("condition_on_input", False), **sizes
    )


def training_flops(arm: Arm, scale: Scale) -> float:
    """FLOPs of one update, the mean over the numbers of steps that training draws."""
    model = make_denoiser(arm, scale, 0)
    x = torch.zeros(scale["batch"], *SHAPE)
    counted = []
    for steps in _step_counts(model):
        options = {} if steps is None else {"num_steps": steps}
        counted.append(count_flops(lambda options=options: model(x, x, **options).loss.backward()))  # type: ignore[misc]
    return sum(counted) / len(counted)


def updates_of(arm: Arm, scale: Scale) -> int:
    """How many updates the compute of `energy_steps` updates of the plain energy arm buys this arm."""
    budget = scale["energy_steps"] * training_flops(DENOISING_ARMS[0], scale)
    return max(1, round(budget / training_flops(arm, scale)))


def _step_counts(model: nn.Module) -> tuple[int | None, ...]:
    if isinstance(model, EnergyDenoiser):
        low, high = model.recipe.trained_steps
    elif isinstance(model, FeedForwardDenoiser):
        low, high = model.num_steps_range
    else:
        return (None,)
    return tuple(range(low, high + 1))


def _pass_flops(model: nn.Module, x: Tensor) -> int:
    if isinstance(model, EnergyDenoiser):
        two, one = (count_flops(partial(_answer, model, x, n)) for n in (2, 1))
        return two - one
    if isinstance(model, FeedForwardDenoiser):
        return count_flops(partial(_answer, model, x, 1))
    assert isinstance(model, DiffusionDenoiser)
    with torch.no_grad():
        return count_flops(lambda: model.noise(x, torch.zeros(1)))


def _train(
    model: nn.Module, images: Tensor, updates: int, arm: Arm, scale: Scale, generator: torch.Generator
) -> list[float]:
    from gradatim.bench.fit import fit

    rate = arm.settings.get("rate") or scale["rates"][arm.settings["kind"]]
    groups = model.param_groups(rate) if isinstance(model, EnergyDenoiser) else model.parameters()
    optimizer = torch.optim.AdamW(groups, lr=rate, weight_decay=0.01)
    warm_up = max(1, updates // 20)
    schedule = torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [
            torch.optim.lr_scheduler.LinearLR(optimizer, 1 / warm_up, 1.0, warm_up),
            torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, updates - warm_up)),
        ],
        [warm_up],
    )

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return model(*batch, generator=generator).loss

    batches = _Batches(images, scale["batch"], updates, generator)
    return list(fit(model, optimizer, batches, loss, scheduler=schedule, steps=updates, clip=1.0).losses)


class _Batches:
    """(noisy, clean) pairs, both drawn afresh for every update."""

    def __init__(self, images: Tensor, size: int, count: int, generator: torch.Generator) -> None:
        self.images, self.size, self.count, self.generator = images, size, count, generator
        self.schedule = NoiseSchedule()

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(self.count):
            clean = self.images[torch.randint(len(self.images), (self.size,), generator=self.generator)]
            eps = torch.randn(clean.shape, generator=self.generator)
            yield self.schedule.add_noise(clean, eps, TRAINED_TIME), clean


def _pictures(clean: Tensor, times: tuple[int, ...], generator: torch.Generator) -> Pictures:
    schedule = NoiseSchedule()
    noise = {t: torch.randn(clean.shape, generator=generator) for t in times}
    return Pictures(clean, {t: schedule.add_noise(clean, eps, t) for t, eps in noise.items()})


def _answer(model: nn.Module, x: Tensor, passes: int, callback: Callable[..., Any] | None = None) -> Tensor:
    if isinstance(model, EnergyDenoiser):
        with warnings.catch_warnings():
            # Taking more steps than training did is what is measured here.
            warnings.simplefilter("ignore", ExtrapolatedStepsWarning)
            return model.think(x, num_steps=passes, callback=callback).y
    with torch.no_grad():
        return model(x, num_steps=passes).prediction


@torch.no_grad()
def _states(model: nn.Module, x: Tensor, passes: tuple[int, ...]) -> tuple[dict[int, Tensor], Tensor | None]:
    """The answer after each number of passes, and an energy's [batch, most + 1] values on the way."""
    if isinstance(model, DiffusionDenoiser):
        each, found = model.max_time + 1, {}
        for round_ in (1, 2, 3):
            x = model.denoise(x)
            found[round_ * each] = x
        return found, None
    if isinstance(model, FeedForwardDenoiser):
        found, state = {}, x
        for k in range(1, max(passes) + 1):
            state = _answer(model, state, 1)
            if k in passes:
                found[k] = state
        return found, None
    found, energies = {}, []

    def seen(step: int, y: Tensor, energy: Tensor) -> None:
        energies.append(energy)
        if step in passes:
            found[step] = y

    _answer(model, x, max(passes), seen)
    return found, torch.stack(energies, dim=1)


def _judged(
    model: nn.Module, valid: Pictures, test: Pictures, t: int, scale: Scale
) -> tuple[dict[str, float], dict[str, Curve]]:
    passes = tuple(scale["passes"])
    # In one batch: many small passes cost more than their arithmetic.
    n = len(valid.clean)
    every, energies = _states(model, torch.cat([valid.noisy[t], test.noisy[t]]), passes)
    choice = {k: psnr(state[:n], valid.clean) for k, state in every.items()}
    states = {k: state[n:] for k, state in every.items()}
    energies = None if energies is None else energies[n:]
    found = {k: psnr(state, test.clean) for k, state in states.items()}
    best, most = max(choice, key=lambda k: choice[k]), max(found)
    metrics = {f"psnr_t{t}_p{k}": value for k, value in found.items()}
    metrics |= {
        f"noisy_t{t}": psnr(test.noisy[t], test.clean),
        f"best_passes_t{t}": float(best),
        f"best_psnr_t{t}": found[best],
    }
    curves = {f"psnr t={t}": Curve(list(found), list(found.values()), "passes", "PSNR (dB)")}
    for k, state in {0: test.noisy[t], **states}.items():
        curves[f"figure/picture t={t} p{k}"] = _picture(state[0])
    curves["figure/picture clean"] = _picture(test.clean[0])
    if energies is not None:
        assert isinstance(model, EnergyDenoiser)
        trained = model.recipe.trained_steps[1]
        errors = (states[trained] - test.clean).square().flatten(1).mean(1)
        rank = float(spearmanr(energies[:, trained].numpy(), errors.numpy()).statistic)
        metrics |= {
            f"thinking_gain_t{t}": found[best] - found[trained],
            f"past_minimum_t{t}": found[best] - found[most],
            f"energy_fall_t{t}": float((energies[:, most] < energies[:, best]).double().mean()),
            f"energy_rank_t{t}": rank,
        }
        mean = energies.double().mean(0)
        above = (mean - mean[-1]).tolist()
        curves[f"energy t={t}"] = Curve(list(range(len(above))), above, "passes", "energy above its last")
    return metrics, curves


def _picture(image: Tensor) -> Curve:
    pixels = image.flatten().tolist()
    return Curve(list(range(len(pixels))), pixels, "pixel", "brightness")


def _smoothed(losses: list[float], points: int = 50) -> Curve:
    width = max(1, len(losses) // points)
    means = [sum(losses[i : i + width]) / width for i in range(0, len(losses) - width + 1, width)]
    return Curve([(i + 1) * width for i in range(len(means))], means, "update", "training loss")
