"""Meta-gradients against autograd through the inner loop, task by task; training, resuming, scikit-learn."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.base import clone
from sklearn.model_selection import cross_val_score
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import nn
from torch.func import functional_call

from gradatim.models import FewShotClassifier, MetaSGD, anil, fomaml, maml
from gradatim.models.task_forward import TaskForward
from gradatim.tasks import ConceptGrammar, ConceptTasks, SineTask, Tasks, context_generator, tasks_of_contexts

torch.set_num_threads(1)


def network(inputs=5, width=6, outputs=1, norm=None, seed=0, activation=nn.Tanh):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [nn.Linear(inputs, width)]
        if norm is not None:
            layers.append(norm(width))
        layers += [activation(), nn.Sequential(nn.Linear(width, width), nn.GELU()), nn.Linear(width, outputs)]
        return nn.Sequential(*layers).double()


def some_tasks(loss="bce", tasks=3, n_s=6, n_q=4, inputs=5, seed=0):
    g = torch.Generator().manual_seed(seed)
    xs_s, xs_q = (torch.randn(tasks, n, inputs, generator=g, dtype=torch.float64) for n in (n_s, n_q))
    if loss == "mse":
        ys = [torch.randn(tasks, n, generator=g, dtype=torch.float64) for n in (n_s, n_q)]
    else:
        # Every class occurs, in no particular order.
        classes = 2 if loss == "bce" else 3
        ys = [
            torch.stack([torch.randperm(n, generator=g) % classes for _ in range(tasks)]) for n in (n_s, n_q)
        ]
        ys = [y.double() for y in ys] if loss == "bce" else ys
    return Tasks(xs_s, ys[0], xs_q, ys[1])


def one_loss(kind, outputs, y):
    if kind == "bce":
        return F.binary_cross_entropy_with_logits(outputs.squeeze(-1), y)
    if kind == "mse":
        return F.mse_loss(outputs.squeeze(-1), y)
    return F.cross_entropy(outputs, y)


def by_hand(meta, tasks, steps, support_norm=False):
    """The meta-loss by a Python loop over tasks and steps, differentiable by plain autograd."""
    module = copy.deepcopy(meta.module)
    for m in module.modules():
        if isinstance(m, nn.BatchNorm1d):
            m.track_running_stats = False  # statistics of the set at hand, as in training mode
    everything = dict(meta.module.named_parameters())
    rates = meta.learning_rates()
    total = 0.0
    for xs_s, ys_s, xs_q, ys_q in zip(tasks.xs_s, tasks.ys_s, tasks.xs_q, tasks.ys_q, strict=True):
        mine = {n: everything[n] for n in meta.inner_names}
        rest = {n: p for n, p in everything.items() if n not in mine}
        for _ in range(steps):
            loss = one_loss(meta.loss, functional_call(module, {**rest, **mine}, (xs_s,)), ys_s)
            grads = torch.autograd.grad(loss, list(mine.values()), create_graph=not meta.first_order)
            mine = {n: w - rates[n] * g for (n, w), g in zip(mine.items(), grads, strict=True)}
        outputs = functional_call(module, {**rest, **mine}, (xs_q,))
        total = total + one_loss(meta.loss, outputs, ys_q)
    return total / len(tasks)


def check_gradients(meta, tasks, steps, tolerance=1e-10):
    wanted_loss = by_hand(meta, tasks, steps)
    trained = [p for p in meta.parameters() if p.requires_grad]
    wanted = torch.autograd.grad(wanted_loss, trained, allow_unused=True)
    loss = meta.meta_loss(tasks, steps)
    assert loss.item() == pytest.approx(wanted_loss.item(), abs=1e-12)
    found = torch.autograd.grad(loss, trained, allow_unused=True)
    for a, b in zip(wanted, found, strict=True):
        a = torch.zeros(1) if a is None else a
        b = torch.zeros_like(a) if b is None else b
        assert (a - b).abs().max() < tolerance
    return found


@pytest.mark.parametrize("engine", ["stacked", "vmap", "loop"])
@pytest.mark.parametrize("first_order", [True, False])
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_meta_gradients_are_those_of_autograd_through_the_loop(engine, first_order, steps):
    meta = MetaSGD(network(), lr=0.3, steps=steps, first_order=first_order, engine=engine)
    assert meta.engine == engine
    found = check_gradients(meta, some_tasks(), steps)
    # Without steps α has nothing to do with the loss.
    assert any(g is not None and g.abs().max() > 1e-4 for g in found[-6:]) == (steps > 0)


@pytest.mark.parametrize("learn_lr", ["element", "row", "tensor", "none"])
@pytest.mark.parametrize("first_order", [True, False])
@pytest.mark.parametrize("loss", ["bce", "cross_entropy", "mse"])
def test_every_kind_of_rate_and_loss(learn_lr, first_order, loss):
    module = network(outputs=3 if loss == "cross_entropy" else 1)
    meta = MetaSGD(module, lr=0.2, learn_lr=learn_lr, first_order=first_order, loss=loss)
    check_gradients(meta, some_tasks(loss), 2)


@pytest.mark.parametrize("engine", ["stacked", "vmap"])
def test_weights_that_tasks_share_get_their_mixed_derivatives(engine):
    for first_order in (True, False):
        meta = MetaSGD(
            network(), lr=0.4, inner_params=("3.*", "2.0.bias"), first_order=first_order, engine=engine
        )
        assert set(meta.inner_names) == {"3.weight", "3.bias", "2.0.bias"}
        check_gradients(meta, some_tasks(), 3)
    assert anil(network(), "3.*").inner_names == ("3.weight", "3.bias")


@pytest.mark.parametrize("engine", ["stacked", "vmap", "loop"])
def test_batch_norm_in_batch_mode_uses_the_set_at_hand_and_keeps_no_record(engine):
    module = network(norm=nn.BatchNorm1d)
    before = {n: b.clone() for n, b in module.named_buffers()}
    check_gradients(MetaSGD(module, lr=0.2, engine=engine), some_tasks(), 2)
    assert all(torch.equal(b, before[n]) for n, b in module.named_buffers())


def test_checkpointed_steps_give_the_same_gradients():
    for steps in (1, 2, 5, 9):
        check_gradients(MetaSGD(network(), lr=0.3, checkpoint=True), some_tasks(), steps)


def test_bounds_keep_rates_inside_and_are_differentiable():
    meta = MetaSGD(network(), lr=0.2, lr_bounds=(0.0, 0.5))
    assert torch.allclose(meta.learning_rates()["0.weight"], torch.tensor(0.2, dtype=torch.float64))
    check_gradients(meta, some_tasks(), 2)
    with torch.no_grad():
        for rate in meta.rates:
            rate.fill_(1e3)
    assert meta.rate_summary() == pytest.approx((0.5, 0.5, 0.5))


def test_a_linear_loss_and_unused_weights_have_zero_products():
    class Partly(nn.Module):
        def __init__(self):
            super().__init__()
            self.used = nn.Parameter(torch.ones(5, dtype=torch.float64))
            self.unused = nn.Parameter(torch.ones(2, dtype=torch.float64))

        def forward(self, x):
            return x @ self.used

    meta = MetaSGD(Partly(), lr=0.1, loss=lambda outputs, y: (outputs * y).sum())
    tasks = some_tasks("mse")
    loss = meta.meta_loss(tasks, 2)
    loss.backward()
    # L = Σ y xᵀw has the constant gradient Xᵀy, so w_2 = w - 2 α Xᵀ_S y_S.
    g = torch.einsum("tnd,tn->td", tasks.xs_s, tasks.ys_s)
    v = torch.einsum("tnd,tn->td", tasks.xs_q, tasks.ys_q)
    assert torch.allclose(meta.module.used.grad, v.mean(0))
    assert torch.allclose(meta.rates[0].grad, (-2 * g * v).mean(0))
    assert not meta.module.unused.grad.any()


def test_engines_agree_on_norms_and_frozen_statistics():
    for norm in (nn.BatchNorm1d, nn.LayerNorm):
        for mode in ("batch", "support", "frozen"):
            module = network(norm=norm)
            with torch.no_grad():
                for name, buffer in module.named_buffers():
                    if "running" in name:
                        buffer += 0.5
            found = []
            for engine in ("stacked", "vmap", "loop"):
                meta = MetaSGD(module, lr=0.3, steps=2, norm_stats=mode, engine=engine)
                tasks = some_tasks()
                outputs = meta(tasks.xs_s, tasks.ys_s, tasks.xs_q)
                found.append(outputs)
                if mode != "batch" or norm is nn.LayerNorm:
                    # Inductive: an answer does not depend on what else is asked.
                    alone = meta(tasks.xs_s, tasks.ys_s, tasks.xs_q[:, :1])
                    assert torch.allclose(alone, outputs[:, :1], atol=1e-12)
                else:
                    assert not torch.allclose(meta(tasks.xs_s, tasks.ys_s, tasks.xs_q[:, :2]), outputs[:, :2])
            assert all(torch.allclose(found[0], other, atol=1e-12) for other in found[1:])
    frozen = MetaSGD(module.eval(), lr=0.3, steps=0, norm_stats="frozen")
    assert torch.allclose(frozen(tasks.xs_s, tasks.ys_s, tasks.xs_q)[0], module(tasks.xs_q[0]).squeeze(-1))


def test_convolutions_run_under_vmap():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = nn.Sequential(
            nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 16, 2)
        ).double()
    g = torch.Generator().manual_seed(1)
    xs = [torch.randn(2, 4, 1, 6, 6, generator=g, dtype=torch.float64) for _ in range(2)]
    ys = torch.tensor([[0, 1, 0, 1], [1, 1, 0, 0]])
    meta = MetaSGD(module, lr=0.1, steps=2, loss="cross_entropy")
    assert meta.engine == "vmap"
    loop = MetaSGD(module, lr=0.1, steps=2, loss="cross_entropy", engine="loop")
    losses = [m.meta_loss(Tasks(xs[0], ys, xs[1], ys)) for m in (meta, loop)]
    assert losses[0].item() == pytest.approx(losses[1].item(), abs=1e-12)
    grads = [
        torch.autograd.grad(loss, list(m.parameters())) for loss, m in zip(losses, (meta, loop), strict=True)
    ]
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(*grads, strict=True))


def test_recurrent_cells_run_in_a_loop():
    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.head = nn.LSTM(2, 4, batch_first=True), nn.Linear(4, 1)

        def forward(self, x):
            return self.head(self.cell(x)[0][:, -1])

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        meta = MetaSGD(Reader().double(), lr=0.1, first_order=True, engine="loop")
    g = torch.Generator().manual_seed(1)
    xs = torch.randn(2, 4, 3, 2, generator=g, dtype=torch.float64)
    ys = torch.tensor([[0.0, 1, 0, 1], [1, 1, 0, 0]], dtype=torch.float64)
    meta.meta_loss(Tasks(xs, ys, xs, ys)).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in meta.module.head.parameters())


def test_adaptation_by_hand_on_a_line():
    """One weight, squared error: w - α 2 mean(x (w x - y)), exactly."""
    module = nn.Linear(1, 1, bias=False).double()
    with torch.no_grad():
        module.weight.fill_(0.5)
    meta = maml(module, lr=0.1, loss="mse")
    x, y = torch.tensor([[[1.0], [2.0]]]).double(), torch.tensor([[1.0, 3.0]]).double()
    # residuals -0.5 and -2: gradient 2 (-0.5 - 4) / 2 = -4.5
    assert meta.adapt(x, y)["weight"].item() == pytest.approx(0.95)
    states = meta.adaptation_path(x, y, 2)
    assert [s["weight"].item() for s in states] == pytest.approx([0.5, 0.95, 0.95 - 0.1 * (5 * 0.95 - 7)])
    assert meta.predict(meta.adapt(x, y), x).tolist()[0] == pytest.approx([0.95, 1.9])


def test_reptile_moves_towards_the_adapted_weights():
    tasks = some_tasks()
    meta = fomaml(network(), lr=0.2, steps=3)
    xs, ys = torch.cat([tasks.xs_s, tasks.xs_q], 1), torch.cat([tasks.ys_s, tasks.ys_q], 1)
    end = meta.adaptation_path(xs, ys)[-1]
    meta.reptile_loss(tasks).backward()
    for name, weight in meta.module.named_parameters():
        assert torch.allclose(weight.grad, weight - end[name].mean(0), atol=1e-14)


def test_higher_precision_types_and_bfloat16():
    tasks = some_tasks()
    wide = MetaSGD(network(), lr=0.2, steps=3)
    narrow = MetaSGD(network().to(torch.float32), lr=0.2, steps=3)
    small = tasks.to(dtype=torch.float32)
    assert narrow.meta_loss(small).item() == pytest.approx(wide.meta_loss(tasks).item(), rel=1e-5)
    half = MetaSGD(network().to(torch.bfloat16), lr=0.2, steps=3)
    loss = half.meta_loss(tasks.to(dtype=torch.bfloat16))
    loss.backward()
    assert loss.item() == pytest.approx(wide.meta_loss(tasks).item(), rel=0.05)
    assert half.module[0].weight.grad.dtype == torch.bfloat16


def test_training_learns_concepts_it_has_not_seen():
    grammar = ConceptGrammar(6, 2)
    meta = MetaSGD(network(6, 32, activation=nn.ReLU).float(), lr=0.1, steps=2, first_order=True)
    train = ConceptTasks(grammar, split="train", tasks=16)
    test = ConceptTasks(grammar, split="test").draw(300, (9,))

    def accuracy(model):
        with torch.no_grad():
            return float(((model(test.xs_s, test.ys_s, test.xs_q) > 0) == test.ys_q.bool()).float().mean())

    before = accuracy(meta)
    record = meta.fit(
        train, 100, lr=1e-2, validation=ConceptTasks(grammar, split="valid").draw(100, (8,)), every=50
    )
    assert record.steps == 100
    assert len(record.validation) == 3
    assert record.best_step in (50, 100)
    assert accuracy(meta) > before + 0.08
    assert "100 steps" in str(record)


def test_fit_keeps_the_best_state_and_passes_optimizers_on():
    meta = MetaSGD(network(), lr=0.1)
    tasks = some_tasks()
    seen = []
    record = meta.fit(
        [tasks] * 6,
        optimizer=lambda groups: torch.optim.SGD([{**g, "lr": 5.0} for g in groups]),
        schedule=lambda moves: torch.optim.lr_scheduler.StepLR(moves, 3),
        clip=None,
        validation=tasks,
        every=1,
        callback=lambda step, _: seen.append(step),
    )
    assert seen == list(range(7))
    best = min(loss for _, loss in record.validation)
    assert meta.meta_loss(tasks).item() == pytest.approx(best, abs=1e-12)
    assert record.validation[record.best_step][1] == best
    assert meta.fit([tasks], algorithm="reptile").steps == 1


def test_interrupted_training_ends_with_the_same_bits(tmp_path):
    def run(stops, file=None):
        torch.manual_seed(5)  # the data do not depend on it
        meta = MetaSGD(network(6).float(), lr=0.1, steps=2)
        valid = ConceptTasks(ConceptGrammar(6, 2), tasks=20, seed=7).batch(0)
        for stop in stops:
            if len(stops) > 1:
                meta = MetaSGD(network(6, seed=stop).float(), lr=0.1, steps=2)  # a fresh process
                if stop == stops[0]:
                    meta.load_state_dict(MetaSGD(network(6).float(), lr=0.1).state_dict())
            stream = ConceptTasks(ConceptGrammar(6, 2), tasks=4, seed=3)
            plan = None if file is None else file
            record = meta.fit(
                stream, stop, validation=valid, every=4, checkpoint=plan,
                schedule=lambda moves: torch.optim.lr_scheduler.CosineAnnealingLR(moves, 12),
            )  # fmt: skip
        return meta, record

    whole, record = run([12])
    parts, again = run([5, 8, 12], tmp_path / "meta.pt")
    assert record.losses == again.losses
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), parts.parameters(), strict=True))


def test_state_round_trip_and_copy():
    meta = MetaSGD(network(), lr=0.1, steps=2)
    with torch.no_grad():
        for p in meta.parameters():
            p += 0.05
    other = MetaSGD(network(seed=4), lr=0.7, steps=2)
    other.load_state_dict(meta.state_dict())
    tasks = some_tasks()
    assert other.meta_loss(tasks).item() == meta.meta_loss(tasks).item()
    assert copy.deepcopy(meta).meta_loss(tasks).item() == meta.meta_loss(tasks).item()
    assert sum(p.numel() for p in meta.parameters()) == 2 * sum(p.numel() for p in network().parameters())
    groups = meta.param_groups(0.1)
    assert [g["weight_decay"] for g in groups] == [0.1, 0.0]
    assert sum(len(g["params"]) for g in groups) == len(list(meta.parameters()))


def test_sine_waves_are_regression():
    drawn = SineTask(20).sample(8, generator=context_generator(0))
    tasks = tasks_of_contexts(drawn, 10)
    meta = MetaSGD(network(1, 16).float(), lr=0.02, steps=5, loss="mse")
    record = meta.fit([tasks] * 30, lr=1e-2)
    assert record.losses[-1] < 0.8 * record.losses[0]


def test_dropout_and_bad_input_are_refused():
    tasks = some_tasks()
    meta = MetaSGD(network())
    ys = tasks.ys_s.clone()
    ys[1] = 1
    with pytest.raises(ValueError, match="support set of task 1 has one class only: 1"):
        meta.adapt(tasks.xs_s, ys)
    with pytest.raises(ValueError, match=r"squeeze the last axis"):
        meta.adapt(tasks.xs_s, tasks.ys_s[..., None])
    with pytest.raises(ValueError, match="must share T and n"):
        meta.adapt(tasks.xs_s, tasks.ys_s[:, :-1])
    with pytest.raises(ValueError, match="steps must not be negative"):
        meta.adapt(tasks.xs_s, tasks.ys_s, -1)
    with pytest.raises(ValueError, match="steps must not be negative"):
        MetaSGD(network(), steps=-1)
    with pytest.raises(ValueError, match="one logit per row"):
        MetaSGD(network(outputs=2)).meta_loss(tasks)
    with pytest.raises(ValueError, match=r"needs \[n, classes\]"):
        MetaSGD(nn.Sequential(network(), nn.Flatten(0)), loss="cross_entropy").meta_loss(tasks)
    with pytest.raises(ValueError, match="differ in shape"):
        MetaSGD(network(outputs=2), loss="mse").meta_loss(some_tasks("mse"))
    for settings, message in (
        ({"learn_lr": "layer"}, "learn_lr"), ({"loss": "hinge"}, "loss must be"),
        ({"engine": "fast"}, "engine"),
        ({"norm_stats": "all"}, "norm_stats"), ({"inner_params": ("head.*",)}, "matches none"),
        ({"lr_bounds": (0.1, 0.2)}, "strictly between"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            MetaSGD(network(), **settings)
    with pytest.raises(ValueError, match='use engine="vmap"'):
        MetaSGD(nn.Sequential(nn.Unflatten(1, (1, 5)), nn.Flatten(), nn.Linear(5, 1)), engine="stacked")
    one = MetaSGD(network(norm=nn.BatchNorm1d), loss="mse")
    with pytest.raises(ValueError, match="statistics of one row"):
        one.adapt(torch.zeros(2, 1, 5).double(), torch.zeros(2, 1).double())
    dropped = nn.Sequential(nn.Linear(5, 4), nn.Dropout(0.5), nn.Linear(4, 1)).double()
    with pytest.raises(ValueError, match="dropout draws anew"):
        MetaSGD(dropped).meta_loss(tasks)
    MetaSGD(dropped).eval().meta_loss(tasks)
    MetaSGD(dropped, first_order=True).meta_loss(tasks).backward()
    with pytest.raises(RuntimeError, match="not finite"):
        MetaSGD(network(), lr=float("inf")).meta_loss(tasks)
    assert TaskForward(network()).engine == "stacked"


# -- scikit-learn ----------------------------------------------------------------------------------------


class Small:
    """A function of the sizes whose name, unlike a function's own, is the same in every test process."""

    def __call__(self, features, classes):
        return maml(network(features, 16, max(2, classes)), lr=1.0, loss="cross_entropy")

    def __repr__(self):
        return "small"

    def __deepcopy__(self, memo):
        return self


