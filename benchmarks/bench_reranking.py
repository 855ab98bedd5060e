"""Re-ranking curricula: what they add to a training step, ConvKNRM's kernels, KDE over a collection."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _timing import alternate, report, row
from torch import Tensor, nn

WORDS = ["sort", "mean", "matrix", "kernel", "filter", "random", "score", "linear", "file", "wave"]


def texts(count: int, words: int, seed: int) -> list[str]:
    """Made-up texts of varied length."""
    g = torch.Generator().manual_seed(seed)

    def text() -> str:
        length = int(torch.randint(words // 2, words + 1, (1,), generator=g))
        return " ".join(WORDS[i] for i in torch.randint(10, (length,), generator=g).tolist())

    return [text() for _ in range(count)]


def step_row(
    model_name: str, pairs: int, words: int, repeats: int, layers: int | None = None
) -> dict[str, Any]:
    """A whole step of a cross-encoder, as its trainer takes it: the loss's forward pass and backward.

    With `layers=0` the encoder keeps only frozen word vectors and its head: tokenising and the loss are left,
    so that what one loss costs more than the other shows in milliseconds.
    """
    from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss

    from gradatim.curricula import LinearCurriculum
    from gradatim.losses import PairwiseCurriculumLoss
    from gradatim.models import load_cross_encoder

    model = load_cross_encoder(model_name, max_length=96).train()
    if layers is not None:
        model.model.base_model.encoder.layer = model.model.base_model.encoder.layer[:layers]
        model.model.base_model.embeddings.requires_grad_(False)
    queries, right, wrong = texts(pairs, 8, 0), texts(pairs, words, 1), texts(pairs, words, 2)
    ours = PairwiseCurriculumLoss(model, curriculum=LinearCurriculum(20))
    theirs = BinaryCrossEntropyLoss(model)
    difficulty = torch.rand(pairs, generator=torch.Generator().manual_seed(3))
    relevance = torch.tensor([1.0] * pairs + [0.0] * pairs)

    def step(loss: Callable[[], Tensor]) -> Callable[[], None]:
        def run() -> None:
            model.zero_grad()
            loss().backward()

        return run

    cases = {
        "PairwiseCurriculumLoss": step(lambda: ours([queries, right, wrong], difficulty)),
        "BinaryCrossEntropyLoss": step(lambda: theirs([queries * 2, right + wrong], relevance)),
    }
    seconds = alternate(cases, repeats, clock="cpu")
    if layers is not None:
        return row(f"the same, {layers} layers ({pairs} pairs)", seconds, *cases, "at most 1 ms more")
    return row(f"cross-encoder step ({pairs} pairs)", seconds, *cases, "at least 0.97x (within 3%)")


def trainer_row(model_name: str, pairs: int, words: int, steps: int, repeats: int) -> dict[str, Any]:
    """Steps of CrossEncoderTrainer with callbacks, data loader and optimizer around them."""
    import tempfile

    from datasets import Dataset
    from sentence_transformers.cross_encoder import CrossEncoderTrainer, CrossEncoderTrainingArguments
    from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss
    from transformers import PrinterCallback

    from gradatim.curricula import CurriculumCallback, LinearCurriculum
    from gradatim.losses import PairwiseCurriculumLoss
    from gradatim.models import load_cross_encoder

    model = load_cross_encoder(model_name, max_length=96)
    rows = pairs * steps
    queries, right, wrong = texts(rows, 8, 0), texts(rows, words, 1), texts(rows, words, 2)
    g = torch.Generator().manual_seed(3)
    triples = {"query": queries, "positive": right, "negative": wrong}
    ours = Dataset.from_dict({**triples, "label": torch.rand(rows, generator=g).tolist()})
    # The same pairs in the same batches: right and wrong documents side by side.
    flat = {"query": [q for q in queries for _ in range(2)]}
    flat["doc"] = [d for both in zip(right, wrong, strict=True) for d in both]
    theirs = Dataset.from_dict({**flat, "label": [1.0, 0.0] * rows})

    def train(dataset: Dataset, loss: nn.Module, batch: int, callbacks: Sequence[Any]) -> Callable[[], None]:
        def run() -> None:
            with tempfile.TemporaryDirectory() as folder:
                arguments = CrossEncoderTrainingArguments(
                    output_dir=folder, max_steps=steps, per_device_train_batch_size=batch, report_to=[],
                    use_cpu=True, disable_tqdm=True, logging_strategy="no", save_strategy="no",
                    dataloader_pin_memory=False, seed=1,
                )  # fmt: skip
                trainer = CrossEncoderTrainer(
                    model=model, args=arguments, train_dataset=dataset, loss=loss, callbacks=list(callbacks)
                )
                trainer.remove_callback(PrinterCallback)
                trainer.train()

        return run

    loss = PairwiseCurriculumLoss(model, curriculum=LinearCurriculum(20))
    cases = {
        "PairwiseCurriculumLoss": train(ours, loss, pairs, [CurriculumCallback(loss)]),
        "BinaryCrossEntropyLoss": train(theirs, BinaryCrossEntropyLoss(model), 2 * pairs, []),
    }
    seconds = alternate(cases, repeats, clock="cpu")
    return row(f"CrossEncoderTrainer, {steps} steps", seconds, *cases, "at least 0.97x (within 3%)")


def materialised(similarity: Tensor, mask: Tensor, mu: Tensor, sigma: Tensor) -> Tensor:
    """Kernel pooling as the formula is written: every kernel's copy of the similarities at once."""
    gaps = similarity.unsqueeze(-1) - mu
    each = torch.exp(-gaps.square() / (2 * sigma.square())) * mask[:, None, None, :, None]
    return each.sum(dim=-2)


