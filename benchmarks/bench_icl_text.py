"""Prompting and training a language model in several orders, beside a straightforward transformers loop.

The loop encodes every prompt whole and alone, with the logits of all positions; it trains a deep copy of the
model per order, one example a step, and asks it one question at a time.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from _timing import alternate, report, row

from gradatim.inference import GradientPredictor, InContextPredictor, descend_orders, orders, scope_parameters
from gradatim.models import CausalLMUnavailableError, load_causal_lm
from gradatim.tasks import statements

LABELS = "4 demonstrations, 12 questions"


def prompt_loop(model: Any, tokenizer: Any, task: Any, shots: Any, drawn: Sequence[Sequence[int]]) -> Any:
    """Distributions [orders, questions, vocabulary], prompt by prompt."""
    found = []
    for order in drawn:
        examples = [(shots.texts[i], task.words[shots.labels[i]]) for i in order]
        rows = []
        for text in shots.test_texts:
            ids = tokenizer(task.template.prompt(examples, text), return_tensors="pt").input_ids
            with torch.no_grad():
                rows.append(model(ids).logits[0, -1].softmax(-1))
        found.append(torch.stack(rows))
    return torch.stack(found)


def prompt_ours(model: Any, tokenizer: Any, task: Any, shots: Any, drawn: Sequence[Sequence[int]]) -> Any:
    """The same with the demonstrations encoded once per order."""
    icl = InContextPredictor(model, tokenizer, task.template, task.words)
    answers = [icl.fit(shots.texts, shots.labels, o).next_token_proba(shots.test_texts) for o in drawn]
    return torch.stack(answers)


def train_loop(
    model: Any, tokenizer: Any, task: Any, shots: Any, drawn: Sequence[Sequence[int]], scope: str, lr: float,
    epochs: int,
) -> Any:  # fmt: skip
    """A copy of the model per order, trained and asked example by example."""
    found = []
    for order in drawn:
        twin = copy.deepcopy(model)
        for p in twin.parameters():
            p.requires_grad_(False)
        wanted = list(scope_parameters(twin, scope).values())
        for p in wanted:
            p.requires_grad_(True)
        optimizer = torch.optim.SGD(wanted, lr=lr)
        for _ in range(epochs):
            for i in order:
                ids = tokenizer(task.template.question(shots.texts[i]), return_tensors="pt").input_ids
                answer = tokenizer(task.words[shots.labels[i]], return_tensors="pt").input_ids[0]
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(twin(ids).logits[:, -1], answer).backward()
                optimizer.step()
        with torch.no_grad():
            rows = [
                twin(tokenizer(task.template.question(t), return_tensors="pt").input_ids)
                .logits[0, -1]
                .softmax(-1)
                for t in shots.test_texts
            ]
        found.append(torch.stack(rows))
    return torch.stack(found)


def train_ours(
    model: Any, tokenizer: Any, task: Any, shots: Any, drawn: Sequence[Sequence[int]], scope: str, lr: float,
    epochs: int,
) -> Any:  # fmt: skip
    """All orders as one stacked run."""
    gd = GradientPredictor(
        model, tokenizer, task.template, task.words, scope=scope, lr=lr, epochs=epochs, stop=None
    )
    last: list[torch.Tensor] = []

    def ask(state: Any, question: Callable[[Any], torch.Tensor]) -> None:
        if state.epoch == epochs:
            last.append(question(shots.test_texts))

    descend_orders(gd, shots.texts, shots.labels, drawn, on_epoch=ask)
    return last[0]


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--orders", type=int, default=6)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    try:
        model, tokenizer = load_causal_lm(args.model)
    except CausalLMUnavailableError as error:
        parser.exit(0, f"nothing measured: {error}\n")
    task = statements("sentiment")
    shots = task.draw(4, 12, seed=0)
    drawn = orders(4, args.orders)
    parts = (model, tokenizer, task, shots, drawn)
    rows = []
    pairs: list[tuple[str, Callable[[], Any], Callable[[], Any], str]] = [
        (
            f"prompting, {len(drawn)} orders",
            lambda: prompt_ours(*parts),
            lambda: prompt_loop(*parts),
            "at least 4x",
        )
    ]
    for scope, lr in (("all", 2e-4), ("value:22", 0.3)):
        pairs.append(
            (
                f"SGD on {scope}, {len(drawn)} orders, {args.epochs} epochs",
                lambda scope=scope, lr=lr: train_ours(*parts, scope, lr, args.epochs),  # type: ignore[misc]
                lambda scope=scope, lr=lr: train_loop(*parts, scope, lr, args.epochs),  # type: ignore[misc]
                "above 1x",
            )
        )
    for case, ours, peer, target in pairs:
        difference = (ours() - peer()).abs().max()
        if difference > 0.02:
            raise SystemExit(f"{case}: answers differ by {difference:.3g}")
        # Processor time: a busy neighbour disturbs it less, and every case is one thread's arithmetic.
        clock = "cpu" if args.threads == 1 else "wall"
        seconds = alternate({"gradatim": ours, "loop": peer}, repeats=args.repeats, warmup=0, clock=clock)
        rows.append(row(case, seconds, "gradatim", "loop", target))
    report("icl_text", f"SmolLM2-135M, {LABELS}, {args.threads} thread(s)", rows, args.json)


if __name__ == "__main__":
    main()
