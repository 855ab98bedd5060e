"""What the lens sees in models whose levels are known."""

from __future__ import annotations

import math

import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

from gradatim.models import ContinuumMemory
from gradatim.optim import M3, DeepMomentumSGD, DeltaMomentumSGD, MultiFrequency, matrix_groups
from gradatim.probes import nested_levels
from gradatim.probes.nested_levels import show_frequency


def net():
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1))


def summary(found):
    return {level.name: (level.frequency, level.numbers) for level in found.levels}


def test_a_plain_network_with_adamw_has_three_memories():
    model = net()
    size = sum(p.numel() for p in model.parameters())
    found = nested_levels(model, torch.optim.AdamW(model.parameters()), tokens_per_step=100)
    assert summary(found) == {
        "parameters": (0.01, size),
        "momentum": (0.01, size),
        "second moment": (0.01, size),
    }
    assert all(level.context_flow == "gradients" for level in found.levels if "m" in level.name[-1:])


def test_attention_never_waits_recurrence_takes_every_token_frozen_weights_never_move():
    layer = nn.TransformerEncoderLayer(8, 2, 16)
    found = nested_levels(nn.ModuleList([layer, nn.TransformerEncoderLayer(8, 2, 16), nn.LSTM(8, 5, 2)]))
    seen = summary(found)
    assert seen["attention × 2"] == (math.inf, 0)
    assert seen["LSTM state"] == (1.0, 20)
    assert [level.frequency for level in found.levels] == [math.inf, 1.0, 0.0]
    assert found.levels[-1].name == "frozen parameters"


def test_hugging_face_attention_is_recognised():
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=11, hidden_size=8, intermediate_size=8, num_hidden_layers=3, num_attention_heads=2
    )
    assert summary(nested_levels(LlamaForCausalLM(config)))["attention × 3"][0] == math.inf


def test_m3_shows_its_two_speeds_and_the_adamw_rule():
    model = net()
    seen = summary(nested_levels(model, M3(matrix_groups(model), slow_period=20)))
    assert seen["fast momentum (group 1)"] == (1.0, 30)
    assert seen["slow momentum (group 1)"] == (pytest.approx(1 / 20), 30)
    assert seen["momentum (group 2)"] == (1.0, 7)
    assert not any(
        "slow" in name for name in summary(nested_levels(model, M3(matrix_groups(model), slow_weight=0.0)))
    )


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), "momentum"),
        (lambda p: DeltaMomentumSGD(p, lr=0.1), "delta momentum"),
        (lambda p: DeepMomentumSGD(p, lr=0.1, hidden=3), "deep momentum"),
    ],
)
def test_memories_of_optimizers(make, name):
    model = nn.Linear(4, 6, bias=False)
    optimizer = make(model.parameters())
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    seen = summary(nested_levels(model, optimizer))
    assert seen[name] == (1.0, 24)  # deep momentum: 2 x 3 x 4
    assert name not in summary(nested_levels(model, torch.optim.SGD(model.parameters(), lr=0.1)))


def test_unknown_optimizers_show_what_they_keep():
    model = net()
    optimizer = torch.optim.Adagrad(model.parameters())
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    assert summary(nested_levels(model, optimizer))["sum"] == (1.0, 37)


def test_a_continuum_memory_describes_itself_unless_an_optimizer_trains_it():
    memory = ContinuumMemory(4, (1, 8, 64), 5)
    alone = summary(nested_levels(memory, tokens_per_step=10))
    assert alone == {f"memory level {i + 1}": (0.1 / c, 40) for i, c in enumerate((1, 8, 64))}
    optimizer = MultiFrequency(torch.optim.SGD, memory.groups(lr=0.1))
    seen = summary(nested_levels(memory, optimizer))
    assert seen["parameters (group 3)"] == (1 / 64, 40)
    assert seen["chunk (group 3)"] == (1.0, 40)
    assert not any(name.startswith("memory") for name in seen)


def test_any_module_may_describe_itself():
    class Fast(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(4, 2)

        def nested_levels(self):
            return [
                {
                    "name": "state",
                    "context_flow": "tokens",
                    "objective": "recall",
                    "update_rule": "delta rule",
                    "frequency": 0.25,
                    "per": "token",
                    "numbers": 16,
                }
            ]

    found = nested_levels(nn.Sequential(Fast(), Fast()), tokens_per_step=1000)
    assert summary(found)["state × 2"] == (0.25, 32)
    assert "attention" not in str(found)


def test_it_prints_as_a_table_and_draws_itself():
    model = nn.ModuleList([nn.MultiheadAttention(4, 2), net()])
    found = nested_levels(model, M3(matrix_groups(model)), tokens_per_step=64)
    text = str(found)
    assert text.splitlines()[0].split()[:3] == ["level", "context", "flow"]
    assert all(len(line) < 160 for line in text.splitlines())
    assert "∞" in text
    assert "1/1280" in text
    figure = Figure()
    found.plot(figure)
    (axis,) = figure.axes
    assert len(axis.patches) == len(found.levels)
    assert "∞" in [tick.get_text() for tick in axis.get_xticklabels()]


@pytest.mark.parametrize(
    ("frequency", "text"), [(math.inf, "∞"), (0.0, "0"), (1.0, "1"), (1 / 3, "1/3"), (0.3, "0.3")]
)
def test_frequencies_read_well(frequency, text):
    assert show_frequency(frequency) == text


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="tokens_per_step must be at least 1, got 0"):
        nested_levels(net(), tokens_per_step=0)