def knrm_rows(docs: int, filters: int, doc_tokens: int, repeats: int) -> list[dict[str, Any]]:
    """A training step of ConvKNRM: own pooling, the materialised one, and one padded to a fixed length."""
    from gradatim.models import conv_knrm
    from gradatim.models.kernel_pooling import LEAST_SIGMA, kernel_pooling

    g = torch.Generator().manual_seed(0)
    model = conv_knrm.ConvKNRM(None, torch.randn(1_000, 32, generator=g), filters=filters)

    def features(width: int) -> dict[str, Tensor]:
        lengths = torch.randint(
            doc_tokens * 3 // 4, doc_tokens + 1, (docs,), generator=torch.Generator().manual_seed(1)
        )
        return {
            "query_ids": torch.randint(1_000, (docs // 2, 12), generator=torch.Generator().manual_seed(2)),
            "query_mask": torch.ones(docs // 2, 12, dtype=torch.bool),
            "query_of": torch.arange(docs) % (docs // 2),
            "doc_ids": torch.randint(1_000, (docs, width), generator=torch.Generator().manual_seed(3)),
            "doc_mask": torch.arange(width) < lengths[:, None],
            "doc_of": torch.arange(docs),
        }

    def plain(similarity: Tensor, mask: Tensor, mu: Tensor, sigma: Tensor) -> Tensor:
        return materialised(similarity, mask[:, 0], mu, sigma.clamp(min=LEAST_SIGMA))

    def step(pooling: Callable[..., Tensor], batch: dict[str, Tensor]) -> Callable[[], None]:
        def run() -> None:
            conv_knrm.kernel_pooling = pooling  # type: ignore[assignment]
            try:
                model.zero_grad()
                model(batch)["scores"].sum().backward()
            finally:
                conv_knrm.kernel_pooling = kernel_pooling

        return run

    short, strict = features(doc_tokens), features(2_000)
    cases = {
        "ConvKNRM": step(kernel_pooling, short),
        "materialised kernels": step(plain, short),
    }
    seconds = alternate(cases, repeats, clock="cpu")
    shape = f"{docs} docs of {doc_tokens}"
    rows = [row(f"ConvKNRM step ({shape})", seconds, *cases, "at least 1.0x")]
    padded = {"ConvKNRM": cases["ConvKNRM"], "padded to 2,000": step(kernel_pooling, strict)}
    seconds = alternate(padded, max(2, repeats // 5), clock="cpu")
    rows.append(row(f"ConvKNRM step ({shape}), padding", seconds, *padded, "at least 10x"))
    return rows


def peak_megabytes(lean: bool, docs: int, doc_tokens: int) -> None:
    """Prints by how much pooling raises this process's peak memory, forward and backward (Linux)."""
    from gradatim.models.kernel_pooling import kernel_pooling

    torch.set_num_threads(1)
    similarity = torch.rand(docs, 9, 20, doc_tokens).requires_grad_()
    mask = torch.ones(docs, doc_tokens, dtype=torch.bool)
    mu, sigma = torch.linspace(-0.9, 1.0, 11), torch.full((11,), 0.1)
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    if lean:
        kernel_pooling(similarity, mask[:, None].expand(-1, 9, -1), mu, sigma).sum().backward()
    else:
        materialised(similarity, mask, mu, sigma).sum().backward()
    print(memory("VmHWM") - before)


def memory(field: str) -> float:
    """A line of this process's memory status in megabytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024


def memory_row(docs: int, doc_tokens: int) -> dict[str, Any]:
    """Peak memory of kernel pooling, each way in its own process; megabytes stand for times."""
    peaks = {}
    for lean in (True, False):
        code = f"from bench_reranking import peak_megabytes; peak_megabytes({lean}, {docs}, {doc_tokens})"
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=sys.path[0]
        )
        peaks[lean] = float(done.stdout.strip().splitlines()[-1])
    return {
        "case": f"peak memory of pooling, MB ({docs} docs of {doc_tokens})",
        "ours": "kernel_pooling",
        "ours_ms": peaks[True],
        "peer": "materialised kernels",
        "peer_ms": peaks[False],
        "ratio": peaks[False] / peaks[True],
        "target": "at least 5x less",
        "unit": "MB",
    }


def kde_rows(queries: int, depth: int, repeats: int) -> list[dict[str, Any]]:
    """KDE heights of whole runs, and of the two documents of a pair alone, beside SciPy query by query."""
    from scipy.stats import gaussian_kde

    from gradatim.curricula import KDEScore

    scores = np.random.default_rng(0).gamma(2.0, 3.0, (queries, depth))
    ours = torch.from_numpy(scores)
    measure = KDEScore()

    def loop() -> None:
        for one in scores:
            density = gaussian_kde(one)
            for score in one:
                density.integrate_box_1d(-np.inf, score)

    cases = {
        "KDEScore": lambda: measure(ours),
        "SciPy, document by document": loop,
        "KDEScore.at, a pair": lambda: measure.at(ours, ours[:, :2]),
    }
    seconds = alternate(cases, repeats, clock="cpu")
    shape = f"({queries} queries x {depth})"
    return [
        row(f"KDE of whole runs {shape}", seconds, "KDEScore", "SciPy, document by document", "at least 2x"),
        row(f"KDE of one pair a query {shape}", seconds, "KDEScore.at, a pair", "KDEScore", "at least 20x"),
    ]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--skip-encoder", action="store_true", help="without the cross-encoder")
    parser.add_argument("--json")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    rows = []
    if not options.skip_encoder:
        # Short texts: the loss's own work is the same, and shows more beside a shorter pass of the model.
        rows.append(step_row(options.model, 8, 30, max(3, options.repeats * 2 // 3)))
        rows.append(step_row(options.model, 8, 30, 10 * options.repeats, layers=0))
        rows.append(trainer_row(options.model, 8, 30, 4, max(2, options.repeats // 3)))
    rows += knrm_rows(32, 32, 48, options.repeats)
    rows.append(memory_row(32, 200))
    rows += kde_rows(8, 1_000, max(3, options.repeats // 3))
    report("reranking", "re-ranking curricula and ConvKNRM, one thread", rows, options.json)


if __name__ == "__main__":
    main()
