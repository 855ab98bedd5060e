"""In-context learners: layout, causality, losses, questions after a context, saving and loading."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradatim.bench.stacked import train_stacked
from gradatim.models import InContextConfig, InContextTransformer, KeyValueCache
from gradatim.models.in_context_tokens import ReadIn, context_loss

LAYOUTS = [("interleaved", "own"), ("interleaved", "shared"), ("paired", "own")]


def config(**settings: Any) -> InContextConfig:
    return InContextConfig(**{"d": 3, "n_positions": 9, "n_layer": 2, "n_head": 2, "n_embd": 16, **settings})


def learner(seed: int = 0, **settings: Any) -> InContextTransformer:
    return InContextTransformer(config(**settings), seed=seed).double().eval()


def context(n: int = 9, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return (torch.randn(4, n, 3, generator=g, dtype=torch.float64),
            torch.randn(4, n, generator=g, dtype=torch.float64))  # fmt: skip


@pytest.mark.parametrize(("tokens", "y_column"), LAYOUTS)
def test_tokens_are_those_of_the_paper(tokens: str, y_column: str) -> None:
    x, y = context(2)
    reader = ReadIn(3, 5, tokens, y_column).double()
    raw = reader.raw(x, y)
    own = y_column == "own"
    zero = [torch.zeros(4, 1, dtype=torch.float64)] if own else []
    rest = x[:, 1] if tokens == "paired" else torch.zeros(4, 2 + own, dtype=torch.float64)
    assert torch.equal(raw[:, 2], torch.cat([*zero, x[:, 1]], dim=-1))
    assert torch.equal(raw[:, 3], torch.cat([y[:, 1:2], rest], dim=-1))
    torch.testing.assert_close(reader(x, y), reader.map(raw))


@pytest.mark.parametrize(("tokens", "y_column"), LAYOUTS)
@pytest.mark.parametrize("arch", ["preln", "akyurek2022"])
def test_predictions_see_only_what_came_before(tokens: str, y_column: str, arch: str) -> None:
    model = learner(arch=arch, tokens=tokens, y_column=y_column)
    x, y = context()
    first = model(x, y).predictions
    for t in range(9):
        later_x, later_y = x.clone(), y.clone()
        later_x[:, t + 1 :] += 1.0
        later_y[:, t:] += 1.0
        second = model(later_x, later_y).predictions
        torch.testing.assert_close(first[:, : t + 1], second[:, : t + 1], rtol=1e-10, atol=1e-12)
        if t < 8:
            assert (first[:, t + 1] - second[:, t + 1]).abs().min() > 1e-9


@pytest.mark.parametrize("positions", ["learned", "sinusoidal", "rotary", "none"])
def test_questions_after_a_context_equal_the_forward_pass(positions: str) -> None:
    model = learner(positions=positions, tokens="paired")
    x, y = context()
    whole = model(x, y).predictions
    for t in range(9):
        found = model.predict_next(x[:, :t], y[:, :t], x[:, t])
        torch.testing.assert_close(found, whole[:, t], rtol=1e-10, atol=1e-12)


def test_many_questions_are_asked_independently() -> None:
    model = learner()
    # More questions than the position table has rows: each of them stands at the same place.
    (x, y), (queries, _) = context(5), context(30, seed=3)
    together = model.predict_next(x, y, queries)
    each = torch.stack([model.predict_next(x, y, queries[:, i]) for i in range(30)], dim=1)
    torch.testing.assert_close(together, each, rtol=1e-10, atol=1e-12)
    slow = super(InContextTransformer, model).predict_next(x, y, queries)
    torch.testing.assert_close(together, slow, rtol=1e-10, atol=1e-12)


def test_pairs_may_come_one_by_one() -> None:
    model, cache = learner(), KeyValueCache()
    x, y = context()
    whole = model(x, y).predictions
    for t in range(9):
        before = max(t - 1, 0)
        found = model.predict_next(x[:, before:t], y[:, before:t], x[:, t], cache=cache)
        torch.testing.assert_close(found, whole[:, t], rtol=1e-10, atol=1e-12)
    with pytest.raises(ValueError, match="exceed n_positions = 9"):
        model.predict_next(x[:, 8:], y[:, 8:], x[:, 0], cache=cache)


def test_hidden_states_lead_to_the_predictions() -> None:
    model = learner()
    x, y = context()
    out = model(x, y, output_hidden_states=True)
    assert [tuple(h.shape) for h in out.hidden_states] == [(4, 9, 16)] * 3
    torch.testing.assert_close(model.read_out(out.hidden_states[-1]).squeeze(-1), out.predictions)
    tokens = model.token_states(x, y)
    assert [tuple(h.shape) for h in tokens] == [(4, 18, 16)] * 3
    for a, b in zip(tokens, out.hidden_states, strict=True):
        torch.testing.assert_close(a[:, ::2], b, rtol=1e-10, atol=1e-12)


def test_losses_are_those_of_the_formula() -> None:
    x, y = context()
    out = learner()(x, y, labels=y)
    assert out.loss.item() == pytest.approx(((out.predictions - y) ** 2).mean().item())
    signs = torch.where(y > 0, 1.0, -1.0).double()
    logits = learner(objective="binary")(x, signs, labels=signs)
    p = 1 / (1 + torch.exp(-logits.predictions))
    expected = -(torch.where(signs > 0, p, 1 - p)).log().mean()
    assert logits.loss.item() == pytest.approx(expected.item())
    assert context_loss("binary", logits.predictions, (signs + 1) / 2).item() == pytest.approx(
        expected.item()
    )
    late = torch.arange(9) >= 4
    scored = learner()(x, y, labels=y, scored=late).loss
    assert scored.item() == pytest.approx(((out.predictions - y) ** 2)[:, 4:].mean().item())


def test_papers_architecture_and_initial_weights() -> None:
    model = learner(arch="akyurek2022", n_embd=64, n_head=4, d=3, n_positions=50)
    block = model.backbone.blocks[0]
    assert block.attention.head_size == 4
    assert block.attention.qkv.weight.shape == (3 * 16, 64)
    assert model.backbone.final_norm is None
    bounds = [
        (block.attention.qkv.weight, 64),
        (block.attention.qkv.bias, 16),
        (block.attention.out.weight, 16),
        (block.mlp.up.bias, 256),
        (block.mlp.down.weight, 256),
        (model.backbone.position_table.weight, 100),
        (model.read_in.map.weight, 4),
        (model.read_out.weight, 64),
    ]
    for values, fan in bounds:
        assert 0.85 * fan**-0.5 < values.abs().max().item() <= fan**-0.5
        assert abs(values.mean().item()) < 0.3 * fan**-0.5
    # The default narrows nothing and starts biases at 0.
    plain = learner(n_embd=64, n_head=4)
    assert plain.backbone.blocks[0].attention.head_size == 16
    assert not plain.backbone.blocks[0].mlp.up.bias.any()
    wide = learner(initializer_range=None).backbone.blocks[0].mlp.up.weight.std().item()
    assert wide == pytest.approx(0.25, rel=0.1)


@pytest.mark.parametrize(
    "settings",
    [
        {"tokens": "paired", "positions": "rotary"},
        {"arch": "akyurek2022", "objective": "binary"},
        {"freeze": "mixers"},
        {"freeze": "backbone"},
    ],
)
def test_saving_and_loading_changes_nothing(tmp_path: Path, settings: dict[str, str]) -> None:
    model = InContextTransformer(config(**settings), seed=5).eval()
    model.save_pretrained(tmp_path)
    again = InContextTransformer.from_pretrained(tmp_path, use_safetensors=True)
    path = {"_name_or_path": ""}
    assert again.config.to_dict() | path == model.config.to_dict() | path
    x, y = (t.float() for t in context())
    assert torch.equal(again(x, y).predictions, model(x, y).predictions)
    kept = [n for n, p in again.named_parameters() if p.requires_grad]
    assert kept == [n for n, p in model.named_parameters() if p.requires_grad]


def test_frozen_parts_do_not_move() -> None:
    x, y = (t.float() for t in context())

    def moved(freeze: str) -> set[str]:
        model = InContextTransformer(config(freeze=freeze), seed=0)
        after = train_stacked([model], lambda step: (x[None], y[None]), steps=3, lr=0.1, warmup=0.0).models[0]
        found = zip(model.named_parameters(), after.parameters(), strict=True)
        return {name.rsplit(".", 1)[0] for (name, a), b in found if not torch.equal(a, b)}

    assert not any(name.startswith("backbone") for name in moved("backbone"))
    mixers = moved("mixers")
    assert "backbone.blocks.0.mlp_norm" in mixers
    assert "backbone.position_table" in mixers
    assert not any("attention.qkv" in name or "mlp.up" in name for name in mixers)
    assert {"read_in.map", "read_out", "backbone.blocks.1.attention.qkv"} <= moved("none")
    frozen = InContextTransformer(config(freeze="backbone"), seed=0)
    assert len([m for m in frozen.read_in.modules() if isinstance(m, nn.Linear)]) == 3
    weight = frozen.backbone.blocks[0].mlp.up.weight
    assert weight.abs().max().item() == pytest.approx((6 / (16 + 64)) ** 0.5, rel=0.02)  # Xavier's bound


def test_seeds_give_weights_and_leave_the_global_state_alone() -> None:
    state = torch.get_rng_state()
    a, b, c = learner(1), learner(1), learner(2)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    assert not torch.equal(a.read_in.map.weight, c.read_in.map.weight)


def test_gradient_checkpointing_changes_no_gradient() -> None:
    x, y = context()
    gradients = []
    for enabled in (False, True):
        model = learner().train()
        if enabled:
            model.activation_checkpointing_enable() if hasattr(
                model, "activation_checkpointing_enable"
            ) else model.gradient_checkpointing_enable()
            assert model.backbone.gradient_checkpointing
        model(x, y, labels=y).loss.backward()
        gradients.append([p.grad for p in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("arch", ["preln", "akyurek2022"])
def test_stacked_training_equals_training_alone(arch: str) -> None:
    def data(seeds: list[int]) -> Any:
        def draw(step: int) -> tuple[Tensor, Tensor]:
            drawn = [context(seed=100 * s + step) for s in seeds]
            return torch.stack([x for x, _ in drawn]), torch.stack([y for _, y in drawn])

        return draw

    options = {"steps": 6, "lr": 1e-3}
    together = train_stacked(lambda s: learner(s, arch=arch), data([0, 1, 2]), seeds=[0, 1, 2], **options)
    assert together.engine == "vmap"
    alone = train_stacked([learner(1, arch=arch)], data([1]), engine="loop", **options)
    torch.testing.assert_close(torch.tensor(together.losses[:, 1:2]), torch.tensor(alone.losses))
    for a, b in zip(together.models[1].parameters(), alone.models[0].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


def test_learners_that_differ_without_a_weight_are_not_stacked() -> None:
    models = [learner(positions="none"), learner(positions="sinusoidal")]
    with pytest.raises(ValueError, match="configurations differ"):
        train_stacked(models, lambda step: context(), steps=1, lr=0.1)


def test_half_precision_is_near_full_precision() -> None:
    model = learner(initializer_range=None)
    x, y = context()
    full = model(x, y).predictions
    half = model.bfloat16()(x.bfloat16(), y.bfloat16()).predictions
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.double(), full, rtol=0.1, atol=0.1)


def test_trainer_of_hugging_face_takes_it(tmp_path: Path) -> None:
    from transformers import Trainer, TrainingArguments

    from gradatim.tasks import LinearRegressionTask
    from gradatim.tasks.contexts import ContextStream

    torch.manual_seed(0)
    model = InContextTransformer(config(), seed=0)
    before = model.read_out.weight.clone()
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=2, report_to=[], per_device_train_batch_size=1, use_cpu=True,
        disable_tqdm=True, save_strategy="no", dataloader_pin_memory=False
    )  # fmt: skip
    stream = ContextStream(LinearRegressionTask(3, 9), batch=4)
    Trainer(model, arguments, train_dataset=stream, data_collator=lambda rows: rows[0]).train()
    assert not torch.equal(before, model.read_out.weight)


def test_bad_input_is_refused() -> None:
    model = learner()
    x, y = context()
    with pytest.raises(ValueError, match="x has 2 columns, but the model was made for d = 3"):
        model(x[..., :2], y)
    with pytest.raises(ValueError, match="1 to 9 pairs"):
        model(torch.cat([x, x], dim=1), torch.cat([y, y], dim=1))
    with pytest.raises(ValueError, match="y contains NaN"):
        model(x, y * torch.nan)
    with pytest.raises(ValueError, match="labels must have shape"):
        model(x, y, labels=y[:, :3])
    with pytest.raises(ValueError, match="binary objective"):
        learner(objective="binary")(x, y, labels=y)
    with pytest.raises(ValueError, match="n_embd must be at least 1"):
        config(n_embd=0)
    with pytest.raises(ValueError, match="arch must be one of"):
        config(arch="gpt")
    with pytest.raises(ValueError, match="not a multiple of 9"):
        config(arch="akyurek2022", n_embd=12, n_head=3)
    with pytest.raises(ValueError, match="tokens must be"):
        learner(tokens="packed")
    with pytest.raises(ValueError, match="paired token holds x and y"):
        learner(tokens="paired", y_column="shared")
