"""The energy transformer as a model of Transformers: what every causal language model has to pass."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, LlamaConfig, LlamaForCausalLM

from gradatim.models import EnergyTransformerConfig, EnergyTransformerForCausalLM
from gradatim.models.energy_config import STEP_EMBEDDINGS
from gradatim.models.energy_recipe import ExtrapolatedStepsWarning

V, T = 17, 6
IDS = torch.randint(1, V, (3, T), generator=torch.Generator().manual_seed(2))
RECIPES = ("system1", "system2")


def make(
    recipe: str = "system2", dtype: torch.dtype = torch.float64, **changes: object
) -> EnergyTransformerForCausalLM:
    settings: dict = {
        "vocab_size": V, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "max_position_embeddings": 24, "step_size": 5.0, "pad_token_id": 0,
    }  # fmt: skip
    config = getattr(EnergyTransformerConfig, recipe)(**(settings | changes))
    return EnergyTransformerForCausalLM(config, seed=0).to(dtype).eval()


def same(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("space", ["probability", "logit"])
def test_a_step_is_the_formula(space: str) -> None:
    model = make("system2", update_space=space)
    body, projection = model.body, model.vocab_projection.weight
    positions, visible = (
        model._positions(None, None, 3, 0, T, IDS.device),
        model._visible(None, 3, 0, T, IDS.device),
    )
    known = body.context(body.embed_tokens(IDS), positions, visible, step=0)
    z = model.start_state(IDS).unsqueeze(1).requires_grad_()
    p = z.softmax(-1)
    energy = body.energies(p @ projection, known, positions, visible, step=0).sum()
    if space == "probability":  # z' = p - alpha dE/dp
        expected = p - 5.0 * torch.autograd.grad(energy, p)[0]
    else:  # z' = z - alpha dE/dz
        expected = z - 5.0 * torch.autograd.grad(energy, z)[0]
    same(model(IDS, num_steps=1).logits, expected.squeeze(1))


@pytest.mark.parametrize("kind", STEP_EMBEDDINGS)
def test_cached_equals_uncached(kind: str) -> None:
    model = make("system1", step_embedding=kind)
    with torch.no_grad():
        whole = model(IDS)
        first = model(IDS[:, :3], use_cache=True)
        second = model(IDS[:, 3:5], cache=first.cache)
        third = model(IDS[:, 5:], cache=second.cache, logits_to_keep=1)
    same(torch.cat([first.logits, second.logits, third.logits], dim=1), whole.logits)
    same(torch.cat([first.energies, second.energies, third.energies], dim=1), whole.energies)
    layers = 2 if model.config.shares_context else 4
    assert len(third.cache.layers) == layers
    assert third.cache.get_seq_length() == T


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize(
    "kwargs", [{}, {"num_beams": 3}, {"num_candidates": 3}, {"do_sample": True, "top_k": 5}]
)
def test_generation_with_and_without_a_cache(recipe: str, kwargs: dict) -> None:
    model = make(recipe)
    settings = {"max_new_tokens": 5, "do_sample": False} | kwargs
    found = []
    for use_cache in (True, False):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            found.append(model.generate(IDS, use_cache=use_cache, **settings))
    assert torch.equal(*found)
    assert found[0].shape == (3, T + 5)
    assert torch.equal(found[0][:, :T], IDS)


def test_greedy_generation_is_the_argmax_of_forward_passes() -> None:
    model, ids = make(), IDS
    with torch.no_grad():
        for _ in range(4):
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(model.generate(IDS, max_new_tokens=4, do_sample=False), ids)


def test_only_new_positions_descend_in_cached_generation() -> None:
    model, seen = make(), []
    original = model.body.energies

    def counted(e: Tensor, *args: object, **kwargs: object) -> Tensor:
        seen.append(e.shape[2])
        return original(e, *args, **kwargs)

    model.body.energies = counted
    model.generate(IDS, max_new_tokens=3, do_sample=False)
    # Three tokens, three steps each, of one position; nobody asks for the energy of the final prediction.
    assert seen == [1] * 9


@pytest.mark.parametrize("kind", ["none", "prefix", "adaln"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_no_real_position(kind: str, side: str) -> None:
    model = make("system1", step_embedding=kind)
    pad, ones = torch.zeros(3, 2, dtype=torch.int64), torch.ones_like(IDS)
    left = side == "left"
    ids = torch.cat([pad, IDS] if left else [IDS, pad], dim=1)
    mask = torch.cat([pad, ones] if left else [ones, pad], dim=1)
    with torch.no_grad():
        padded, plain = model(ids, attention_mask=mask, num_candidates=2), model(IDS, num_candidates=2)
    real = slice(2, None) if left else slice(None, T)
    same(padded.logits[:, real], plain.logits)
    same(padded.energies[:, real], plain.energies)
    assert bool(padded.logits.isfinite().all())


def test_a_batch_of_different_lengths_generates_what_each_would_alone() -> None:
    model = make()
    ids = torch.stack([IDS[0], torch.cat([torch.zeros(3, dtype=torch.int64), IDS[1, :3]])])
    together = model.generate(ids, attention_mask=(ids != 0).long(), max_new_tokens=5, do_sample=False)
    for row, prompt in enumerate((IDS[:1], IDS[1:2, :3])):
        alone = model.generate(prompt, max_new_tokens=5, do_sample=False)
        assert torch.equal(together[row, -5:], alone[0, -5:])


def test_rows_of_padding_alone_stay_finite() -> None:
    model = make()
    with torch.no_grad():
        out = model(IDS, attention_mask=torch.zeros_like(IDS), labels=torch.full_like(IDS, -100))
    assert bool(out.logits.isfinite().all())
    assert float(out.loss) == 0


@pytest.mark.parametrize("recipe", RECIPES)
def test_save_and_load(recipe: str, tmp_path: Path) -> None:
    model = make(recipe, dtype=torch.float32)
    model.draws += 7
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").exists()
    config = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(config, EnergyTransformerConfig)
    saved, known = config.to_dict(), model.config.to_dict()
    assert {**saved, "_name_or_path": ""} == known
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert isinstance(loaded, EnergyTransformerForCausalLM)
    for (name, ours), (other, theirs) in zip(
        model.state_dict().items(), loaded.state_dict().items(), strict=True
    ):
        assert name == other
        assert torch.equal(ours, theirs), name
    assert loaded.step_size.requires_grad == (recipe == "system1")
    same(loaded.double().eval()(IDS).logits, model.double()(IDS).logits)
    half = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.vocab_projection.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("tied", [True, False])
def test_tied_and_untied_projections(tied: bool, tmp_path: Path) -> None:
    model = make(tie_word_embeddings=tied, dtype=torch.float32)
    assert (model.vocab_projection.weight is model.body.embed_tokens.weight) == tied
    model.save_pretrained(tmp_path)
    loaded = EnergyTransformerForCausalLM.from_pretrained(tmp_path)
    assert (loaded.vocab_projection.weight is loaded.body.embed_tokens.weight) == tied
    same(loaded.double().eval()(IDS).logits, model.double()(IDS).logits)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("size", [V + 5, V - 4])
def test_resized_vocabularies(tied: bool, size: int) -> None:
    model = make(tie_word_embeddings=tied)
    before = model.vocab_projection.weight.detach().clone()
    with torch.random.fork_rng(devices=[]):
        model.resize_token_embeddings(size, mean_resizing=False)
    assert model.config.vocab_size == size
    assert model.vocab_projection.weight.shape == model.body.embed_tokens.weight.shape == (size, 16)
    kept = min(size, V)
    assert torch.equal(model.vocab_projection.weight[:kept], before[:kept])
    out = model(IDS.clamp(max=size - 1))
    assert out.logits.shape == (3, T, size)


def test_half_precision_keeps_the_energy_math_wide() -> None:
    model = make(dtype=torch.float32)
    wide = model(IDS, labels=IDS)
    half = copy.deepcopy(model).to(torch.bfloat16)(IDS, labels=IDS)
    assert half.logits.dtype == half.energies.dtype == torch.float32
    assert abs(float(half.loss.detach()) - float(wide.loss.detach())) < 0.1 * float(wide.loss.detach())
    model.train()
    with torch.autocast("cpu", torch.bfloat16):
        model(IDS, labels=IDS).loss.backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters())


def test_random_starts_are_the_generators_and_fixed_without_one() -> None:
    model = make()
    state = torch.get_rng_state()
    a, b, c = (model(IDS, generator=torch.Generator().manual_seed(s)).logits.detach() for s in (0, 0, 1))
    assert torch.equal(a, b)
    assert float((a - c).abs().max()) > 1e-3
    assert torch.equal(model(IDS).logits, model(IDS).logits)
    model.train()
    first, second = model(IDS).logits.detach(), model(IDS).logits.detach()
    assert float((first - second).abs().max()) > 1e-3
    assert torch.equal(torch.get_rng_state(), state)
    again = make().train()
    assert torch.equal(again(IDS).logits, first)
    other = make(noise_seed=1).train()
    assert not torch.equal(other(IDS).logits, first)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_callers_without_gradients(mode: type) -> None:
    model = make("system1")
    expected = model(IDS, labels=IDS)
    with mode():
        ids = IDS.clone()
        found = model(ids, labels=ids, use_cache=True)
        later = model(ids[:, -1:], cache=found.cache)
    same(found.logits, expected.logits.detach())
    same(found.loss, expected.loss.detach())
    assert later.logits.shape == (3, 1, V)
    assert not found.logits.requires_grad
    assert expected.loss.requires_grad


def test_one_candidate_is_plain_and_more_pick_the_lowest_energy_per_position() -> None:
    model = make()
    g = torch.Generator
    plain, one = (
        model(IDS, generator=g().manual_seed(4)),
        model(IDS, num_candidates=1, generator=g().manual_seed(4)),
    )
    assert torch.equal(plain.logits, one.logits)
    assert one.candidate_energies is None
    best = model(IDS, num_candidates=4)
    assert best.candidate_energies.shape == (3, 4, T)
    same(best.energies[..., -1], best.candidate_energies.amin(1))
    # The first candidate starts where a plain pass does.
    same(best.candidate_energies[:, 0], model(IDS).energies[..., -1])
    picked = best.candidate_energies.argmin(1)
    assert len(picked.unique()) > 1
    first = picked == 0
    same(best.logits[first], model(IDS).logits[first])
    # Its energy is that of its own prediction, not another's.
    again = model(IDS, initial_state=best.logits, num_steps=1).energies[..., 0]
    same(again, best.energies[..., -1])


def test_stopping_at_convergence_equals_stopping_by_hand() -> None:
    model = make(step_size=0.05, dtype=torch.float64)
    with pytest.warns(ExtrapolatedStepsWarning):
        found = model(IDS, num_steps=40, tol=1e-4)
    assert found.energies.shape == (3, T, 41)
    assert 1 < int(found.steps_taken.min()) < int(found.steps_taken.max()) <= 40
    for steps in found.steps_taken.unique().tolist()[:3]:
        with pytest.warns(ExtrapolatedStepsWarning) if steps > 3 else torch.no_grad():
            plain = model(IDS, num_steps=int(steps))
        at = found.steps_taken == steps
        same(found.logits[at], plain.logits[at])


def test_thinking_longer_takes_more_steps_from_the_same_start() -> None:
    model = make()
    with torch.no_grad():
        two, three = model(IDS, num_steps=2), model(IDS, num_steps=3)
        noisy = model(IDS, num_steps=2, langevin_noise_std=0.5)
        again = model(IDS, num_steps=2, langevin_noise_std=0.5)
    same(three.energies[..., :3], two.energies)
    assert not torch.equal(noisy.logits, two.logits)
    assert torch.equal(noisy.logits, again.logits)
    with pytest.warns(ExtrapolatedStepsWarning):
        model(IDS, num_steps=4)


def test_scores_are_the_energies_of_certain_predictions() -> None:
    model = make()
    every = torch.arange(V).expand(3, T, V)
    scores = model.score(IDS, every)
    assert scores.shape == (3, T, V)
    # A state that is certain of a token has that token's energy.
    certain = torch.full((3, T, V), -1e9, dtype=torch.float64)
    following = torch.roll(IDS, -1, 1)
    certain.scatter_(-1, following.unsqueeze(-1), 0.0)
    same(
        model(IDS, initial_state=certain).energies[..., 0],
        scores.gather(-1, following.unsqueeze(-1)).squeeze(-1),
    )
    same(model.score(IDS, following), scores.gather(-1, following.unsqueeze(-1)).squeeze(-1))
    with pytest.raises(ValueError, match="candidate_ids must be"):
        model.score(IDS, following[:, :3])


def test_the_loss_is_next_token_cross_entropy_without_ignored_labels() -> None:
    model = make()
    labels = IDS.clone()
    labels[:, :3] = -100
    out = model(IDS, labels=labels)
    picked = out.logits.log_softmax(-1)[:, 2:-1].gather(-1, IDS[:, 3:].unsqueeze(-1))
    same(out.loss, -picked.mean())
    same(model(IDS, labels=labels, num_items_in_batch=30).loss, -picked.sum() / 30)
    # In training every step counts where loss_on says so; evaluation judges the answer.
    first = make("system1")
    evaluated = first(IDS, labels=IDS, generator=torch.Generator().manual_seed(0))
    trained = first.train()(IDS, labels=IDS, generator=torch.Generator().manual_seed(0))
    same(evaluated.loss, evaluated.step_losses[-1])
    same(trained.loss, trained.step_losses.mean())
    same(trained.step_losses, evaluated.step_losses)


def test_as_many_parameters_as_a_llama_of_the_same_sizes() -> None:
    sizes = {"vocab_size": V, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    ours = make("system1", step_embedding="none")
    llama = LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=16, tie_word_embeddings=False))
    extra = 16 + 1  # the energy head and the step size
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in llama.parameters()) + extra


def test_embeddings_as_input_and_tuples_as_output() -> None:
    model = make()
    embedded = model(inputs_embeds=model.get_input_embeddings()(IDS))
    same(embedded.logits, model(IDS).logits)
    loss, logits, *_ = model(IDS, labels=IDS, return_dict=False)
    same(logits, model(IDS).logits)
    assert loss.ndim == 0


def test_an_own_cache_and_batches_of_none() -> None:
    model = make()
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(IDS, cache=cache, use_cache=True)
        empty = model(torch.zeros(0, 4, dtype=torch.int64))
    assert cache.get_seq_length() == T
    assert empty.logits.shape == (0, 4, V)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"num_steps": 0}, "num_steps must be at least 1, got 0"),
        ({"step_size": 0.0}, "step_size must be above 0"),
        ({"num_candidates": 0}, "num_candidates must be at least 1"),
        ({"langevin_noise_std": -1.0}, "must not be negative"),
        ({"tol": 0.0}, "tol must be above 0"),
        ({"labels": IDS[:, :3]}, "labels must have the shape"),
        ({"labels": IDS, "logits_to_keep": 1}, "leave logits_to_keep"),
        ({"input_ids": torch.ones(1, 25, dtype=torch.int64)}, "max_position_embeddings"),
        ({"input_ids": None}, "exactly one of"),
        ({"attention_mask": torch.ones(3, 2)}, "attention_mask must be"),
        ({"initial_state": torch.zeros(4, T, V)}, "initial_state must be"),
        ({"output_hidden_states": True}, "layers of their own"),
    ],
)
def test_bad_calls_are_refused(arguments: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()(**({"input_ids": IDS} | arguments))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"vocab_size": 0}, "vocab_size must be at least 1"),
        ({"num_attention_heads": 5}, "heads of even size"),
        ({"num_steps": 0}, "num_steps"),
        ({"num_steps_range": (3, 2)}, "num_steps_range"),
        ({"step_size": -1.0}, "step_size must be above 0"),
        ({"step_size_jitter": 0.5}, "step_size_jitter"),
        ({"step_embedding": "rotary"}, "step_embedding must be one of"),
        ({"loss_on": "first"}, "loss_on"),
        ({"update_space": "energy"}, "update_space"),
        ({"second_order": "none"}, "second_order"),
        ({"truncate": True}, 'needs loss_on="last"'),
        ({"replay_capacity": -1}, "replay_capacity"),
    ],
)
def test_bad_configurations_are_refused(settings: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        EnergyTransformerConfig(**settings)


def test_steps_beyond_a_step_embedding_and_thinking_in_training_are_refused() -> None:
    with pytest.raises(ValueError, match="the step embedding knows 2 steps"):
        make("system1", step_embedding="adaln")(IDS, num_steps=3)
    with pytest.raises(ValueError, match=r"model\.eval"):
        make().train()(IDS, num_candidates=2)
    with pytest.raises(ValueError, match="float32"):
        make(second_order="finite_difference").to(torch.bfloat16)(IDS)
    broken = make()
    with torch.no_grad():
        broken.body.energy_head.weight.fill_(torch.inf)
    with pytest.raises(ValueError, match="not finite at step 1 of 3"):
        broken(IDS)


def test_the_recipes_are_the_papers() -> None:
    first, second = EnergyTransformerConfig.system1(), EnergyTransformerConfig.system2()
    assert (first.num_steps, first.step_size, first.learn_step_size, first.step_embedding) == (
        2,
        500,
        True,
        "prefix",
    )
    assert (first.step_size_lr_multiplier, first.loss_on, first.detach_steps) == (1500, "all", True)
    assert (second.num_steps_range, second.num_steps, second.step_size) == ([2, 3], 3, 5)
    assert (second.step_size_jitter, second.langevin_noise_std, second.replay_capacity) == (2, 3, 192)
    assert (second.truncate, second.learn_step_size, second.loss_on) == (True, False, "last")
    assert EnergyTransformerConfig.system2(step_size=7.0).step_size == 7
