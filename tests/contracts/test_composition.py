"""The parts of the house together: models, losses, curricula, optimizers, schedules, samplers, pair by pair.

One task that they all speak: from a context of tokens and a query, score candidates of which several are
right. What each combination must do: learn, follow the schedule's own figures, record a norm for each step,
and continue bit for bit after an interruption.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn
from torch.utils.data import (
    DataLoader,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from gradatim.bench.fit import fit
from gradatim.curricula import LinearCurriculum
from gradatim.losses import OBJECTIVES, multi_positive_loss, pairwise_loss, pointwise_loss
from gradatim.models import BoostedHead, SingleQueryAttention
from gradatim.optim import (
    M3,
    DeepMomentumSGD,
    DeltaMomentumSGD,
    GradNormRecorder,
    LinearDecayLR,
    NormalizedSGD,
    RefinedLR,
    TableLR,
    matrix_groups,
    refine_schedule,
)

N, TOKENS, CANDIDATES, DIM, STEPS, BATCH = 48, 5, 6, 4, 12, 8


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_data() -> TensorDataset:
    g = seeded(0)
    x, z = torch.randn(N, TOKENS, DIM, generator=g), torch.randn(N, DIM, generator=g)
    candidates = torch.randn(N, CANDIDATES, DIM, generator=g)
    truth = torch.einsum("ncd,nd->nc", candidates, z @ torch.randn(DIM, DIM, generator=g))
    positive = truth >= truth.topk(2).values[:, 1:]  # two right candidates each
    return TensorDataset(x, z, candidates, positive, torch.rand(N, generator=g))  # the last: how easy


DATA = make_data()


class Bilinear(nn.Module):
    """score = z^T W c"""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.3 * torch.randn(DIM, DIM, generator=seeded(1)))

    def forward(self, x, z, candidates):
        return torch.einsum("nd,de,nce->nc", z, self.weight, candidates)


class Attentive(nn.Module):
    """Scores candidates by a token that the query attends to, and by the query itself."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = SingleQueryAttention(DIM, parameterization="kq", generator=seeded(2))
        self.bilinear = Bilinear()

    def forward(self, x, z, candidates):
        token, _ = self.attention(x, z)
        return self.bilinear(x, z + token, candidates)