small = Small()


# The check of a label column vector, and others, warn on purpose.
@pytest.mark.filterwarnings("default")
@parametrize_with_checks([FewShotClassifier(small, steps=30)])
def test_scikit_learn_contract_of_few_shot_classifier(estimator, check):
    check(estimator)


def test_few_shot_classifier_adapts_a_copy():
    grammar = ConceptGrammar(8, 2)
    tasks = ConceptTasks(grammar, support=(20, 20), query=(20, 20), tasks=2, seed=1).batch(0)
    meta = MetaSGD(network(8, 32, activation=nn.ReLU).float(), lr=0.2)
    before = copy.deepcopy(meta.state_dict())
    X, y = tasks.xs_s[0].numpy(), np.where(tasks.ys_s[0].numpy() > 0, "yes", "no")
    found = FewShotClassifier(meta, steps=100).fit(X, y)
    assert found.score(X, y) > 0.9
    assert np.allclose(found.predict_proba(X).sum(1), 1)
    logits = meta(tasks.xs_s[:1], tasks.ys_s[:1], tasks.xs_q[:1], 100)[0]
    assert np.allclose(found.decision_function(tasks.xs_q[0].numpy()), logits.detach().numpy(), atol=1e-5)
    assert all(torch.equal(v, before[k]) for k, v in meta.state_dict().items())
    assert cross_val_score(clone(found), X, y, cv=3).shape == (3,)
    with pytest.raises(ValueError, match="Only binary classification"):
        FewShotClassifier(meta).fit(X[:3], ["a", "b", "c"])
    with pytest.raises(ValueError, match="one class only"):
        FewShotClassifier(meta).fit(X, ["a"] * len(X))
    wide = maml(network(8, 4, 2).float(), loss="cross_entropy")
    with pytest.raises(ValueError, match="3 classes, but the module has 2 outputs"):
        FewShotClassifier(wide).fit(X[:3], ["a", "b", "c"])


