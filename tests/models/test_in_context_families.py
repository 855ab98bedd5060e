"""Recurrent and attention-free learners: the arithmetic of each cell, and what all learners promise."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradatim.bench.stacked import train_stacked
from gradatim.models import InContextConfig
from gradatim.models.attention_free import (
    DiagonalStateSpace,
    HyenaOperator,
    InContextDSS,
    InContextHyena,
    InContextRetNet,
    Retention,
    causal_convolution,
)
from gradatim.models.in_context import InContextModel
from gradatim.models.in_context_recurrent import InContextGRU, InContextLSTM, RecurrentLayer

LEARNERS = [InContextLSTM, InContextGRU, InContextRetNet, InContextDSS, InContextHyena]
D = torch.float64


def learner(kind: type[InContextModel], seed: int = 0, **settings: Any) -> InContextModel:
    sizes = {"d": 3, "n_positions": 9, "n_layer": 2, "n_head": 2, "n_embd": 16, "state_size": 8}
    return kind(InContextConfig(**{**sizes, **settings}), seed=seed).eval()


def context(seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(4, 9, 3, generator=g, dtype=D), torch.randn(4, 9, generator=g, dtype=D)


@pytest.mark.parametrize(("cell", "theirs"), [("lstm", nn.LSTM), ("gru", nn.GRU)])
def test_cells_equal_torchs(cell: str, theirs: type[nn.Module]) -> None:
    ours = RecurrentLayer(cell, 5).double()
    other = theirs(5, 5, batch_first=True).double()
    other.load_state_dict({f"{name}_l0": p for name, p in ours.state_dict().items()})
    x = torch.randn(3, 7, 5, dtype=D)
    expected = other(x)[0]
    torch.testing.assert_close(ours(x), expected)
    torch.testing.assert_close(ours.written_out(x), expected)


def test_retention_equals_its_recurrence() -> None:
    layer = Retention(6, 2).double()
    x = torch.randn(3, 7, 6, dtype=D)
    q, k, v, gate = layer.qkvg(x).chunk(4, dim=-1)
    mixed = torch.zeros_like(q)
    for head, part in enumerate((slice(0, 3), slice(3, 6))):
        gamma = 1 - 2.0 ** (-5 - head)
        state = torch.zeros(3, 3, 3, dtype=D)
        for t in range(7):
            state = gamma * state + k[:, t, part, None] * v[:, t, None, part]
            mixed[:, t, part] = (q[:, t, None, part] @ state).squeeze(1)
    expected = layer.out(gate * gate.sigmoid() * mixed)
    torch.testing.assert_close(layer(x), expected, rtol=1e-6, atol=1e-8)


def test_state_space_equals_its_recurrence() -> None:
    layer = DiagonalStateSpace(4, 6).double()
    x = torch.randn(2, 9, 4, dtype=D)
    rate = -layer.log_decay.exp() + 1j * layer.frequency
    step = layer.log_step.exp()[:, None] * rate
    state = torch.zeros(2, 4, 6, dtype=torch.complex128)
    outputs = []
    for t in range(9):
        state = step.exp() * state + (step.exp() - 1) / rate * x[:, t, :, None]
        outputs.append(((layer.weight_real + 1j * layer.weight_imaginary) * state).sum(-1).real)
    mixed = torch.stack(outputs, dim=1) + layer.skip * x
    torch.testing.assert_close(layer(x), layer.out(nn.functional.gelu(mixed)), rtol=1e-9, atol=1e-10)


def test_convolution_equals_the_sum() -> None:
    x, kernel = torch.randn(2, 8, 3, dtype=D), torch.randn(3, 8, dtype=D)
    expected = torch.zeros_like(x)
    for t in range(8):
        for s in range(t + 1):
            expected[:, t] += kernel[:, t - s] * x[:, s]
    torch.testing.assert_close(causal_convolution(x, kernel), expected)
    half = causal_convolution(x.bfloat16(), kernel.bfloat16())
    assert half.dtype == torch.bfloat16


@pytest.mark.parametrize("order", [2, 3])
def test_hyena_is_gates_and_convolutions_in_turn(order: int) -> None:
    layer = HyenaOperator(4, order, 8, 20).double()
    x = torch.randn(2, 6, 4, dtype=D)
    raw = layer.project(x)
    short = torch.zeros_like(raw)
    for t in range(6):
        for lag in range(min(t, 2) + 1):
            short[:, t] += layer.short[:, 2 - lag] * raw[:, t - lag]
    parts = short.chunk(order + 1, dim=-1)
    taps = layer.filters(6)
    assert taps.shape == (order - 1, 4, 6)
    v = parts[order]
    for i in range(order - 1):
        v = v * parts[order - 1 - i]
        v = causal_convolution(v, taps[i]) + layer.filter_bias[i] * v
    torch.testing.assert_close(layer(x), layer.out(v * parts[0]))
    with pytest.raises(ValueError, match="order must be at least 2"):
        HyenaOperator(4, 1, 8, 20)


def test_hyena_filters_follow_the_formula() -> None:
    layer = HyenaOperator(3, 3, 5, 12).double()
    found = layer.filters(12)
    for t in (0, 5, 11):
        waves = [
            2 * math.pi * t / 12 * band for band in (1e-4, *(1e-4 + i * (3 - 1e-4) / 3 for i in (1, 2, 3)))
        ]
        z = torch.tensor([t / 11, *map(math.cos, waves), *(-math.sin(w) for w in waves)], dtype=D)
        for linear in layer.filter[:-1]:
            z = (linear.weight @ z + linear.bias).sin()
        z = (layer.filter[-1].weight @ z).view(2, 3)
        rates = [math.log(100) / 1.5, (math.log(100) / 1.5 + math.log(100) / 0.3) / 2, math.log(100) / 0.3]
        window = torch.tensor([math.exp(-t / 11 * r) for r in rates], dtype=D)
        torch.testing.assert_close(found[:, :, t], z * window)


@pytest.mark.parametrize("kind", LEARNERS)
def test_learners_see_only_what_came_before(kind: type[InContextModel]) -> None:
    model = learner(kind).double()
    x, y = context()
    first = model(x, y).predictions
    for t in range(9):
        later_x, later_y = x.clone(), y.clone()
        later_x[:, t + 1 :] += 1.0
        later_y[:, t:] += 1.0
        second = model(later_x, later_y).predictions
        torch.testing.assert_close(first[:, : t + 1], second[:, : t + 1], rtol=1e-9, atol=1e-10)
        if t < 8:
            assert (first[:, t + 1] - second[:, t + 1]).abs().min() > 1e-9


@pytest.mark.parametrize("kind", LEARNERS)
def test_learners_answer_after_a_context_and_survive_saving(
    kind: type[InContextModel], tmp_path: Path
) -> None:
    model = learner(kind).double()
    x, y = context()
    out = model(x, y, labels=y, output_hidden_states=True)
    assert [tuple(h.shape) for h in out.hidden_states] == [(4, 9, 16)] * 3
    torch.testing.assert_close(model.read_out(out.hidden_states[-1]).squeeze(-1), out.predictions)
    found = model.predict_next(x[:, :5], y[:, :5], x[:, 5:7])
    expected = model(x[:, [0, 1, 2, 3, 4, 6]], y[:, [0, 1, 2, 3, 4, 6]]).predictions[:, 5]
    torch.testing.assert_close(found[:, 1], expected)
    torch.testing.assert_close(found[:, 0], out.predictions[:, 5])
    model.float().save_pretrained(tmp_path)
    again = kind.from_pretrained(tmp_path, use_safetensors=True)
    assert torch.equal(again(x.float(), y.float()).predictions, model(x.float(), y.float()).predictions)


@pytest.mark.parametrize("kind", LEARNERS)
def test_learners_train_stacked_as_alone(kind: type[InContextModel]) -> None:
    def data(seeds: list[int]) -> Any:
        def draw(step: int) -> tuple[Tensor, Tensor]:
            drawn = [context(100 * s + step) for s in seeds]
            return torch.stack([x for x, _ in drawn]), torch.stack([y for _, y in drawn])

        return draw

    options = {"steps": 4, "lr": 1e-3}
    together = train_stacked(lambda s: learner(kind, s).double(), data([0, 1]), seeds=[0, 1], **options)
    assert together.engine == "vmap"
    alone = train_stacked([learner(kind, 1).double()], data([1]), engine="loop", **options)
    torch.testing.assert_close(torch.tensor(together.losses[:, 1:]), torch.tensor(alone.losses))
    for a, b in zip(together.models[1].parameters(), alone.models[0].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)
    assert not torch.equal(together.models[0].read_out.weight, learner(kind, 0).double().read_out.weight)


@pytest.mark.parametrize("kind", LEARNERS)
def test_learners_can_be_frozen(kind: type[InContextModel]) -> None:
    for freeze in ("mixers", "backbone"):
        model = learner(kind, freeze=freeze)
        trained = {name for name, p in model.named_parameters() if p.requires_grad}
        norms = {n for n, _ in model.named_parameters() if n.startswith("backbone") and "norm" in n}
        kept = {name for name in trained if name.startswith("backbone")}
        assert kept == (norms if freeze == "mixers" else set())
        assert trained - kept


@pytest.mark.parametrize("kind", LEARNERS)
def test_gradient_checkpointing_changes_no_gradient(kind: type[InContextModel]) -> None:
    x, y = context()
    gradients = []
    for enabled in (False, True):
        model = learner(kind).double().train()
        model.backbone.gradient_checkpointing = enabled
        model(x, y, labels=y).loss.backward()
        gradients.append([p.grad for p in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)
