"""Derivatives through a step of descent: three routes, closed forms, truncation and detaching."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from gradatim.models.energy_config import SECOND_ORDER, EnergyTransformerConfig
from gradatim.models.energy_second_order import energy_gradient
from gradatim.models.energy_transformer import EnergyTransformerForCausalLM

V, T = 13, 5
IDS = torch.randint(0, V, (3, T), generator=torch.Generator().manual_seed(2))


def make(dtype: torch.dtype = torch.float64, **changes: object) -> EnergyTransformerForCausalLM:
    settings: dict = {
        "vocab_size": V, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "max_position_embeddings": 16, "step_size": 5.0, "step_embedding": "none",
    }  # fmt: skip
    return (
        EnergyTransformerForCausalLM(EnergyTransformerConfig(**(settings | changes)), seed=0)
        .to(dtype)
        .train()
    )


def gradients(model: EnergyTransformerForCausalLM, **arguments: object) -> dict[str, Tensor]:
    model.zero_grad()
    out = model(IDS, labels=IDS, generator=torch.Generator().manual_seed(3), **arguments)
    out.loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def flat(found: dict[str, Tensor]) -> Tensor:
    return torch.cat([g.flatten() for _, g in sorted(found.items())])


RECIPES = {
    "s1": {"num_steps": 2, "loss_on": "all", "step_embedding": "prefix"},
    "s2": {"num_steps": 3, "loss_on": "last", "truncate": True, "detach_steps": False},
    "unrolled": {"num_steps": 2, "loss_on": "last", "detach_steps": False},
    "logits": {"num_steps": 2, "loss_on": "all", "update_space": "logit", "step_size": 50.0},
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_three_routes_agree_in_float64(recipe: str) -> None:
    found = {route: flat(gradients(make(second_order=route, **RECIPES[recipe]))) for route in SECOND_ORDER}
    plain = found["double_backward"]
    assert float(plain.norm()) > 0
    for route in SECOND_ORDER[1:]:
        error = float((found[route] - plain).norm() / plain.norm())
        # Rounding and curvature of the difference meet at about eps^(2/3).
        assert error < (1e-7 if route == "finite_difference" else 1e-12), (route, error)


def test_three_routes_agree_in_float32() -> None:
    found = {
        route: flat(gradients(make(torch.float32, second_order=route, **RECIPES["s2"])))
        for route in SECOND_ORDER
    }
    for route in SECOND_ORDER[1:]:
        assert float(F.cosine_similarity(found[route], found["double_backward"], dim=0)) > 0.99999
        ratio = float(found[route].norm() / found["double_backward"].norm())
        assert abs(ratio - 1) < 1e-3


def test_the_routes_on_a_form_whose_derivatives_are_known() -> None:
    """E = e^T A e / 2 + c . e: g = A e + c (A symmetric), d<u, g>/dA = u e^T, d/de = A u, d/dc = u."""
    g = torch.Generator().manual_seed(0)
    a, e, u = (torch.randn(s, generator=g, dtype=torch.float64) for s in ((4, 4), (2, 4), (2, 4)))
    a, c = a + a.T, torch.randn(2, 4, generator=g, dtype=torch.float64)

    def energy(e: Tensor, context: list[Tensor], by_hand: bool) -> Tensor:
        return 0.5 * ((e @ matrix) * e).sum(-1) + (context[0] * e).sum(-1)

    for route in SECOND_ORDER:
        matrix, start, offset = (x.clone().requires_grad_() for x in (a, e, c))
        slope, energies = energy_gradient(energy, start, [offset], [matrix], route=route, create_graph=True)
        torch.testing.assert_close(slope, e @ a + c)
        torch.testing.assert_close(energies, 0.5 * ((e @ a) * e).sum(-1) + (c * e).sum(-1))
        slope.backward(u)
        outer = u.T @ e
        torch.testing.assert_close(matrix.grad, 0.5 * (outer + outer.T), rtol=1e-7, atol=1e-8)
        torch.testing.assert_close(start.grad, u @ a, rtol=1e-7, atol=1e-8)
        torch.testing.assert_close(offset.grad, u, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("route", SECOND_ORDER)
def test_the_whole_loss_has_the_gradient_of_finite_differences(route: str) -> None:
    model = make(second_order=route, **RECIPES["unrolled"])
    found = gradients(model)
    direction = {
        n: torch.randn(p.shape, generator=torch.Generator().manual_seed(i), dtype=p.dtype)
        for i, (n, p) in enumerate(model.named_parameters())
    }
    expected = sum(float((found[n] * direction[n]).sum()) for n in found)

    def loss(shift: float) -> float:
        with torch.no_grad():
            for n, p in model.named_parameters():
                p.add_(shift * direction[n])
            value = model(IDS, labels=IDS, generator=torch.Generator().manual_seed(3)).loss
            for n, p in model.named_parameters():
                p.sub_(shift * direction[n])
        return float(value)

    difference = (loss(1e-6) - loss(-1e-6)) / 2e-6
    assert abs(difference - expected) < 1e-5 * abs(expected)


def test_truncated_training_is_the_same_with_and_without_detaching() -> None:
    a, b = (
        gradients(make(num_steps=3, loss_on="last", truncate=True, detach_steps=detach))
        for detach in (False, True)
    )
    assert torch.equal(flat(a), flat(b))


def test_truncation_is_the_last_step_from_where_the_others_led() -> None:
    whole = make(num_steps=3, loss_on="last", truncate=True, detach_steps=False)
    found = gradients(whole)
    with torch.no_grad():
        before = whole(IDS, num_steps=2, generator=torch.Generator().manual_seed(3)).logits
    one = make(num_steps=1, loss_on="last")
    expected = gradients(one, initial_state=before)
    torch.testing.assert_close(flat(found), flat(expected), rtol=1e-9, atol=1e-12)
    unrolled = gradients(make(num_steps=3, loss_on="last", detach_steps=False))
    assert float((flat(unrolled) - flat(found)).norm()) > 1e-3 * float(flat(found).norm())


def test_one_step_is_the_same_in_both_recipes() -> None:
    base = {"vocab_size": V, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    shared = {"num_steps": 1, "num_steps_range": None, "step_size": 5.0, "step_embedding": "none"}
    first = EnergyTransformerConfig.system1(**base, **shared, learn_step_size=False)
    second = EnergyTransformerConfig.system2(**base, **shared, langevin_noise_std=0.0, step_size_jitter=1.0)
    a, b = (gradients(EnergyTransformerForCausalLM(c, seed=0).double().train()) for c in (first, second))
    assert torch.equal(flat(a), flat(b))


def test_the_step_size_learns_only_where_it_may() -> None:
    assert float(gradients(make())["step_size"].abs()) > 0
    fixed = make(learn_step_size=False)
    assert "step_size" not in gradients(fixed)
    assert "step_size" in fixed.state_dict()
    groups = make().param_groups(1e-3, 0.1)
    assert [g["weight_decay"] for g in groups] == [0.1, 0.0]
    assert groups[1]["lr"] == pytest.approx(1e-3 * 15)
    assert sum(len(g["params"]) for g in groups) == len(list(make().parameters()))
    assert len(fixed.param_groups(1e-3)) == 1


def test_a_step_size_that_the_optimizer_made_negative_is_put_back() -> None:
    model = make()
    with torch.no_grad():
        model.step_size.fill_(-3.0)
    found = gradients(model)
    assert float(model.step_size.detach()) == pytest.approx(model.config.min_step_size)
    assert float(found["step_size"].abs()) > 0


def test_the_update_is_the_papers_and_the_gradient_stays_narrow() -> None:
    """z' = p - alpha dE/dp with dE/dp = (dE/de) W^T, and in logit space z' = z - alpha dE/dz, by autograd."""
    for space in ("probability", "logit"):
        model = make(num_steps=1, update_space=space).eval()
        z = torch.randn(3, T, V, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
        found = model(IDS, initial_state=z)
        positions = torch.arange(T).expand(3, -1)
        visible = torch.ones(T, T, dtype=torch.bool).tril()[None, None]
        known = model.body.context(model.body.embed_tokens(IDS), positions, visible, step=0)
        z.requires_grad_()
        p = z.softmax(-1)
        e = (p @ model.vocab_projection.weight)[:, None]
        energy = model.body.energies(e, known, positions, visible, step=0)
        over_p, over_z = torch.autograd.grad(energy.sum(), (p, z))
        expected = p - 5.0 * over_p if space == "probability" else z - 5.0 * over_z
        torch.testing.assert_close(found.logits, expected, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(found.energies[..., 0], energy[:, 0])


@pytest.mark.parametrize("route", SECOND_ORDER)
def test_gradient_checkpointing_changes_nothing(route: str) -> None:
    recipe = RECIPES["s1"] | {"second_order": route}
    plain = gradients(make(**recipe))
    model = make(**recipe)
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    calls = []
    inner = model.body._gradient_checkpointing_func
    model.body._gradient_checkpointing_func = lambda *a, **k: (calls.append(1), inner(*a, **k))[1]
    torch.testing.assert_close(flat(gradients(model)), flat(plain), rtol=1e-12, atol=1e-14)
    assert calls