@pytest.mark.parametrize("steps", [1, 3])
def test_going_back_twice_gives_the_same_gradients(steps):
    meta = MetaSGD(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double(), lr=0.3, steps=steps)
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, 6, 3, generator=g, dtype=torch.float64)
    y = (x.sum(-1) > 0).double()
    loss = meta.meta_loss(Tasks(x, y, x.flip(1), y.flip(1)))
    trained = [p for p in meta.parameters() if p.requires_grad]
    first = torch.autograd.grad(loss, trained, retain_graph=True)
    for one, two in zip(first, torch.autograd.grad(loss, trained), strict=True):
        assert torch.equal(one, two)


# -- thin products and alignment -------------------------------------------------------------------------


@pytest.mark.parametrize("learn_lr", ["row", "tensor", "none"])
@pytest.mark.parametrize("first_order", [True, False])
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_thin_products_are_the_dense_layers(learn_lr, first_order, steps):
    settings = {"lr": 0.3, "learn_lr": learn_lr, "first_order": first_order, "steps": steps}
    meta = MetaSGD(network(), engine="low_rank", **settings)
    assert meta.engine == "low_rank"
    tasks = some_tasks()
    if learn_lr == "row":  # rates that differ
        with torch.no_grad():
            for i, rate in enumerate(meta.rates):
                rate.add_(0.1 * torch.rand(rate.shape, generator=torch.Generator().manual_seed(i)))
    check_gradients(meta, tasks, steps)
    dense = MetaSGD(network(), engine="stacked", **settings)
    dense.load_state_dict(meta.state_dict())
    found, wanted = meta.adapt(tasks.xs_s, tasks.ys_s), dense.adapt(tasks.xs_s, tasks.ys_s)
    assert list(found) == list(wanted)
    for name, w in wanted.items():
        torch.testing.assert_close(found[name], w)
    with torch.no_grad():  # what is only asked, not trained, is the same
        torch.testing.assert_close(
            meta(tasks.xs_s, tasks.ys_s, tasks.xs_q), dense(tasks.xs_s, tasks.ys_s, tasks.xs_q)
        )


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
def test_thin_products_of_other_losses_and_of_a_head_alone(loss):
    module = network(outputs=3 if loss == "cross_entropy" else 1, activation=nn.ReLU)
    meta = MetaSGD(
        module, lr=0.2, learn_lr="row", loss=loss, engine="low_rank", inner_params=("3.*", "2.0.weight")
    )
    check_gradients(meta, some_tasks(loss), 2)


