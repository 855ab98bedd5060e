"""The language models that are compared, all of one number of parameters, and the loss each trains on.

The Transformer++ (rotary positions, RMS norms, SwiGLU, no biases: `LlamaForCausalLM`) of the width and depth
asked for sets the number. Every other arm keeps that width and depth and moves one size (the inner width of
its networks, or the LSTM's width) until it has as many parameters, to the nearest it can.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from gradatim.bench.study import Arm
from gradatim.models.continuum_memory import ContinuumMemory
from gradatim.optim.multi_frequency import MultiFrequency

ARMS: dict[str, Arm] = {
    arm.name: arm
    for arm in (
        Arm("transformer", label="Transformer++", role="baseline"),
        Arm("ebt-s1", label="EBT S1"),
        Arm("ebt-s2", label="EBT S2"),
        Arm("hope", label="Hope"),
        Arm("gated-delta", label="gated delta rule", role="baseline"),
        Arm("lstm", label="LSTM", role="baseline"),
        Arm("n-gram", label="n-gram counts", role="control"),
        Arm("frequencies", label="token frequencies", role="control"),
    )
}
COUNTED = ("n-gram", "frequencies")
REFERENCE = "transformer"
LARGE_VOCABULARY = 5_000
WEIGHT_DECAY = 0.01


@dataclass(frozen=True)
class Shape:
    """What all arms share: tokens, width, depth, heads, the longest sequence they read."""

    vocab_size: int
    width: int
    layers: int
    heads: int
    length: int


@dataclass(frozen=True)
class Model:
    """How an arm is built: module, configuration and model class, the recipe, the size that moves."""

    module: str
    config: str
    model: str
    settings: Callable[[Shape], dict[str, Any]]
    moves: str
    recipe: str | None = None


def _transformer(shape: Shape) -> dict[str, Any]:
    inner = inner_width(shape.width)
    return {
        **_common(shape),
        "intermediate_size": inner,
        "num_key_value_heads": shape.heads,
        "max_position_embeddings": shape.length,
        "attention_bias": False,
        "bos_token_id": None,
        "eos_token_id": None,
    }


def _energy(shape: Shape, step_size: float, noise: float) -> dict[str, Any]:
    return {
        **_common(shape),
        "max_position_embeddings": shape.length,
        "step_size": step_size,
        "langevin_noise_std": noise,
    }


def _system1(shape: Shape) -> dict[str, Any]:
    # The paper's 500 belongs to 50,000 tokens; on a hundred characters a tenth learns faster.
    return _energy(shape, 500.0 if shape.vocab_size >= LARGE_VOCABULARY else 50.0, 0.0)


def _system2(shape: Shape) -> dict[str, Any]:
    return _energy(shape, 5.0, 3.0 if shape.vocab_size >= LARGE_VOCABULARY else 1.0)


def _delta(shape: Shape) -> dict[str, Any]:
    # Hope's frame around the plain memory: one level, which moves with every update.
    return {**_common(shape), "mixer": "delta", "cms_periods": [1]}


def _lstm(shape: Shape) -> dict[str, Any]:
    return {"vocab_size": shape.vocab_size, "num_hidden_layers": shape.layers}


def _common(shape: Shape) -> dict[str, Any]:
    return {
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.width,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
    }


MODELS: Mapping[str, Model] = {
    "transformer": Model(
        "transformers", "LlamaConfig", "LlamaForCausalLM", _transformer, "intermediate_size"
    ),
    "ebt-s1": Model(
        "gradatim.models",
        "EnergyTransformerConfig",
        "EnergyTransformerForCausalLM",
        _system1,
        "intermediate_size",
        "system1",
    ),
    "ebt-s2": Model(
        "gradatim.models",
        "EnergyTransformerConfig",
        "EnergyTransformerForCausalLM",
        _system2,
        "intermediate_size",
        "system2",
    ),
    "hope": Model("gradatim.models", "HopeConfig", "HopeForCausalLM", _common, "intermediate_size"),
    "gated-delta": Model("gradatim.models", "HopeConfig", "HopeForCausalLM", _delta, "intermediate_size"),
    "lstm": Model("gradatim.models", "LSTMConfig", "LSTMForCausalLM", _lstm, "hidden_size"),
}


def inner_width(width: int) -> int:
    """The SwiGLU's inner width, 8/3 of the width, to the next multiple of 8."""
    return -(-8 * width // 24) * 8


def build(arm: str, shape: Shape, seed: int) -> nn.Module:
    """The untrained model of an arm, of as many parameters as the Transformer++; the seed is its start."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _make(arm, settings_of(arm, shape) | _seeded(arm, seed))


@lru_cache(maxsize=64)
def _moved(arm: str, shape: Shape) -> int:
    """The value of the size that moves, by bisection: parameters grow with it."""
    target = parameter_count(REFERENCE, shape, inner_width(shape.width))
    low, high = 1, 2
    while parameter_count(arm, shape, high) < target:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if parameter_count(arm, shape, middle) >= target else (middle, high)
    return min((low, high), key=lambda n: abs(parameter_count(arm, shape, n) - target))


def settings_of(arm: str, shape: Shape) -> dict[str, Any]:
    """The keyword arguments of an arm's configuration (of its recipe, where it has one)."""
    model = MODELS[arm]
    settings = model.settings(shape)
    return settings if arm == REFERENCE else settings | {model.moves: _moved(arm, shape)}


def parameter_count(arm: str, shape: Shape, moved: int | None = None) -> int:
    """Parameters of an arm, at a value of the size that moves (default: the chosen one)."""
    settings = (
        settings_of(arm, shape) if moved is None else MODELS[arm].settings(shape) | {MODELS[arm].moves: moved}
    )
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        return sum(p.numel() for p in _make(arm, settings).parameters())


def make_optimizer(model: Any, rate: float) -> torch.optim.Optimizer:
    """AdamW; a learned step size has its own rate, and the levels of a continuum memory their own clocks."""
    if hasattr(model, "param_groups"):
        return torch.optim.AdamW(model.param_groups(rate), lr=rate, weight_decay=WEIGHT_DECAY)
    memories = [module for module in model.modules() if isinstance(module, ContinuumMemory)]
    groups = [group for memory in memories for group in memory.groups(lr=rate)]
    if all(group["period"] == 1 for group in groups):
        return torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=WEIGHT_DECAY)
    slow = {p for group in groups for p in group["params"]}
    rest = {"params": [p for p in model.parameters() if p not in slow], "lr": rate, "period": 1}
    return MultiFrequency(
        lambda parts: torch.optim.AdamW(parts, lr=rate, weight_decay=WEIGHT_DECAY), [rest, *groups]
    )