class Boosted(nn.Module):
    """A boosted head, grown beforehand and fixed, over features that are trained through it."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Linear(2 * DIM, 6)
        with torch.no_grad():
            self.features.weight.copy_(0.5 * torch.randn(6, 2 * DIM, generator=seeded(3)))
            self.features.bias.zero_()
        self.head = BoostedHead(6, 1, units_per_step=2, loss="binary_cross_entropy", subsample=1.0)
        _, z, candidates, positive, _ = DATA.tensors
        with torch.no_grad():
            features = self.encode(z, candidates).flatten(0, 1)
        self.head.fit(features, positive.flatten().float(), 4, generator=seeded(4))
        self.scale = nn.Parameter(torch.ones(()))

    def encode(self, z, candidates):
        return self.features(
            torch.cat([z.unsqueeze(1).expand_as(candidates) * candidates, candidates], -1)
        ).tanh()

    def forward(self, x, z, candidates):
        return self.scale * self.head(self.encode(z, candidates)).squeeze(-1)


class Loss:
    """A loss of the house, weighted by a curriculum; its draws and its position belong into a checkpoint."""

    def __init__(self, name: str, curriculum: LinearCurriculum | None = None) -> None:
        self.name, self.curriculum, self.generator = name, curriculum, seeded(5)
        self.steps = 0

    def __call__(self, model, batch):
        *inputs, positive, easy = batch
        rows = self.rows(model(*inputs), positive)
        if self.curriculum is None:
            return rows.mean()
        samples, self.steps = self.steps * BATCH, self.steps + 1
        position = self.curriculum.position(samples, self.steps - 1, samples / N)
        return (rows * self.curriculum.weight(easy, position)).mean()

    def rows(self, scores, positive):
        if self.name == "cross-entropy":
            return nn.functional.cross_entropy(scores, positive.float().argmax(1), reduction="none")
        if self.name == "pairwise":  # one of the two right candidates against all wrong ones
            order = positive.int().argsort(dim=1, descending=True, stable=True)
            return pairwise_loss(scores.gather(1, order)[:, [0, 2, 3, 4, 5]], reduction="none")
        if self.name == "pointwise":
            each = pointwise_loss(
                scores.flatten(), positive.float().flatten(), loss="cross_entropy_logits", reduction="none"
            )
            return each.reshape(scores.shape).mean(1)
        generator = self.generator if self.name == "rand1-lh" else None
        return multi_positive_loss(
            scores, positive, objective=self.name, generator=generator, reduction="none"
        )

    def state_dict(self):
        return {"generator": self.generator.get_state(), "steps": self.steps}

    def load_state_dict(self, state):
        self.generator.set_state(state["generator"])
        self.steps = state["steps"]


FACTORS = [1.0, 0.9, 0.9, 0.8, 0.7, 0.6, 0.5, 0.5, 0.4, 0.3, 0.2, 0.1]
NORMS = [2.0, 1.6, 1.3, 1.1, 1.0, 0.9, 0.9, 1.0, 1.0, 1.0, 1.1, 1.1]

MODELS = {"bilinear": Bilinear, "attention": Attentive, "boosted head": Boosted}
LOSSES = (*OBJECTIVES, "cross-entropy", "pairwise", "pointwise")
CURRICULA = {
    "unweighted": None,
    "easy first": LinearCurriculum(3, iteration_size=2 * BATCH),
    "hard first, mean 1": LinearCurriculum(2, "epoch", anti=True, normalize=True),
}
OPTIMIZERS = {
    "sgd": lambda m: torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.5),
    "adamw": lambda m: torch.optim.AdamW(m.parameters(), lr=0.02),
    "normalized sgd": lambda m: NormalizedSGD(m.parameters(), lr=0.03),
    "delta momentum": lambda m: DeltaMomentumSGD(m.parameters(), lr=0.05, momentum=0.5),
    "deep momentum": lambda m: DeepMomentumSGD(m.parameters(), lr=0.02, hidden=8),
    "m3": lambda m: M3(matrix_groups(m), lr=0.02, slow_period=3),
}
SCHEDULES = {
    "linear": (lambda o: LinearDecayLR(o, STEPS), [1 - t / (STEPS - 1) for t in range(STEPS)]),
    "table": (lambda o: TableLR(o, FACTORS), FACTORS),
    "refined": (lambda o: RefinedLR(o, NORMS), list(refine_schedule(NORMS).factors)),
}
SAMPLERS = {
    "in order": lambda: SequentialSampler(DATA),
    "shuffled": lambda: RandomSampler(DATA, generator=seeded(6)),
    "weighted": lambda: WeightedRandomSampler(torch.arange(1.0, N + 1), N, generator=seeded(7)),
}
# Every pair of parts meets, in 54 of the 4374 combinations.
CASES = [
    (
        model,
        loss,
        list(OPTIMIZERS)[(m + k + 3 * j) % 6],
        list(SCHEDULES)[(2 * m + k) % 3],
        list(SAMPLERS)[(m + k // 3) % 3],
        list(CURRICULA)[(m + 2 * (k // 3)) % 3],
    )
    for j in range(2)
    for m, model in enumerate(MODELS)
    for k, loss in enumerate(LOSSES)
]


def run(case, steps=STEPS, **options):
    model_name, loss_name, optimizer_name, schedule_name, sampler_name, curriculum = case
    model = MODELS[model_name]()
    optimizer = OPTIMIZERS[optimizer_name](model)
    scheduler = SCHEDULES[schedule_name][0](optimizer)
    loader = DataLoader(DATA, BATCH, sampler=SAMPLERS[sampler_name]())
    loss_fn = Loss(loss_name, CURRICULA[curriculum])
    with GradNormRecorder(optimizer) as recorder:
        result = fit(model, optimizer, loader, loss_fn, scheduler=scheduler, steps=steps, clip=1.0,
                     stateful={"recorder": recorder, "loss": loss_fn}, **options)  # fmt: skip
    return result, model, recorder


def whole_loss(model, loss_name) -> float:
    """Over all the data; the drawn positive is replaced by its expectation."""
    name = "expected-rand1-lh" if loss_name == "rand1-lh" else loss_name
    with torch.no_grad():
        return float(Loss(name)(model, DATA.tensors))


def test_every_pair_of_parts_meets():
    for a, b in itertools.combinations(range(6), 2):
        options = [{case[i] for case in CASES} for i in (a, b)]
        assert {(case[a], case[b]) for case in CASES} == set(itertools.product(*options))


@pytest.mark.parametrize("case", CASES, ids=" + ".join)
def test_parts_compose(case, tmp_path):
    model_name, loss_name, optimizer_name, schedule_name, *_ = case
    before = MODELS[model_name]()
    result, model, recorder = run(case)

    assert whole_loss(model, loss_name) < whole_loss(before, loss_name)
    base = OPTIMIZERS[optimizer_name](nn.Linear(1, 1)).param_groups[0]["lr"]
    assert [s.rate for s in result.history] == pytest.approx([base * f for f in SCHEDULES[schedule_name][1]])
    seen = torch.tensor([s.norm for s in result.history]).clamp(max=1.0)
    torch.testing.assert_close(recorder.norms(), seen, rtol=1e-4, atol=1e-6)

    run(case, steps=8, checkpoint=tmp_path)  # in the middle of the second epoch
    resumed, other, record = run(case, checkpoint=tmp_path)
    assert resumed.resumed_from == 8
    assert resumed == result
    assert torch.equal(record.norms(), recorder.norms())
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
