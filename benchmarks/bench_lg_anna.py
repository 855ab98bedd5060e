"""Instruction embeddings: mining beside the library's miner, soft labels in one pass, prefixes read once."""

from __future__ import annotations

import argparse
import contextlib
import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from _timing import alternate, report, row
from torch import Tensor

SCALE = 20.0


class GivenVectors:
    """Stands for a model whose texts are encoded already, so that only the mining is timed."""

    def __init__(self, queries: dict[str, np.ndarray], documents: dict[str, np.ndarray]) -> None:
        self.queries, self.documents = queries, documents
        self.device = torch.device("cpu")

    def encode_query(self, texts: Sequence[str], **options: Any) -> np.ndarray:
        return np.stack([self.queries[text] for text in texts])

    def encode_document(self, texts: Sequence[str], **options: Any) -> np.ndarray:
        return np.stack([self.documents[text] for text in texts])

    @staticmethod
    def similarity(a: Any, b: Any) -> Tensor:
        return torch.as_tensor(a) @ torch.as_tensor(b).T

    @staticmethod
    def similarity_pairwise(a: Any, b: Any) -> Tensor:
        return (torch.as_tensor(a) * torch.as_tensor(b)).sum(dim=1)


def mining_row(count: int, docs: int, dim: int, repeats: int) -> dict[str, Any]:
    """Texts in, data set out, at equal settings; first the two sets are compared."""
    from datasets import Dataset, disable_progress_bars
    from sentence_transformers.util import mine_hard_negatives

    from gradatim.curricula import RelativeMargin, mine_negatives

    disable_progress_bars()
    generator = torch.Generator().manual_seed(0)
    passages = F.normalize(torch.randn(docs, dim, generator=generator), dim=1)
    queries = F.normalize(passages[:count] + 0.1 * torch.randn(count, dim, generator=generator), dim=1)
    asked, corpus = [f"query {i}" for i in range(count)], [f"passage {i}" for i in range(docs)]
    model = GivenVectors(
        dict(zip(asked, queries.numpy(), strict=True)), dict(zip(corpus, passages.numpy(), strict=True))
    )
    pairs = Dataset.from_dict({"query": asked, "positive": corpus[:count]})

    def stock() -> Any:
        with contextlib.redirect_stderr(io.StringIO()):
            return mine_hard_negatives(
                pairs,
                model,  # type: ignore[arg-type]
                corpus=corpus,
                range_max=100,
                relative_margin=0.05,
                num_negatives=7,
                output_format="n-tuple",
                verbose=False,
            )

    def ours() -> Any:
        return mine_negatives(
            asked, corpus[:count], corpus, model, margin=RelativeMargin(0.95), num_negatives=7, range_max=100
        )

    theirs, mine = stock().to_pandas(), ours().to_pandas()
    negatives = [f"negative_{i}" for i in range(1, 8)]
    merged = theirs.merge(mine, on="query")
    same = sum(
        list(a) == list(b)
        for a, b in zip(
            merged[negatives].to_numpy(), merged[[f"doc_{i}" for i in range(2, 9)]].to_numpy(), strict=True
        )
    )
    print(f"mining: {same} of {len(theirs)} rows of the library's miner are the same")
    if same != len(theirs):
        raise SystemExit("the two miners differ: no timing")
    seconds = alternate({"mine_negatives": ours, "mine_hard_negatives": stock}, repeats)
    case = f"mining (Q {count}, N {docs}, d {dim})"
    return row(case, seconds, "mine_negatives", "mine_hard_negatives", "at least 1.5x")


def filter_row(count: int, docs: int, dim: int, repeats: int) -> dict[str, Any]:
    """What mining costs beside the one thing it cannot avoid: similarities and their top 101."""
    from gradatim.curricula import RelativeMargin, mine_rows

    generator = torch.Generator().manual_seed(0)
    passages = F.normalize(torch.randn(docs, dim, generator=generator), dim=1)
    queries = F.normalize(passages[:count] + 0.1 * torch.randn(count, dim, generator=generator), dim=1)
    positives = [[i] for i in range(count)]

    def bare() -> None:
        for begin in range(0, count, 1024):
            (queries[begin : begin + 1024] @ passages.T).topk(101, dim=1)

    def mined() -> None:
        mine_rows(queries, passages, positives, RelativeMargin(0.95), 7, 100)

    seconds = alternate({"mine_rows": mined, "similarities and top k": bare}, repeats)
    case = f"rows mined (Q {count}, N {docs})"
    return row(case, seconds, "mine_rows", "similarities and top k", "at least 0.6x")