def test_thin_products_refuse_what_has_none():
    with pytest.raises(ValueError, match="leaves no low rank"):
        MetaSGD(network(), engine="low_rank")
    with pytest.raises(ValueError, match="holds something else"):
        MetaSGD(network(norm=nn.LayerNorm), engine="low_rank", learn_lr="row")
    meta = MetaSGD(nn.Sequential(nn.Linear(3, 1)), engine="low_rank", learn_lr="row")
    with pytest.raises(ValueError, match=r"\[T, n, features\]"):
        meta.adapt(torch.randn(2, 4, 1, 3), torch.tensor([[0.0, 1, 0, 1]] * 2))


@pytest.mark.parametrize("first_order", [True, False])
@pytest.mark.parametrize("engine", ["stacked", "vmap"])
def test_alignment_is_the_cosine_of_gradients_taken_one_by_one(first_order, engine):
    meta = MetaSGD(network(), lr=0.5, steps=2, first_order=first_order, engine=engine)
    tasks = some_tasks()
    weights = list(meta.module.parameters())
    pull = torch.cat([g.flatten() for g in torch.autograd.grad(by_hand(meta, tasks, 2), weights)])
    wanted = []
    for t in range(len(tasks)):
        ends = {
            n: w[0].detach().requires_grad_()
            for n, w in meta.adapt(tasks.xs_s[t : t + 1], tasks.ys_s[t : t + 1]).items()
        }
        loss = one_loss("bce", functional_call(meta.module, ends, (tasks.xs_q[t],)), tasks.ys_q[t])
        own = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(ends.values()))])
        wanted.append(own @ pull / own.norm() / pull.norm())
    with torch.no_grad():
        found = meta.gradient_alignment(tasks)
    torch.testing.assert_close(found, torch.stack(wanted).detach())
    assert all(p.grad is None for p in meta.parameters())


def test_training_logs_the_alignment_and_takes_it_up_again(tmp_path):
    tasks, held = some_tasks(), some_tasks(seed=1)
    settings = {"alignment": held, "every": 2, "lr": 0.01}
    meta = MetaSGD(network(), lr=0.3)
    at_start = float(meta.gradient_alignment(held).mean())
    record = meta.fit([tasks] * 4, **settings)
    assert [step for step, _ in record.alignment] == [0, 2, 4]
    assert record.alignment[0][1] == at_start
    assert record.alignment[-1][1] == float(meta.gradient_alignment(held).mean())
    assert "alignment" in str(record)
    again = MetaSGD(network(), lr=0.3)
    again.fit([tasks] * 4, 2, checkpoint=tmp_path / "meta.pt", **settings)
    assert (
        again.fit([tasks] * 4, 4, checkpoint=tmp_path / "meta.pt", **settings).alignment == record.alignment
    )
