"""Trials of study 01 on text: energy transformers and Transformer++ on characters, and what thinking buys.

A seed is one initialisation and one stream of windows of the training part. Every arm of the same size is
trained with AdamW at the rate of its kind, constant after a warm-up, so that readings along a run are
points of a scaling curve. Energy arms and `text/transformer` take the same updates on the same windows;
`text/transformer-compute` takes as many as the FLOPs of the S1 arm buy (`probes.count_flops`, gradients of
gradients included).

Metrics of every arm:
    loss, ppl             of the next character on the test part
    updates, parameters, train_gflops
    data_exponent         b of ppl = a tokens^(-b) along the run
    {set}_loss            on "dyck", "arithmetic" and "python" (never trained on)
of the energy arms, for every set and "text":
    {set}_s{k}            loss after k steps;  {set}_n{N}, {set}_average{N}, {set}_oracle{N}: of N candidates
    think_{set}           1 - ppl(most trained steps) / ppl(one fewer)
    beyond_{set}          1 - ppl(most steps) / ppl(most trained steps)
    verify_{set}          1 - ppl(best of the most candidates) / ppl(one);  average_{set}, oracle_{set}
    think_ood ...         the mean of these over the three other sets
    rank_energy           Spearman correlation over characters of final energy and loss;  rank_entropy: of the
                          entropy of the predicted distribution
Curves: "scaling" (tokens, ppl), "thinking/{set}", "verifying/{set}", "averaging/{set}",
"figure/descent/{character}" (the probability of a character along the steps at one place of the test part)
and "figure/descent/energy".
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import lru_cache, partial
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from gradatim.bench import Arm, Curve, Outcome, Scale
from gradatim.bench.scaling_law import fit_power_law
from gradatim.inference.thinking import ThinkingCurve, think, thinking_curve, token_losses
from gradatim.models.replay_buffer import ReplayBuffer
from gradatim.probes.compute import count_flops
from gradatim.tasks.contexts import context_generator
from gradatim.tasks.formal_text import FORMAL_TEXTS
from gradatim.tasks.text_stream import TextStream, text_stream

WINDOWS, REPLAYS, FORMAL = range(3)
SETS = ("text", *FORMAL_TEXTS)


def trial(arm: Arm, seed: int, scale: Scale) -> Outcome:
    """Text or pictures, by the arm's name."""
    if arm.name.startswith("denoising/"):
        from gradatim.studies.energy_denoising_trials import denoise

        return denoise(arm, seed, scale["denoising"])
    return read_and_think(arm, seed, scale["text"])


def data(scale: Scale) -> str:
    """The digest of the text."""
    return text_stream(scale["text"]["source"]).digest


def read_and_think(arm: Arm, seed: int, scale: Scale) -> Outcome:
    """Train one language model, read its loss along the way, then let it think."""
    stream = text_stream(scale["source"])
    length = scale["context"]
    test = stream.chunks(scale["part"], length, scale["windows"])
    model = make_model(arm, scale, stream.vocab_size, seed)
    updates = updates_of(arm, scale, stream.vocab_size)
    points: dict[int, float] = {}
    marks = {max(1, round(updates * share)) for share in scale["readings"]} | {updates}

    def read(step: int) -> None:
        if step in marks:
            points[step * scale["batch"] * length] = math.exp(mean_loss(model, test))

    _train(model, stream, updates, arm, seed, scale, read)
    model.eval()
    tokens, perplexities = list(points), list(points.values())
    metrics = {
        "loss": math.log(perplexities[-1]),
        "ppl": perplexities[-1],
        "updates": float(updates),
        "parameters": float(sum(p.numel() for p in model.parameters())),
        "train_gflops": updates * training_flops(arm, scale, stream.vocab_size) / 1e9,
        "data_exponent": fit_power_law(tokens, perplexities)[0],
    }
    curves = {"scaling": Curve([float(t) for t in tokens], perplexities, "characters seen", "perplexity")}
    texts = {"text": test[: scale["thought_windows"]], **_formal(stream, length, scale["formal_windows"])}
    for name, windows in texts.items():
        if name != "text":
            metrics[f"{name}_loss"] = mean_loss(model, windows)
        if arm.settings["kind"] == "energy":
            found, lines = _thoughts(model, name, windows, scale)
            metrics |= found
            curves |= lines
    if arm.settings["kind"] == "energy":
        for what in ("think", "beyond", "verify", "average", "oracle"):
            gains = [metrics[f"{what}_{name}"] for name in FORMAL_TEXTS if f"{what}_{name}" in metrics]
            if gains:
                metrics[f"{what}_ood"] = sum(gains) / len(gains)
        metrics |= _doubts(model, texts["text"])
        curves |= _descent(model, stream, test)
    return Outcome(metrics, curves)


