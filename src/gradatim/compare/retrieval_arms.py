"""The arms of `compare retrieval` by name, what they cost, and the lines that train an objective."""

from __future__ import annotations

from collections.abc import Sequence

from gradatim.bench.study import Arm, Scale
from gradatim.compare.retrieval_source import Collection, Split
from gradatim.losses.multi_positive import OBJECTIVES

LABELS = {
    "infonce": "InfoNCE (first positive)",
    "joint-lh": "JointLH",
    "sum-marg-lh": "SumMargLH",
    "lse-pair": "LSEPair",
    "rand1-lh": "Rand1LH",
    "expected-rand1-lh": "expected Rand1LH",
}
SYSTEMS = {
    "binary": "binary codes of paragraph vectors",
    "rerank": "BM25 re-ranked by encoder and BM25",
    "rerank-curriculum": "BM25 re-ranked, easy pairs first",
    "seal": "SEAL, keys by a small generator",
}
"""Arms that are no encoder: they have no scale to choose, and files of their own."""

ARMS: dict[str, Arm] = {
    **{name: Arm(name, {"objective": name}, label=LABELS[name]) for name in OBJECTIVES},
    "margin-mined": Arm(
        "margin-mined", {"objective": "infonce", "mined": True}, label="InfoNCE, negatives behind a margin"
    ),
    "soft-labels": Arm(
        "soft-labels",
        {"objective": "infonce", "mined": True, "soft": True},
        label="the same and soft labels",
    ),
    **{name: Arm(name, label=label) for name, label in SYSTEMS.items()},
    "untrained": Arm("untrained", label="the untrained encoder", role="control"),
    "bm25": Arm("bm25", label="BM25", role="control"),
}

DEFAULT = (*OBJECTIVES, "margin-mined", "soft-labels")
"""What runs when no arm is named: the cheap ones. Systems take minutes per seed and are asked for by name."""


def cost(names: Sequence[str], seeds: int, scale: Scale, collection: Collection, split: Split) -> float:
    """Core-seconds that these arms are likely to take."""
    passages, train, test = len(collection.task.corpus), len(split.train), len(split.test)
    step = 0.0005 if scale["train"] == "head" else 0.3
    each = {
        "untrained": 1.0,
        "bm25": 1.0 + passages * 1e-4,
        "binary": 10.0 + passages * 0.01,
        "seal": 120.0 + test * 0.5 + passages * 0.002,
        "rerank": 10.0 + test * 0.01 + len(split.dev) * 0.2,
        "rerank-curriculum": 10.0 + test * 0.01 + len(split.dev) * 0.2,
    }
    objective = train * scale["epochs"] * len(scale["scales"]) * step
    return seeds * sum(each.get(name, objective) for name in names) + passages * 0.03


def loss_code(arm: str, model: str, value: float, how: str) -> str:
    """The lines that train an objective arm at its scale; `how` is said at the end."""
    settings = ARMS[arm].settings
    opened = [
        "from gradatim.models.text_encoder import load_text_encoder",
        "",
        f"model = load_text_encoder({model!r})",
    ]
    if not settings.get("mined"):
        made = f"loss = MultiPositiveRankingLoss(model, objective={arm!r}, scale={value!r})"
        return "\n".join(["from gradatim.losses import MultiPositiveRankingLoss", *opened, made, how])
    wanted = "SoftLabelRankingLoss" if settings.get("soft") else "MultiPositiveRankingLoss"
    mined = "# data = mine_negatives(queries, positives, corpus, model, margin=RelativeMargin(0.95))"
    lines = [
        "from gradatim.curricula import RelativeMargin, mine_negatives",
        f"from gradatim.losses import {wanted}",
        *opened,
        mined,
    ]
    if settings.get("soft"):
        lines[0] = "from gradatim.curricula import BM25, RelativeMargin, TeacherEnsemble, mine_negatives"
        lines += [
            "# data = TeacherEnsemble([BM25(), model]).fit(corpus).annotate(data, keep_labels=True)",
            f'loss = SoftLabelRankingLoss(model, scale={value!r}, objective="infonce", hard_targets="mask")',
        ]
    else:
        lines.append(f'loss = MultiPositiveRankingLoss(model, objective="infonce", scale={value!r})')
    return "\n".join([*lines, how])
