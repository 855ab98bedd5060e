"""Training by chunks of tokens: the same loss and gradients, and nothing as large as tokens x vocabulary."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gradatim.models import EnergyTransformerConfig, EnergyTransformerForCausalLM
from gradatim.models.energy_config import STEP_EMBEDDINGS

V, B, T = 19, 3, 6
IDS = torch.randint(0, V, (B, T), generator=torch.Generator().manual_seed(2))
LABELS = IDS.clone()
LABELS[0, :3] = -100
STATE = torch.randn(B, T, V, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def make(
    chunk: int, recipe: str = "system1", dtype: torch.dtype = torch.float64, **changes: Any
) -> EnergyTransformerForCausalLM:
    settings: dict[str, Any] = {
        "vocab_size": V, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "max_position_embeddings": 24, "step_size": 5.0, "step_size_jitter": 1.0, "langevin_noise_std": 0.0,
        "num_steps_range": None, "vocab_chunk": chunk,
    }  # fmt: skip
    config = getattr(EnergyTransformerConfig, recipe)(**(settings | changes))
    return EnergyTransformerForCausalLM(config, seed=0).to(dtype).train()


def passed(model: EnergyTransformerForCausalLM, **inputs: Any) -> tuple[Any, dict[str, Tensor]]:
    out = model(IDS, labels=LABELS, **({"initial_state": STATE} | inputs))
    model.zero_grad()
    (3 * out.loss).backward()
    return out, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def agree(a: tuple[Any, dict[str, Tensor]], b: tuple[Any, dict[str, Tensor]]) -> None:
    for name in ("loss", "step_losses", "energies"):
        torch.testing.assert_close(getattr(a[0], name), getattr(b[0], name), rtol=1e-9, atol=1e-9)
    assert a[1].keys() == b[1].keys()
    for name, gradient in a[1].items():
        torch.testing.assert_close(gradient, b[1][name], rtol=1e-8, atol=1e-9, msg=name)
        assert float(gradient.abs().max()) > 0, name


@pytest.mark.parametrize("chunk", [1, 5, 18, 100])
@pytest.mark.parametrize("kind", STEP_EMBEDDINGS[:4])
def test_two_landscapes_give_the_same_loss_and_gradients(kind: str, chunk: int) -> None:
    settings = {"step_embedding": kind, "num_steps": 3}
    agree(passed(make(chunk, **settings)), passed(make(0, **settings)))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"detach_steps": True, "truncate": False},
        {"tie_word_embeddings": True},
        {"second_order": "forward_over_reverse"},
        {"initial_noise_std": 0.0, "num_steps": 1},
    ],
)
# The first use of forward-mode differentiation scripts a few formulas inside torch.
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_a_loss_on_the_last_step(changes: dict[str, Any]) -> None:
    inputs = {"initial_state": None} if "initial_noise_std" in changes else {}
    agree(passed(make(4, "system2", **changes), **inputs), passed(make(0, "system2", **changes), **inputs))


def test_what_a_loss_is_divided_by_and_frozen_parts() -> None:
    agree(passed(make(4), num_items_in_batch=7), passed(make(0), num_items_in_batch=7))
    both = []
    for chunk in (4, 0):
        model = make(chunk)
        model.vocab_projection.requires_grad_(False)
        model.step_size.requires_grad_(False)
        both.append(passed(model))
    agree(*both)
    nothing = make(4)(IDS, labels=torch.full_like(IDS, -100))
    assert float(nothing.loss.detach()) == 0


@pytest.mark.parametrize("chunk", [1, 4, 7])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_replayed_states_start_the_last_sequences(chunk: int, count: int) -> None:
    # The final state shows where every token started, through as many steps.
    model, plain = make(chunk, "system2", initial_noise_std=0.0), make(0, "system2", initial_noise_std=0.0)
    whole = torch.zeros(B, T, V, dtype=torch.float64)
    whole[B - count :] = STATE[:count]
    found = model(IDS, labels=LABELS, initial_state=STATE[:count]).logits
    torch.testing.assert_close(found, plain(IDS, labels=LABELS, initial_state=whole).logits.detach())
    assert not found.requires_grad
    assert make(chunk)(IDS, labels=LABELS).logits is None  # without a buffer nobody asks for it


def test_noise_is_drawn_anew_for_every_pass_and_the_same_within_one() -> None:
    noisy = {"langevin_noise_std": 0.7, "step_size_jitter": 2.0, "num_steps": 2}
    model = make(4, "system2", **noisy)

    def run(seed: int) -> Any:
        return model(IDS, labels=LABELS, generator=torch.Generator().manual_seed(seed))

    first, again, other = run(0), run(0), run(1)
    assert torch.equal(first.logits, again.logits)
    assert not torch.equal(first.logits, other.logits)
    # The state that a descent ends in is the one whose loss it takes: noise is recomputed, not redrawn.
    expected = torch.nn.functional.cross_entropy(first.logits[:, :-1].flatten(0, 1), LABELS[:, 1:].flatten())
    torch.testing.assert_close(first.loss.detach(), expected)
    still = make(4, "system2", **(noisy | {"langevin_noise_std": 0.0}))
    generator = torch.Generator().manual_seed(0)
    assert not torch.equal(still(IDS, labels=LABELS, generator=generator).logits, first.logits)


class Largest(TorchDispatchMode):
    """The most numbers that any result of an operation holds."""

    most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        sizes = [t.numel() for t in tree_leaves(out) if isinstance(t, Tensor)]
        self.most = max(self.most, *sizes, 0)
        return out


def test_nothing_of_tokens_by_vocabulary_exists() -> None:
    sizes = {"vocab_size": 3000, "dtype": torch.float32}
    seen = {}
    for chunk in (4, 0):
        model = make(chunk, **sizes)
        with Largest() as largest:
            model(IDS, labels=LABELS).loss.backward()
        seen[chunk] = largest.most
    assert seen[0] >= B * T * 3000
    assert seen[4] == 16 * 3000  # the projection itself, and its gradient


@pytest.mark.parametrize("autocast", [True, False])
def test_half_precision(autocast: bool) -> None:
    wide, _ = passed(make(0))
    model = make(4, dtype=torch.float32 if autocast else torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out, gradients = passed(model)
    assert abs(float(out.loss.detach() / wide.loss.detach()) - 1) < 0.1
    assert all(bool(g.isfinite().all()) for g in gradients.values())
    with pytest.raises(ValueError, match="overflow float16"):
        make(4, dtype=torch.float16)(IDS, labels=LABELS)


def test_refused() -> None:
    for changes in ({"update_space": "logit"}, {"detach_steps": False}):
        with pytest.raises(ValueError, match="vocab_chunk needs"):
            make(4, **changes)
    with pytest.raises(ValueError, match="vocab_chunk must not be negative"):
        make(-1)
    with pytest.raises(ValueError, match="initial_state must be"):
        make(4)(IDS, labels=LABELS, initial_state=STATE[:, :2])
    model = make(4)
    assert model(IDS).logits.shape == (B, T, V)  # without labels there is nothing to save
    assert model.eval()(IDS, labels=LABELS).logits.shape == (B, T, V)
