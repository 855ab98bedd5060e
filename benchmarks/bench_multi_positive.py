"""Multi-positive losses: the loss alone, a whole training step, and what cached gradients save."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from _timing import alternate, report, row
from torch import Tensor

SCALE = 20.0


def embeddings(batch: int, n: int, dim: int) -> tuple[list[Tensor], Tensor]:
    """Random queries and passage columns as leaves, half of the passages positive."""
    generator = torch.Generator().manual_seed(0)
    columns = [torch.randn(batch, dim, generator=generator, requires_grad=True) for _ in range(1 + n)]
    labels = torch.zeros(batch, n, dtype=torch.long)
    labels[:, : n // 2] = 1
    return columns, labels


def two_masked_copies(columns: Sequence[Tensor], labels: Tensor) -> Tensor:
    """LSEPair as it is usually written: the whole matrix copied twice under masks, two logsumexps."""
    batch, n = labels.shape
    docs = torch.stack(list(columns[1:]), dim=1).flatten(0, 1)
    scores = SCALE * (F.normalize(columns[0], dim=1) @ F.normalize(docs, dim=1).T)
    own = torch.arange(batch * n).reshape(batch, n)
    positive = torch.zeros(batch, batch * n, dtype=torch.bool).scatter_(1, own, labels == 1)
    negatives = torch.logsumexp(scores.masked_fill(positive, -torch.inf), dim=1)
    positives = torch.logsumexp((-scores).masked_fill(~positive, -torch.inf), dim=1)
    return F.softplus(negatives + positives).mean()


def trained(columns: Sequence[Tensor], loss: Callable[[], Tensor]) -> Callable[[], None]:
    """Forward and backward of a loss on leaves."""

    def run() -> None:
        for column in columns:
            column.grad = None
        loss().backward()

    return run


def loss_rows(batch: int, n: int, dim: int, repeats: int) -> list[dict[str, Any]]:
    """The loss alone, forward and backward, beside three other ways to write it."""
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    from gradatim.losses import MultiPositiveRankingLoss

    columns, labels = embeddings(batch, n, dim)
    shape = f"(B {batch}, n {n}, d {dim})"
    pair = MultiPositiveRankingLoss(None, objective="lse-pair", scale=SCALE)
    single = MultiPositiveRankingLoss(None, objective="infonce", scale=SCALE)
    joint = MultiPositiveRankingLoss(None, objective="joint-lh", scale=SCALE)
    library = MultipleNegativesRankingLoss(None, scale=SCALE)
    first = torch.zeros_like(labels)
    first[:, 0] = 1
    cases = {
        "lse-pair": trained(columns, lambda: pair.compute_loss_from_embeddings(columns, labels)),
        "two masked copies": trained(columns, lambda: two_masked_copies(columns, labels)),
        "infonce": trained(columns, lambda: single.compute_loss_from_embeddings(columns, first)),
        "MultipleNegativesRankingLoss": trained(
            columns, lambda: library.compute_loss_from_embeddings(columns, first)
        ),
        "joint-lh": trained(columns, lambda: joint.compute_loss_from_embeddings(columns, labels)),
    }
    pairs = [
        ("lse-pair", "two masked copies", "at least 1.3x"),
        ("infonce", "MultipleNegativesRankingLoss", "at least 1.0x"),
    ]
    try:
        from pytorch_metric_learning.losses import SupConLoss
    except ModuleNotFoundError:
        print("pytorch-metric-learning is not installed: its row is left out (pip install 'gradatim[bench]')")
    else:
        supcon = SupConLoss(temperature=1 / SCALE)
        # A class per query, shared by its positives; a class of its own for every negative.
        mine = torch.arange(batch)
        theirs = torch.where(labels == 1, mine[:, None], batch + torch.arange(batch * n).reshape(batch, n))

        def supervised() -> Tensor:
            docs = torch.stack(columns[1:], dim=1).flatten(0, 1)
            value: Tensor = supcon(columns[0], mine, ref_emb=docs, ref_labels=theirs.flatten())
            return value

        cases["SupConLoss"] = trained(columns, supervised)
        pairs.append(("joint-lh", "SupConLoss", "at least 1.0x"))
    seconds = alternate(cases, repeats)
    return [row(f"loss, forward + backward {shape}", seconds, ours, peer, t) for ours, peer, t in pairs]


def texts(batch: int, n: int, words: int) -> list[list[str]]:
    """Columns of made-up texts of varied length."""
    generator = torch.Generator().manual_seed(1)
    vocabulary = ["sort", "mean", "matrix", "kernel", "filter", "random", "score", "linear", "file", "wave"]

    def text(most: int) -> str:
        length = int(torch.randint(most // 2, most + 1, (1,), generator=generator))
        return " ".join(vocabulary[i] for i in torch.randint(10, (length,), generator=generator).tolist())

    return [[text(8 if column == 0 else words) for _ in range(batch)] for column in range(1 + n)]


def step_row(model_name: str, batch: int, n: int, words: int, repeats: int) -> dict[str, Any]:
    """A whole training step of the encoder: forward, loss, backward."""
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    from gradatim.losses import MultiPositiveRankingLoss
    from gradatim.models import load_text_encoder

    model = load_text_encoder(model_name).train()
    features = [dict(model.preprocess(column)) for column in texts(batch, n, words)]
    labels = torch.zeros(batch, n, dtype=torch.long)
    labels[:, 0] = 1

    def step(loss: Any) -> Callable[[], None]:
        def run() -> None:
            model.zero_grad()
            loss([dict(f) for f in features], labels).backward()

        return run

    cases = {
        "MultiPositiveRankingLoss": step(MultiPositiveRankingLoss(model)),
        "MultipleNegativesRankingLoss": step(MultipleNegativesRankingLoss(model)),
    }
    seconds = alternate(cases, repeats, clock="cpu")
    return row(f"encoder step (B {batch}, n {n})", seconds, *cases, "at least 0.98x (within 2%)")


def peak_megabytes(model_name: str, cached: bool, batch: int, n: int, words: int) -> None:
    """Prints by how much one training step raises this process's peak memory (Linux)."""
    from gradatim.losses import CachedMultiPositiveRankingLoss, MultiPositiveRankingLoss
    from gradatim.models import load_text_encoder

    torch.set_num_threads(1)
    model = load_text_encoder(model_name).train()
    features = [dict(model.preprocess(column)) for column in texts(batch, n, words)]
    labels = torch.zeros(batch, n, dtype=torch.long)
    labels[:, 0] = 1
    # Gradients and allocator pools exist either way; make them before the count begins.
    small = [{k: v[:2] if torch.is_tensor(v) else v for k, v in f.items()} for f in features]
    MultiPositiveRankingLoss(model)(small, labels[:2]).backward()
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    loss = (
        CachedMultiPositiveRankingLoss(model, mini_batch_size=32)
        if cached
        else MultiPositiveRankingLoss(model)
    )
    loss(features, labels).backward()
    print(memory("VmHWM") - before)