def make_model(arm: Arm, scale: Scale, vocab_size: int, seed: int) -> nn.Module:
    """The untrained model of an arm; all of one width have the same blocks."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from gradatim.models.energy_config import EnergyTransformerConfig
    from gradatim.models.energy_transformer import EnergyTransformerForCausalLM

    width = arm.settings.get("width", scale["width"])
    sizes: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": width,
        "num_hidden_layers": scale["layers"],
        "num_attention_heads": scale["heads"],
        "intermediate_size": width,
        "max_position_embeddings": scale["context"],
    }
    if arm.settings["kind"] == "transformer":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return LlamaForCausalLM(LlamaConfig(**sizes, tie_word_embeddings=False))
    recipe = getattr(EnergyTransformerConfig, arm.settings["recipe"])
    settings = {**scale[arm.settings["recipe"]], **arm.settings.get("config", {})}
    return EnergyTransformerForCausalLM(recipe(**sizes, **settings, noise_seed=seed), seed=seed)


def training_flops(arm: Arm, scale: Scale, vocab_size: int) -> float:
    """FLOPs of one update, the mean over the numbers of steps that training draws, replays included."""
    settings = {k: v for k, v in arm.settings.items() if k != "compute"}
    return _training_flops(repr(sorted(settings.items())), Frozen(arm, scale), vocab_size)


def updates_of(arm: Arm, scale: Scale, vocab_size: int) -> int:
    """`steps`, or as many as the compute of the S1 arm of the same width buys."""
    if not arm.settings.get("compute"):
        return int(scale["steps"])
    twin = Arm("s1", {"kind": "energy", "recipe": "system1", **_width(arm)})
    budget = scale["steps"] * training_flops(twin, scale, vocab_size)
    return max(1, round(budget / training_flops(arm, scale, vocab_size)))


class Frozen:
    """An arm and a scale that a cache takes as equal whenever the rest of the key is."""

    def __init__(self, arm: Arm, scale: Scale) -> None:
        self.arm, self.scale = arm, scale

    def __hash__(self) -> int:
        return 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Frozen) and repr(self.scale) == repr(other.scale)


@lru_cache(maxsize=64)
def _training_flops(key: str, frozen: Frozen, vocab_size: int) -> float:
    arm, scale = frozen.arm, frozen.scale
    model = make_model(arm, scale, vocab_size, 0).train()
    config: Any = model.config
    replays = config.replay_capacity > 0 if arm.settings["kind"] == "energy" else False
    rows = scale["batch"] + (int(config.replay_fraction * scale["batch"]) if replays else 0)
    ids = torch.zeros(rows, scale["context"], dtype=torch.int64)
    counts: list[dict[str, int]] = [{}]
    if arm.settings["kind"] == "energy" and config.num_steps_range:
        counts = [{"num_steps": n} for n in range(config.num_steps_range[0], config.num_steps_range[1] + 1)]
    found = [count_flops(partial(_update, model, ids, options)) for options in counts]
    return sum(found) / len(found)


def _update(model: nn.Module, ids: Tensor, options: Mapping[str, Any]) -> None:
    model(ids, labels=ids, **options).loss.backward()


def mean_loss(model: nn.Module, windows: Tensor) -> float:
    """Nats per next character, as the model answers by itself."""
    training = model.training
    model.eval()
    with torch.no_grad():
        found = model(
            windows, labels=windows, **({"output_energies": False} if _is_energy(model) else {})
        ).loss
    model.train(training)
    return float(found)


def _train(
    model: nn.Module, stream: TextStream, updates: int, arm: Arm, seed: int, scale: Scale, read: Any
) -> None:
    from gradatim.bench.fit import fit

    rate = scale["rates"][arm.settings.get("recipe", "transformer")] * (
        scale["width"] / arm.settings.get("width", scale["width"])
    )
    energy: Any = model if _is_energy(model) else None
    groups = model.parameters() if energy is None else energy.param_groups(rate, 0.01)
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.999), weight_decay=0.01)
    warm_up = max(1, updates // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / warm_up))
    buffer: ReplayBuffer | None = None if energy is None else energy.replay_buffer()
    generator = context_generator(REPLAYS, seed)

    def loss(model: nn.Module, ids: Tensor) -> Tensor:
        if buffer is None:
            return model(ids, labels=ids).loss
        ids, state = buffer.extend(ids, energy.config.replay_fraction, generator)
        out = model(ids, labels=ids, initial_state=state)
        buffer.push(ids, out.logits)
        return out.loss

    batches = _Windows(stream, scale["batch"], scale["context"], updates, seed)
    fit(
        model, optimizer, batches, loss, scheduler=schedule, steps=updates, clip=1.0,
        on_step=lambda step: read(step.step),
    )  # fmt: skip


class _Windows:
    """Windows of the training part; update k sees the same ones in every arm of a seed."""

    def __init__(self, stream: TextStream, batch: int, length: int, updates: int, seed: int) -> None:
        self.stream, self.batch, self.length, self.updates, self.seed = stream, batch, length, updates, seed

    def __iter__(self) -> Iterator[Tensor]:
        generator = context_generator(WINDOWS, self.seed)
        for _ in range(self.updates):
            yield self.stream.windows("train", self.batch, self.length, generator)


def _formal(stream: TextStream, length: int, count: int) -> dict[str, Tensor]:
    """The other sets in windows, the same for every arm and seed."""
    found = {}
    for i, (name, make) in enumerate(FORMAL_TEXTS.items()):
        ids = stream.encode(make(length * count, context_generator(FORMAL, i)))
        found[name] = ids[: length * count].view(count, length)
    return found


def _thoughts(
    model: nn.Module, name: str, windows: Tensor, scale: Scale
) -> tuple[dict[str, float], dict[str, Curve]]:
    config: Any = model.config
    trained, known = config.max_trained_steps, config.step_embedding == "none"
    steps = tuple(n for n in scale["think"] if known or n <= trained)
    candidates = tuple(scale["candidates"]) if known else ()
    found: ThinkingCurve = thinking_curve(model, windows, steps=steps, candidates=candidates)
    loss = dict(zip(steps, found.step_losses, strict=True))
    metrics = {f"{name}_s{n}": value for n, value in loss.items()}
    metrics |= {f"think_{name}": _gain(loss[trained], loss[trained - 1])}
    lines = {f"thinking/{name}": _perplexities(loss, "steps")}
    if known:
        metrics[f"beyond_{name}"] = _gain(loss[max(steps)], loss[trained])
    if candidates:
        chosen = {"best": found.best, "average": found.average, "oracle": found.oracle}
        for what, metric, letter in (
            ("best", "verify", "n"),
            ("average", "average", "average"),
            ("oracle", "oracle", "oracle"),
        ):
            metrics[f"{metric}_{name}"] = _gain(chosen[what][-1], found.best[0])
            by_count = dict(zip(candidates, chosen[what], strict=True))
            metrics |= {f"{name}_{letter}{n}": value for n, value in by_count.items()}
            title = {"best": "verifying", "average": "averaging", "oracle": "oracle"}[what]
            lines[f"{title}/{name}"] = _perplexities(by_count, "candidates")
    return metrics, lines


def _doubts(model: nn.Module, windows: Tensor) -> dict[str, float]:
    """How well the final energy, and the plain entropy, rank characters by their loss."""
    found = think(model, windows[:, :-1])
    losses = token_losses(found.logits, windows[:, 1:]).flatten()
    p = found.logits.softmax(-1)
    entropy = -(p * found.logits.log_softmax(-1)).sum(-1).flatten()
    return {
        "rank_energy": _rank(found.uncertainty.flatten(), losses),
        "rank_entropy": _rank(entropy, losses),
    }


def _descent(model: nn.Module, stream: TextStream, test: Tensor) -> dict[str, Curve]:
    """Probabilities of the five likeliest characters along the steps, in the middle of the first window."""
    config: Any = model.config
    most = config.max_trained_steps if config.step_embedding != "none" else 6
    at = test.shape[1] // 2
    given = test[:1, : at + 1]
    states = [model.start_state(given)[:, -1]]  # type: ignore[operator]
    states += [think(model, given, num_steps=n).logits[:, -1] for n in range(1, most + 1)]
    p = torch.stack([z.softmax(-1)[0] for z in states])
    x = [float(n) for n in range(most + 1)]
    shown = p[config.num_steps].topk(5).indices.tolist()
    curves = {
        f"figure/descent/{stream.decode(torch.tensor([c]))!r}": Curve(
            x, p[:, c].tolist(), "steps", "probability"
        )
        for c in shown
    }
    along = think(model, test[:, :-1], num_steps=most).energies.mean((0, 1)).tolist()
    curves["figure/descent/energy"] = Curve(x, along, "steps", "mean energy")
    return curves


def _gain(loss: float, than: float) -> float:
    """By how much perplexity falls."""
    return 1 - math.exp(loss - than)


def _perplexities(losses: Mapping[int, float], label: str) -> Curve:
    return Curve([float(n) for n in losses], [math.exp(v) for v in losses.values()], label, "perplexity")


def _rank(a: Tensor, b: Tensor) -> float:
    found = float(spearmanr(a.double().numpy(), b.double().numpy()).statistic)
    return found if math.isfinite(found) else 0.0


def _is_energy(model: nn.Module) -> bool:
    return hasattr(model, "start_state")


def _width(arm: Arm) -> dict[str, Any]:
    return {"width": arm.settings["width"]} if "width" in arm.settings else {}
