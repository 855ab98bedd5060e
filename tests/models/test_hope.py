"""Hope as a model of Transformers: what every causal language model has to pass, for each of its mixers."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from gradatim.models import HopeConfig, HopeForCausalLM
from gradatim.models.hope_cache import AttentionState, HopeCache
from gradatim.probes import nested_levels

V, T = 17, 11
IDS = torch.randint(1, V, (3, T), generator=torch.Generator().manual_seed(2))
KINDS = {
    "self": {},
    "self, chunks": {"chunk_size": (8, 4)},
    "self, mlp": {"memory": "mlp", "chunk_size": (4, 4), "momentum": 0.3},
    "attention": {"mixer": "attention"},
    "delta": {"mixer": "delta", "beta_max": 2.0},
    "linear attention": {"mixer": "linear_attention"},
}
ALL = pytest.mark.parametrize("kind", KINDS)


def make(kind="self", dtype=torch.float64, seed=0, **changes):
    settings = {
        "vocab_size": V, "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2,
        "chunk_size": (1, 1), "cms_periods": (1, 4), "pad_token_id": 0, "initializer_range": 0.3,
    }  # fmt: skip
    config = HopeConfig(**{**settings, **KINDS[kind], **changes})
    return HopeForCausalLM(config, seed=seed).to(dtype).eval()


def same(a, b, tolerance=1e-8):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


# -- reading ---------------------------------------------------------------------------------------------


@ALL
def test_cached_equals_uncached(kind):
    model = make(kind)
    with torch.no_grad():
        whole = model(IDS)
        first = model(IDS[:, :6], use_cache=True)
        second = model(IDS[:, 6:7], cache=first.cache)
        third = model(IDS[:, 7:], cache=second.cache, logits_to_keep=2)
    same(torch.cat([first.logits, second.logits, third.logits], dim=1)[:, :7], whole.logits[:, :7])
    same(third.logits, whole.logits[:, -2:])
    assert third.cache.get_seq_length() == T


@ALL
def test_reading_on_from_a_state_leaves_the_state_as_it_was(kind):
    model = make(kind)
    with torch.no_grad():
        state = model(IDS[:, :5]).memory_state
        kept = copy.deepcopy(state)
        same(model(IDS[:, 5:], memory_state=state).logits, model(IDS).logits[:, 5:])
    for one, other in zip(state, kept, strict=True):
        tensors = (
            (lambda s: [s.keys, s.values]) if isinstance(one, AttentionState) else (lambda s: s.tensors())
        )
        for a, b in zip(tensors(one), tensors(other), strict=True):
            assert torch.equal(a, b)


@ALL
def test_no_position_sees_a_later_one(kind):
    model = make(kind)
    other = IDS.clone()
    other[:, 7:] = other[:, 7:] % (V - 1) + 1
    with torch.no_grad():
        one, two = model(IDS).logits, model(other).logits
    same(one[:, :7], two[:, :7])
    assert (one[:, 7:] - two[:, 7:]).abs().max() > 1e-3


@ALL
def test_a_sample_is_independent_of_its_batch(kind):
    model = make(kind)
    with torch.no_grad():
        same(model(IDS[1:2]).logits, model(IDS).logits[1:2])


@ALL
@pytest.mark.parametrize("side", ["left", "right", "inside"])
def test_padding_changes_no_token_and_no_state(kind, side):
    model = make(kind)
    lengths = (11, 4, 7)
    ids, mask = torch.zeros(3, 14, dtype=torch.long), torch.zeros(3, 14, dtype=torch.long)
    for row, n in enumerate(lengths):
        where = {
            "left": range(14 - n, 14),
            "right": range(n),
            "inside": sorted((5 * i) % 14 for i in range(n)),
        }
        places = list(where[side])
        ids[row, places], mask[row, places] = IDS[row, :n], 1
    with torch.no_grad():
        padded = model(ids, attention_mask=mask)
        for row, n in enumerate(lengths):
            alone = model(IDS[row : row + 1, :n])
            same(padded.logits[row, mask[row].bool()], alone.logits[0])
            for one, other in zip(padded.memory_state, alone.memory_state, strict=True):
                assert one.tokens[row] == n
                if not isinstance(one, AttentionState):
                    for a, b in zip(one.lanes, other.lanes, strict=True):
                        same(a.matrix.value[row], b.matrix.value[0])
    assert padded.logits.isfinite().all()


@ALL
def test_rows_of_padding_alone_stay_finite(kind):
    mask = torch.ones_like(IDS)
    mask[1] = 0
    out = make(kind)(IDS, attention_mask=mask)
    assert out.logits.isfinite().all()
    assert out.memory_state[0].tokens.tolist() == [T, 0, T]


def test_loss_is_that_of_transformers_models():
    model = make()
    labels = IDS.clone()
    labels[:, :3] = -100
    ours = model(IDS, labels=labels)
    flat = torch.nn.functional.cross_entropy(
        ours.logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten()
    )
    torch.testing.assert_close(ours.loss, flat)
    assert model(IDS, labels=labels, return_dict=False)[0] == ours.loss
    hidden = model(IDS, output_hidden_states=True).hidden_states
    assert len(hidden) == 3
    same(model.lm_head(hidden[-1]), ours.logits)
    same(model(inputs_embeds=model.embed_tokens(IDS)).logits, ours.logits)


# -- generating ------------------------------------------------------------------------------------------


@ALL
@pytest.mark.parametrize("how", [{}, {"num_beams": 3}, {"do_sample": True, "top_k": 5}])
def test_generation_with_and_without_a_cache(kind, how):
    model, found = make(kind), []
    for use_cache in (True, False):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            found.append(model.generate(IDS, use_cache=use_cache, max_new_tokens=8, **how))
    assert torch.equal(*found)
    assert found[0].shape == (3, T + 8)
    assert torch.equal(found[0][:, :T], IDS)


def test_greedy_generation_is_the_argmax_of_forward_passes():
    model, ids = make(), IDS
    with torch.no_grad():
        for _ in range(5):
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(model.generate(IDS, max_new_tokens=5, do_sample=False), ids)


@ALL
def test_a_batch_of_different_lengths_generates_what_each_would_alone(kind):
    model = make(kind)
    ids = torch.stack([IDS[0], torch.cat([torch.zeros(5, dtype=torch.long), IDS[1, :6]])])
    together = model.generate(ids, attention_mask=(ids != 0).long(), max_new_tokens=9, do_sample=False)
    for row, prompt in enumerate((IDS[:1], IDS[1:2, :6])):
        alone = model.generate(prompt, max_new_tokens=9, do_sample=False)
        assert torch.equal(together[row, -9:], alone[0, -9:])


def test_a_cache_is_carried_from_one_generation_to_the_next():
    model = make()
    first = model.generate(IDS, max_new_tokens=4, do_sample=False, return_dict_in_generate=True)
    assert isinstance(first.cache, HopeCache)
    on = model.generate(first.sequences, cache=first.cache, max_new_tokens=4, do_sample=False)
    assert torch.equal(on, model.generate(IDS, max_new_tokens=8, do_sample=False))


def test_cached_steps_read_one_token_each():
    model, seen = make(), []
    hook = model.layers[0].mixer.register_forward_hook(lambda m, args, out: seen.append(args[0].shape[1]))
    model.generate(IDS, max_new_tokens=4, do_sample=False)
    hook.remove()
    assert seen == [T, 1, 1, 1]


def test_a_memory_takes_nothing_back():
    model = make()
    cache = model(IDS, use_cache=True).cache
    cache.crop(0)
    with pytest.raises(RuntimeError, match="cannot take back"):
        cache.crop(-1)
    size = [t.numel() for s in cache.states for t in s.tensors()]
    model(IDS, cache=cache)
    assert [t.numel() for s in cache.states for t in s.tensors()] == size  # whatever the length
    cache.reset()
    assert cache.get_seq_length() == 0


# -- saving, resizing, types -----------------------------------------------------------------------------


@ALL
@pytest.mark.parametrize("tied", [False, True])
def test_save_and_load(kind, tied, tmp_path):
    model = make(kind, dtype=torch.float32, tie_word_embeddings=tied)
    with torch.no_grad():
        for p in model.parameters():  # nothing may come back as it starts
            p.add_(0.01 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").exists()
    assert isinstance(AutoConfig.from_pretrained(tmp_path), HopeConfig)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert isinstance(loaded, HopeForCausalLM)
    assert (loaded.lm_head.weight is loaded.embed_tokens.weight) == tied
    for (name, ours), (other, theirs) in zip(
        model.state_dict().items(), loaded.state_dict().items(), strict=True
    ):
        assert name == other
        assert torch.equal(ours, theirs), name
    assert torch.equal(loaded.eval()(IDS).logits, model(IDS).logits)
    assert AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_weights_that_a_checkpoint_lacks_start_as_new_ones(tmp_path):
    from safetensors.torch import load_file, save_file

    model = make(dtype=torch.float32)
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    for name in ("layers.1.mixer.rate_bias", "layers.1.mixer.conv", "layers.1.mixer.initial.matrices"):
        del weights[name]
    weights["layers.0.mixer.conv"] += 1
    save_file(weights, file, metadata={"format": "pt"})
    loaded = HopeForCausalLM.from_pretrained(tmp_path)
    mixer = loaded.layers[1].mixer
    assert mixer.rate_bias.tolist() == [[0.0, 4.0]] * 2
    assert mixer.conv[:, -1].tolist() == [1.0] * 12
    assert 0.2 < mixer.initial["matrices"].std() < 0.7
    assert torch.equal(loaded.layers[0].mixer.conv, weights["layers.0.mixer.conv"])


def test_auto_classes_know_hope():
    config = AutoConfig.for_model("gradatim_hope", vocab_size=5, hidden_size=8, num_attention_heads=2)
    assert isinstance(AutoModelForCausalLM.from_config(config), HopeForCausalLM)


@pytest.mark.parametrize("tied", [False, True])
def test_embeddings_can_be_resized(tied):
    model = make(tie_word_embeddings=tied)
    before = model(IDS).logits
    model.resize_token_embeddings(V + 3)
    assert model.config.vocab_size == V + 3
    after = model(IDS, labels=IDS)
    assert after.logits.shape[-1] == V + 3
    same(after.logits[..., :V], before)


@ALL
def test_half_precision(kind):
    model = make(kind, dtype=torch.bfloat16)
    out = model(IDS, labels=IDS)
    assert out.logits.dtype == torch.bfloat16
    full = make(kind, dtype=torch.float32)(IDS, labels=IDS)
    assert abs(float(out.loss.detach()) - float(full.loss.detach())) < 0.15
    with torch.autocast("cpu", torch.bfloat16):
        mixed = make(kind, dtype=torch.float32).train()(IDS, labels=IDS)
    assert abs(float(mixed.loss.detach()) - float(full.loss.detach())) < 0.15
    state = out.memory_state[0]
    if not isinstance(state, AttentionState):
        assert state.lanes[0].matrix.value.dtype == torch.float32


def test_a_seed_fixes_the_weights_and_leaves_the_global_state_alone():
    before = torch.random.get_rng_state()
    one, two, other = make(seed=1), make(seed=1), make(seed=2)
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not torch.equal(one.lm_head.weight, other.lm_head.weight)


# -- training --------------------------------------------------------------------------------------------


@ALL
def test_gradient_checkpointing_changes_no_gradient(kind):
    plain, saving = make(kind).train(), make(kind).train()
    # Named anew in Transformers 5.
    getattr(saving, "activation_checkpointing_enable", saving.gradient_checkpointing_enable)()
    assert saving.gradient_checkpointing
    assert not plain.gradient_checkpointing
    for model in (plain, saving):
        model(IDS, labels=IDS).loss.backward()
    for (name, a), b in zip(plain.named_parameters(), saving.parameters(), strict=True):
        assert a.grad is not None, name
        same(a.grad, b.grad, 1e-6)


def test_training_resumes_bit_exactly(tmp_path):
    def steps(model, optimizer, first, last):
        for i in range(first, last):
            ids = torch.randint(1, V, (4, T), generator=torch.Generator().manual_seed(i))
            optimizer.zero_grad()
            model(ids, labels=ids).loss.backward()
            optimizer.step()

    whole = make(dtype=torch.float32).train()
    optimizer = torch.optim.AdamW(whole.parameters(), lr=1e-2)
    steps(whole, optimizer, 0, 3)
    whole.save_pretrained(tmp_path)
    saved = copy.deepcopy(optimizer.state_dict())
    steps(whole, optimizer, 3, 6)
    resumed = HopeForCausalLM.from_pretrained(tmp_path).train()
    optimizer = torch.optim.AdamW(resumed.parameters(), lr=1e-2)
    optimizer.load_state_dict(saved)
    steps(resumed, optimizer, 3, 6)
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


@ALL
def test_a_text_is_learned(kind):
    model = make(kind, dtype=torch.float32, initializer_range=0.1).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    first = None
    for _ in range(25):
        loss = model(IDS[:, :6], labels=IDS[:, :6]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        first = float(loss.detach()) if first is None else first
    assert float(loss.detach()) < 0.4 * first


def test_gradients_reach_back_through_a_state_unless_detached():
    model = make()
    early = model.embed_tokens(IDS[:, :5]).detach().requires_grad_()
    state = model(inputs_embeds=early).memory_state
    (gradient,) = torch.autograd.grad(model(IDS[:, 5:], memory_state=state).logits.square().sum(), early)
    assert gradient.abs().max() > 0
    cut = tuple(s.detach() for s in model(inputs_embeds=early).memory_state)
    loss = model(IDS[:, 5:], memory_state=cut).logits.square().sum()
    assert torch.autograd.grad(loss, early, allow_unused=True) == (None,)


def test_it_is_trained_by_the_trainer_of_transformers(tmp_path):
    from transformers import Trainer, TrainingArguments

    model = make(dtype=torch.float32)
    arguments = TrainingArguments(
        tmp_path, max_steps=2, per_device_train_batch_size=2, report_to=[], save_strategy="no", use_cpu=True,
        eval_strategy="steps", eval_steps=1, disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    data = [{"input_ids": row, "labels": row} for row in IDS]
    trainer = Trainer(model, arguments, train_dataset=data, eval_dataset=data)
    trainer.train()
    assert trainer.evaluate()["eval_loss"] > 0
    assert trainer.predict(data).predictions.shape == (3, T, V)


# -- levels ----------------------------------------------------------------------------------------------


def test_a_stream_predicts_as_the_model_and_then_learns():
    text = IDS[:1].repeat(1, 6)
    model = make(cms_periods=(1, 4), cms_lr=0.3)
    with torch.no_grad():
        logits = model(text).logits[:, :-1]
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), text[0, 1:], reduction="none")
    losses, state = model.stream(text, learn=False)
    torch.testing.assert_close(losses[0], expected, rtol=1e-5, atol=1e-5)
    assert state[0].tokens.tolist() == [text.shape[1] - 1]

    before = {n: p.clone() for n, p in model.named_parameters()}
    first, _ = model.stream(text)
    assert first[0, 0] == losses[0, 0]  # predicted before anything was learned
    assert first[0, -11:].mean() < losses[0, -11:].mean()
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {n for n in before if ".cms." in n}
    model.reset_memories()
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_one_write_of_a_stream_is_one_gradient_step():
    model = make(cms_periods=(4,), cms_lr=0.1)
    text = IDS[:1, :5]
    weight = model.layers[0].cms.levels[0].up.weight
    loss = model(text[:, :4]).logits.float()
    loss = torch.nn.functional.cross_entropy(loss.flatten(0, 1), text[0, 1:], reduction="sum")
    (gradient,) = torch.autograd.grad(loss, weight)
    expected = weight.detach() - 0.1 * gradient
    model.stream(text)
    torch.testing.assert_close(weight.detach(), expected)


def test_its_levels_are_described():
    rows = make("self, chunks", cms_periods=(1, 4)).nested_levels()
    assert {"name", "context_flow", "objective", "update_rule", "frequency"} <= rows[0].keys()
    assert [row["frequency"] for row in rows[:4]] == [1.0, 1.0, 1.0, 0.25]
    assert len(rows) == 8
    table = nested_levels(make())
    assert "layer 2: memory level 2" in str(table)
    assert "delta gradient descent" in str(table)
    assert nested_levels(make("attention")).levels[0].frequency == float("inf")
    shared, apart = (
        sum(row.get("numbers", 0) for row in make(chunk_size=c).nested_levels()[:2]) for c in ((1, 1), (4, 1))
    )
    assert apart == 2 * shared == 2 * 2 * 6 * 6


def test_bad_input_is_refused():
    model = make()
    cases = [
        ({}, "exactly one of input_ids"),
        ({"input_ids": IDS, "attention_mask": torch.ones(3, 4)}, "attention_mask must be"),
        ({"input_ids": IDS[:2], "memory_state": model(IDS).memory_state}, "holds 3 samples, the input 2"),
        ({"input_ids": IDS, "memory_state": model(IDS).memory_state[:1]}, "1 states for 2 layers"),
    ]
    for given, says in cases:
        with pytest.raises(ValueError, match=says):
            model(**given)
    with pytest.raises(ValueError, match="at least two tokens"):
        model.stream(IDS[:, :1])
    foreign = GPT2LMHeadModel(GPT2Config(vocab_size=V, n_embd=4, n_layer=1, n_head=1))(IDS, use_cache=True)
    with pytest.raises(ValueError, match="must be a HopeCache, got DynamicCache"):
        model(IDS, cache=foreign.cache)
    for settings, says in (
        ({"mixer": "magic"}, "mixer must be one of"),
        ({"hidden_size": 13}, "cannot be divided"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"cms_periods": ()}, "cms_periods"),
        ({"mixer": "attention", "hidden_size": 6}, "even size"),
    ):
        with pytest.raises(ValueError, match=says):
            make(**settings)


def test_the_guide_runs_as_it_stands():
    page = Path(__file__).parents[2] / "docs" / "guide" / "hope.md"
    namespace: dict = {}
    for code in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        exec(compile(code, page.name, "exec"), namespace)  # noqa: S102
    assert namespace["out"].shape == (4, 20)
    whole = namespace["model"](namespace["ids"]).logits[:, 24:]
    torch.testing.assert_close(namespace["on"], whole, rtol=1e-3, atol=1e-3)
    clocked = namespace["clocked"]
    assert sorted({g["period"] for g in clocked.param_groups}) == [1, 8]
    assert sum(p.numel() for g in clocked.param_groups for p in g["params"]) == sum(
        p.numel() for p in namespace["model"].parameters()
    )


@pytest.mark.parametrize(
    "switches",
    [{"inner_keys": False}, {"inner_values": False, "inner_rates": False}, {"inner_queries": True}],
)
@pytest.mark.parametrize("memory", ["linear", "mlp"])
def test_switches_of_the_inner_memories_are_saved_and_used(switches, memory, tmp_path):
    model = make(memory=memory, chunk_size=(4, 4), **switches)
    model.save_pretrained(tmp_path)
    again = HopeForCausalLM.from_pretrained(tmp_path, dtype=torch.float64).eval()
    rule = again.layers[0].mixer.rule
    assert all(getattr(rule, name) == value for name, value in switches.items())
    with torch.no_grad():
        found = model(IDS).logits
        same(again(IDS).logits, found)
        first = model(IDS[:, :6])
        same(model(IDS[:, 6:], memory_state=first.memory_state).logits, found[:, 6:])
        if "inner_queries" not in switches:
            full = make(memory=memory, chunk_size=(4, 4))
            full.load_state_dict(model.state_dict())
            # Nothing is written before the first chunk ends; from there on the two differ.
            same(full(IDS).logits[:, :4], found[:, :4])
            assert (full(IDS).logits[:, 4:] - found[:, 4:]).abs().max() > 1e-4
    described = [row["name"] for row in model.nested_levels()]
    for name in ("k", "v", "q"):
        written = {"k": rule.inner_keys, "v": rule.inner_values, "q": rule.inner_queries}[name]
        # "layer 1: memories of k, v, eta, alpha, and the one that is read"
        assert (name in re.split("[ ,]+", described[0].removeprefix("layer 1: "))) == written