def memory(field: str) -> float:
    """A line of this process's memory status in megabytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024


def memory_row(model_name: str, batch: int, n: int, words: int) -> dict[str, Any]:
    """Peak memory of one step, plain and cached, each in its own process; megabytes stand for times."""
    peaks = {}
    for cached in (True, False):
        options = f"{model_name!r}, {cached}, {batch}, {n}, {words}"
        code = f"from bench_multi_positive import peak_megabytes; peak_megabytes({options})"
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=sys.path[0]
        )
        peaks[cached] = float(done.stdout.strip().splitlines()[-1])
    return {
        "case": f"peak memory of a step, MB (B {batch}, n {n})",
        "ours": "CachedMultiPositiveRankingLoss",
        "ours_ms": peaks[True],
        "peer": "uncached",
        "peer_ms": peaks[False],
        "ratio": peaks[False] / peaks[True],
        "target": "at least 2x less",
        "unit": "MB",
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--skip-encoder", action="store_true", help="the loss alone")
    parser.add_argument("--json")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    rows = loss_rows(512, 8, 384, options.repeats)
    if not options.skip_encoder:
        rows.append(step_row(options.model, 16, 4, 24, max(3, options.repeats // 3)))
        rows.append(memory_row(options.model, 512, 2, 10))
    what = "multi-positive losses beside other ways to write them, one thread"
    report("multi_positive", what, rows, options.json)


if __name__ == "__main__":
    main()
