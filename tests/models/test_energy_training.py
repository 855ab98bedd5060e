"""Training the energy transformer: it learns, resumes bit for bit, and suits ordinary trainers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from gradatim.models import EnergyTransformerConfig, EnergyTransformerForCausalLM, ReplayBuffer
from gradatim.models.energy_start import KeyedNoise, seeded
from gradatim.probes.compute import count_flops

V = 12


def make(recipe: str, **changes: object) -> EnergyTransformerForCausalLM:
    settings: dict = {
        "vocab_size": V, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "max_position_embeddings": 12,
    }  # fmt: skip
    config = getattr(EnergyTransformerConfig, recipe)(**(settings | changes))
    return EnergyTransformerForCausalLM(config, seed=0).train()


def batch(step: int) -> Tensor:
    return torch.randint(0, V, (8, 8), generator=torch.Generator().manual_seed(100 + step))


def train(
    model: EnergyTransformerForCausalLM,
    optimizer: torch.optim.Optimizer,
    buffer: ReplayBuffer | None,
    steps: range,
) -> list[float]:
    losses = []
    for step in steps:
        ids, state = batch(step % 4), None
        if buffer is not None:
            ids, state = buffer.extend(ids, generator=torch.Generator().manual_seed(step))
        out = model(ids, labels=ids, initial_state=state)
        optimizer.zero_grad()
        out.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if buffer is not None:
            buffer.push(ids, out.logits)
        losses.append(float(out.loss.detach()))
    return losses


@pytest.mark.parametrize("recipe", ["system1", "system2"])
def test_training_resumes_bit_for_bit(recipe: str, tmp_path: Path) -> None:
    settings = {"step_size": 20.0, "langevin_noise_std": 0.5}
    model = make(recipe, **settings)
    optimizer, buffer = torch.optim.AdamW(model.param_groups(1e-3)), model.replay_buffer()
    train(model, optimizer, buffer, range(3))
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, tmp_path / "weights.safetensors")
    kept_buffer = None if buffer is None else buffer.state_dict()
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    straight = train(model, optimizer, buffer, range(3, 6))

    again = make(recipe, **settings)
    again.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    optimizer, buffer = torch.optim.AdamW(again.param_groups(1e-3)), again.replay_buffer()
    optimizer.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    if buffer is not None:
        buffer.load_state_dict(kept_buffer)
    assert train(again, optimizer, buffer, range(3, 6)) == straight
    for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("recipe", "changes", "steps"),
    [
        (
            "system1",
            {"step_size": 50.0, "step_size_lr_multiplier": 10.0, "step_embedding": "prediction"},
            100,
        ),
        ("system2", {"langevin_noise_std": 0.0, "step_size_jitter": 1.0, "step_size": 20.0}, 150),
    ],
)
def test_it_memorises_a_few_sequences(recipe: str, changes: dict, steps: int) -> None:
    model = make(recipe, hidden_size=64, **changes)
    optimizer = torch.optim.AdamW(model.param_groups(4e-3 if recipe == "system1" else 2e-3, 0.0))
    # The first token names the sequence, so that all others are determined.
    ids = torch.randint(0, V, (V, 5), generator=torch.Generator().manual_seed(0))
    ids[:, 0] = torch.arange(V)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] *= 0.98 if step > steps // 2 else 1.0
        optimizer.zero_grad()
        model(ids, labels=ids).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    with torch.no_grad():
        out = model.eval()(ids, labels=ids)
    assert float(out.loss) < 0.1
    if recipe == "system2":
        # One landscape for all steps: descending it is descending.
        start, first, second, third = out.energies.mean((0, 1)).tolist()
        assert start > first > second
        assert third < (first + second) / 2
        wrong = model.score(ids[:, :-1], (ids[:, 1:] + 1) % V)
        assert float((model.score(ids[:, :-1], ids[:, 1:]) < wrong).float().mean()) > 0.8


def test_random_numbers_of_steps_and_step_sizes_are_drawn_in_range() -> None:
    model = make("system2", num_steps_range=(2, 4))
    seen = {model(batch(0)).energies.shape[-1] for _ in range(20)}
    assert seen == {2, 3, 4}
    model = make("system2", num_steps=1, num_steps_range=None, langevin_noise_std=0.0, initial_noise_std=0.0)
    p = torch.full((V,), 1 / V)
    slope = model.eval()(batch(0), step_size=1.0).logits.detach() - p
    drawn = torch.cat(
        [((model.train()(batch(0)).logits.detach() - p) / slope).flatten(0, 1) for _ in range(8)]
    )
    # One size per token, the same for the whole vocabulary, uniform between alpha / 2 and 2 alpha.
    torch.testing.assert_close(drawn, drawn.mean(-1, keepdim=True).expand_as(drawn), rtol=0.02, atol=0.02)
    sizes = drawn.mean(-1)
    assert 2.4 < float(sizes.min()) < 2.7
    assert 9.7 < float(sizes.max()) < 10.1
    assert abs(float(sizes.mean()) - 6.25) < 0.3


def test_keyed_noise_is_standard_normal_and_depends_on_its_key_alone() -> None:
    noise = KeyedNoise(3)
    late, early = noise(torch.tensor([[5, 9]]), 400, 0), noise(torch.tensor([[9], [5]]), 400, 0)
    assert torch.equal(late[0, 0], early[1, 0])
    assert torch.equal(late[0, 1], early[0, 0])
    assert torch.equal(KeyedNoise(3)(torch.tensor([[9]]), 400, 0)[0, 0], late[0, 1])
    for other in (noise(torch.tensor([[5]]), 400, 1), KeyedNoise(4)(torch.tensor([[5]]), 400, 0)):
        assert abs(float(torch.corrcoef(torch.stack([late[0, 0], other[0, 0]]))[0, 1])) < 0.2
    rows = noise(torch.arange(50).unsqueeze(0), 400, 2)
    assert abs(float(rows.mean())) < 0.03
    assert abs(float(rows.std()) - 1) < 0.03
    a, b = (torch.rand(1, generator=seeded("cpu", 1, k)) for k in (0, 1))
    assert not torch.equal(a, b)


def test_the_trainer_of_transformers_trains_it(tmp_path: Path) -> None:
    from transformers import Trainer, TrainingArguments

    model = make("system2", langevin_noise_std=0.0)
    data = [{"input_ids": row, "labels": row} for row in batch(0)]
    arguments = TrainingArguments(
        str(tmp_path), max_steps=4, per_device_train_batch_size=4, gradient_accumulation_steps=2,
        learning_rate=1e-2, report_to=[], use_cpu=True, save_strategy="no", logging_steps=1,
        dataloader_pin_memory=False, disable_tqdm=True, seed=0,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        trainer = Trainer(model, arguments, train_dataset=data, eval_dataset=data)
        trainer.train()
        found = trainer.evaluate()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert len(losses) == 4
    assert losses[-1] < losses[0]
    assert found["eval_loss"] < losses[0]


@pytest.mark.parametrize("recipe", ["system1", "system2"])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_an_update_costs_what_counting_by_hand_says(recipe: str, steps: int) -> None:
    sizes = {"num_steps": steps, "num_steps_range": None, "step_embedding": "none", "langevin_noise_std": 0.0}
    model = make(recipe, hidden_size=8, intermediate_size=12, step_size_jitter=1.0, **sizes)
    ids = batch(0)
    (B, T), D, F, L = ids.shape, 8, 12, 2
    rows = B * T
    layer = rows * (4 * D * D + 3 * D * F)  # multiply-adds of a block's maps for every row
    attention = 2 * B * T * T * D  # scores, and the weighted sum
    vocabulary = rows * V * D
    # The context once, forward and twice backward; its last block gives keys and values alone.
    total = 3 * ((L - 1) * (layer + attention) + 2 * rows * D * D)
    # Every step: in at the vocabulary, up and back down the blocks, out at the vocabulary.
    total += steps * (2 * L * (layer + attention) + 2 * vocabulary)
    # Steps in the graph: both passes are differentiated by inputs and by weights (p itself is a constant).
    graphed = steps if recipe == "system1" else 1
    total += graphed * (4 * L * (layer + attention) + 3 * vocabulary)
    assert count_flops(lambda: model(ids, labels=ids).loss.backward()) == 2 * total