def loss_of(model: Any, seed: int) -> Callable[[nn.Module, Tensor], Tensor]:
    """`loss(model, ids)` of one batch; an S2 model also replays earlier descents."""
    buffer = model.replay_buffer() if hasattr(model, "replay_buffer") else None
    if buffer is None:
        return lambda model, ids: model(input_ids=ids, labels=ids).loss
    generator = torch.Generator().manual_seed(seed)
    share = model.config.replay_fraction

    def replaying(model: nn.Module, ids: Tensor) -> Tensor:
        extended, state = buffer.extend(ids, share, generator)
        out = model(input_ids=extended, labels=extended, initial_state=state)
        buffer.push(extended, out.logits)
        return out.loss  # type: ignore[no-any-return]

    return replaying


def update_flops(arm: str, shape: Shape, batch: int) -> float:
    """FLOPs of the forward and backward passes of one update, as `probes.count_flops` counts them.

    Where training draws a number of steps, the mean over them; where it replays, with a filled buffer.
    """
    from gradatim.probes.compute import count_flops

    model: Any = build(arm, shape, 0)
    model.train()
    ids = torch.zeros(batch, shape.length, dtype=torch.int64)
    config = model.config
    if getattr(config, "replay_capacity", 0):
        ids = ids.repeat(2, 1)[: batch + int(config.replay_fraction * batch)]
    steps = getattr(config, "num_steps_range", None)
    draws: list[dict[str, Any]] = [{}]
    if steps is not None:
        draws = [{"num_steps": n} for n in range(steps[0], steps[1] + 1)]
    counted = [
        count_flops(lambda draw=draw: model(input_ids=ids, labels=ids, **draw).loss.backward())  # type: ignore[misc]
        for draw in draws
    ]
    return sum(counted) / len(counted)


def _make(arm: str, settings: Mapping[str, Any]) -> nn.Module:
    config, model = _classes(arm)
    recipe = MODELS[arm].recipe
    with warnings.catch_warnings():
        # Models built without tokens that end a text say so; none is generated from here.
        warnings.simplefilter("ignore")
        made: nn.Module = model((config if recipe is None else getattr(config, recipe))(**settings))
        return made


def _classes(arm: str) -> tuple[Any, Any]:
    # Spelled out, not by name: a trial's key covers the code of the modules that are imported.
    if arm.startswith("ebt"):
        from gradatim.models.energy_config import EnergyTransformerConfig
        from gradatim.models.energy_transformer import EnergyTransformerForCausalLM

        return EnergyTransformerConfig, EnergyTransformerForCausalLM
    if arm in ("hope", "gated-delta"):
        from gradatim.models.hope import HopeForCausalLM
        from gradatim.models.hope_config import HopeConfig

        return HopeConfig, HopeForCausalLM
    if arm == "lstm":
        from gradatim.models.lstm_config import LSTMConfig
        from gradatim.models.lstm_language_model import LSTMForCausalLM

        return LSTMConfig, LSTMForCausalLM
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaConfig, LlamaForCausalLM


def _seeded(arm: str, seed: int) -> dict[str, Any]:
    return {"noise_seed": seed} if arm.startswith("ebt") else {}
