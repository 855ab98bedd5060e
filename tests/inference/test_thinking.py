"""Thinking with an energy model: counted, compared from common starts, and equal to plain forward passes."""

from __future__ import annotations

import math

import pytest
import torch

from gradatim.inference import think, thinking_curve, token_energies, token_losses
from gradatim.models import EnergyTransformerConfig, EnergyTransformerForCausalLM
from gradatim.models.energy_recipe import ExtrapolatedStepsWarning

V, T = 11, 7
IDS = torch.randint(0, V, (4, T), generator=torch.Generator().manual_seed(0))


def make(**changes: object) -> EnergyTransformerForCausalLM:
    settings: dict = {
        "vocab_size": V, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "max_position_embeddings": 16,
    }  # fmt: skip
    return (
        EnergyTransformerForCausalLM(EnergyTransformerConfig.system2(**(settings | changes)), seed=0)
        .double()
        .eval()
    )


def test_thinking_is_a_forward_pass_and_says_what_it_cost() -> None:
    model = make()
    thought = think(model, IDS, num_candidates=3)
    with torch.no_grad():
        plain = model(IDS, num_candidates=3)
    torch.testing.assert_close(thought.logits, plain.logits)
    torch.testing.assert_close(thought.candidate_energies, plain.candidate_energies)
    torch.testing.assert_close(thought.uncertainty, plain.energies[..., -1])
    assert thought.evaluations == 3 * (2 * 3 + 1)
    expected = plain.candidate_energies.var(1, correction=0).sqrt()
    torch.testing.assert_close(thought.disagreement, expected)
    one = think(model, IDS)
    assert one.candidate_energies.shape == (4, 1, T)
    assert float(one.disagreement.abs().max()) == 0
    assert torch.equal(token_energies(model, IDS), one.uncertainty)
    assert not one.logits.requires_grad


def test_thinking_beyond_training_is_meant_here(recwarn: pytest.WarningsRecorder) -> None:
    thought = think(make(), IDS, num_steps=9)
    assert thought.energies.shape == (4, T, 10)
    assert not [w for w in recwarn if issubclass(w.category, ExtrapolatedStepsWarning)]


def test_stopping_at_convergence() -> None:
    thought = think(make(step_size=0.02), IDS, num_steps=60, tol=1e-4)
    assert int(thought.steps_taken.min()) < int(thought.steps_taken.max())
    late = think(make(step_size=0.02), IDS, num_steps=60, tol=1e-6)
    assert bool((late.steps_taken >= thought.steps_taken).all())


def test_the_curve_is_what_each_amount_of_thinking_gives_alone() -> None:
    model = make()
    curve = thinking_curve(model, IDS, steps=(1, 2, 5), candidates=(1, 2, 4))
    given, targets = IDS[:, :-1], IDS[:, 1:]
    for n, found in zip(curve.steps, curve.step_losses, strict=True):
        alone = token_losses(think(model, given, num_steps=n).logits, targets).mean()
        assert found == pytest.approx(float(alone), rel=1e-9)
    assert curve.at_steps == 3
    for n, found in zip(curve.candidates, curve.best, strict=True):
        alone = token_losses(think(model, given, num_candidates=n).logits, targets).mean()
        assert found == pytest.approx(float(alone), rel=1e-9)
    starts = [model(given, initial_state=model.start_state(given, c)).logits.detach() for c in range(4)]
    each = torch.stack([token_losses(z, targets) for z in starts])
    assert curve.oracle[-1] == pytest.approx(float(each.amin(0).mean()))
    mean = torch.stack([z.softmax(-1) for z in starts]).mean(0)
    picked = -mean.gather(-1, targets.unsqueeze(-1)).log().mean()
    assert curve.average[-1] == pytest.approx(float(picked), rel=1e-9)
    assert curve.best[0] == curve.average[0] == curve.oracle[0]
    assert curve.oracle[2] <= curve.oracle[1] <= curve.oracle[0]
    # Averaging probabilities never does worse than the average of the losses (Jensen).
    assert curve.average[-1] <= float(each.mean()) + 1e-12


def test_losses_of_tokens() -> None:
    logits = torch.randn(2, 3, V, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    targets = torch.tensor([[0, 1, 2], [3, 4, 5]])
    found = token_losses(logits, targets)
    for b in range(2):
        for t in range(3):
            z = logits[b, t]
            by_hand = math.log(float(z.exp().sum())) - float(z[targets[b, t]])
            assert float(found[b, t]) == pytest.approx(by_hand)


def test_bad_calls_are_refused() -> None:
    with pytest.raises(ValueError, match="evaluation"):
        think(make().train(), IDS)
    with pytest.raises(ValueError, match="at least 1"):
        thinking_curve(make(), IDS, steps=(0, 1))