def step_rows(model_name: str, batch: int, n: int, words: int, repeats: int) -> list[dict[str, Any]]:
    """A training step with hard and soft labels: one pass beside the library's two losses."""
    from sentence_transformers.sentence_transformer.losses import (
        DistillKLDivLoss,
        MultipleNegativesRankingLoss,
    )
    from sentence_transformers.util import pairwise_cos_sim

    from gradatim.losses import MultiPositiveRankingLoss, SoftLabelRankingLoss
    from gradatim.models import load_text_encoder

    model = load_text_encoder(model_name).train()
    generator = torch.Generator().manual_seed(0)
    vocabulary = ["sort", "mean", "matrix", "kernel", "filter", "random", "score", "linear", "file", "wave"]

    def text(length: int) -> str:
        return " ".join(vocabulary[i] for i in torch.randint(10, (length,), generator=generator).tolist())

    columns = [[text(8 if c == 0 else words) for _ in range(batch)] for c in range(1 + n)]
    features = [dict(model.preprocess(column)) for column in columns]
    teacher = torch.randn(batch, n, generator=generator) * 2
    labels = torch.zeros(batch, n, dtype=torch.long)
    labels[:, 0] = 1
    both = SoftLabelRankingLoss(model, scale=SCALE)
    hard = MultiPositiveRankingLoss(model, objective="infonce", scale=SCALE)
    contrastive = MultipleNegativesRankingLoss(model, scale=SCALE)
    distilled = DistillKLDivLoss(
        model, similarity_fct=pairwise_cos_sim, student_temperature=1 / SCALE, teacher_temperature=0.5
    )

    def fresh() -> list[dict[str, Any]]:
        return [dict(f) for f in features]

    def one_pass() -> None:
        model.zero_grad()
        torch.stack(list(both(fresh(), teacher).values())).sum().backward()

    def two_passes() -> None:
        model.zero_grad()
        (contrastive(fresh(), labels) + SCALE**2 * distilled(fresh(), teacher)).backward()

    def hard_alone() -> None:
        model.zero_grad()
        hard(fresh(), labels).backward()

    seconds = alternate({"soft": one_pass, "two": two_passes, "hard": hard_alone}, repeats, clock="cpu")
    for renamed, name in (
        ("SoftLabelRankingLoss", "soft"),
        ("MNRL + DistillKLDiv", "two"),
        ("hard labels alone", "hard"),
    ):
        seconds[renamed] = seconds.pop(name)
    case = f"step, hard + soft (B {batch}, n {n})"
    return [
        row(case, seconds, "SoftLabelRankingLoss", "MNRL + DistillKLDiv", "at least 1.7x"),
        row(case, seconds, "SoftLabelRankingLoss", "hard labels alone", "at least 0.97x (within 3%)"),
    ]


def prefix_row(name: str, texts: int, prefix: int, words: int, repeats: int) -> dict[str, Any]:
    """Queries under a long shared prompt, by a causal language model."""
    from gradatim.models import causal_embedder, encode_with_prefix

    model = causal_embedder(name, max_seq_length=1024)
    prompt = "Instruct: find it. " + " ".join(["The mean of an array."] * (prefix // 6)) + "\nQuery: "
    asked = [f"query number {i} about " + " ".join(["sort"] * words) for i in range(texts)]
    length = len(model.tokenizer(prompt)["input_ids"])

    def shared() -> np.ndarray:
        return encode_with_prefix(model, asked, prompt, batch_size=8, check=False)

    def plain() -> np.ndarray:
        found: np.ndarray = model.encode(asked, prompt=prompt, batch_size=8, show_progress_bar=False)
        return found

    gap = float(np.abs(shared() - plain()).max())
    print(f"prefix: largest difference of the two ways {gap:.1e}")
    if gap > 1e-4:
        raise SystemExit("the two ways differ: no timing")
    cases: dict[str, Callable[[], Any]] = {"encode_with_prefix": shared, "encode": plain}
    seconds = alternate(cases, repeats, warmup=0, clock="cpu")
    case = f"{texts} queries, prompt {length} tokens"
    return row(case, seconds, "encode_with_prefix", "encode", "at least 5x")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--causal", default="smollm2")
    parser.add_argument("--quick", action="store_true", help="small sizes, without the language model")
    parser.add_argument("--json")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    if options.quick:
        rows = [mining_row(200, 500, 32, 2), filter_row(500, 2000, 64, 2)]
        rows += step_rows(options.model, 4, 3, 12, 2)
    else:
        rows = [mining_row(2200, 3262, 384, options.repeats), filter_row(2200, 3262, 384, options.repeats)]
        rows += step_rows(options.model, 16, 4, 24, max(3, options.repeats // 2))
        rows.append(prefix_row(options.causal, 16, 360, 8, max(3, options.repeats // 3)))
    what = "mining, soft labels and shared prefixes beside the library's ways, one thread"
    report("lg_anna", what, rows, options.json)


if __name__ == "__main__":
    main()
