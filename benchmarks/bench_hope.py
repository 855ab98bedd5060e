"""Self-modifying memories and the delta rule: blocks of tokens at once beside one token after the other.

    python benchmarks/bench_hope.py                 # titans-pytorch is used where it can be imported

Every case is one forward and backward pass in float32. "definition" is the rule as it is printed: five
matrices per head, token by token; "steps" is our token loop, in which the five share one matrix. Before it
is timed, every pair is checked to give the same outputs and gradients. `NeuralMemory` of titans-pytorch
(one memory, with projected keys, values and rates, gradients at the start of a chunk) is another rule of the
same family: same width, heads, chunk and memory network, nothing to be equal to. It is timed against as many
memories of ours: one with ours projecting keys, values and rates too, five (Hope's) with five of its layers.
Ours also writes and forgets at every token, and finds its own targets.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from _timing import alternate, report, row
from torch import Tensor, nn

from gradatim.models import DeltaRule, HopeConfig, HopeForCausalLM, SelfModifyingMemory
from gradatim.models.self_modifying_linear import stacked_steps
from gradatim.models.self_modifying_memory import split
from gradatim.models.self_reference import unit


def passes(model: nn.Module, x: Tensor, read: Callable[[Tensor], Tensor]) -> Callable[[], list[Tensor]]:
    """One forward and backward pass; outputs and gradients."""

    def run() -> list[Tensor]:
        model.zero_grad()
        given = x.clone().requires_grad_()
        y = read(given)
        y.square().sum().backward()
        return [y.detach(), given.grad, *(p.grad for p in model.parameters() if p.grad is not None)]

    return run


def with_method(model: SelfModifyingMemory, method: str) -> Callable[[Tensor], Tensor]:
    """The memory by one of its two ways of computing."""

    def read(x: Tensor) -> Tensor:
        model.method = method
        return model(x)[0]

    return read


def definition(model: SelfModifyingMemory) -> Callable[[Tensor], Tensor]:
    """The layer around `stacked_steps`."""

    def read(x: Tensor) -> Tensor:
        queries = unit(split(model.query(x), model.num_heads))
        found, _ = stacked_steps(
            split(x, model.num_heads), queries, model.initial["matrices"], model.rate_bias, model.rule
        )
        found = found * (found.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * model.norm
        return model.out(found.transpose(1, 2).flatten(2))

    return read


def largest_difference(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """Over outputs and gradients, relative to the largest entry of each."""
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(one, other, strict=True))


def generated(model: HopeForCausalLM, ids: Tensor, new: int, use_cache: bool) -> Tensor:
    """Greedy continuation."""
    return model.generate(ids, max_new_tokens=new, min_new_tokens=new, do_sample=False, use_cache=use_cache)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--heads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--json")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    x = torch.randn(args.batch, args.length, args.width)
    size = f"T={args.length}, d={args.width // args.heads}"
    rows: list[dict[str, Any]] = []

    def compare(case: str, cases: dict[str, Callable[[], Any]], target: str, exact: float | None) -> None:
        ours, peer = cases
        difference = ""
        if exact is not None:
            found = largest_difference(cases[ours](), cases[peer]())
            assert found < exact, f"{case}: {ours} and {peer} differ by {found:.1e}"
            difference = f", equal to {found:.0e}"
        seconds = alternate(cases, args.repeats, clock=args.clock)
        rows.append(row(case, seconds, ours, peer, target + difference))

    def memory(**settings: Any) -> SelfModifyingMemory:
        made = SelfModifyingMemory(args.width, args.heads, conv_size=0, **settings)
        made.reset_parameters(torch.Generator().manual_seed(0))
        return made

    def blocks_and_steps(model: SelfModifyingMemory) -> dict[str, Callable[[], Any]]:
        ways = {"blocks": "chunked", "steps": "steps"}
        return {name: passes(model, x, with_method(model, way)) for name, way in ways.items()}

    exact = memory()
    blocks = passes(exact, x, with_method(exact, "chunked"))
    printed = {"blocks": blocks, "definition": passes(exact, x, definition(exact))}
    compare(f"self-modifying, every token, {size}", printed, ">= 5x", 1e-4)
    compare(f"self-modifying, every token, {size}", blocks_and_steps(exact), "-", 1e-4)
    for chunk in (16, 64):
        case = f"self-modifying, chunks of {chunk}, {size}"
        compare(case, blocks_and_steps(memory(chunk_size=(chunk, chunk))), ">= 5x", 1e-3)
    compare(
        f"self-modifying MLPs, chunks of 64, {size}",
        blocks_and_steps(memory(memory="mlp", chunk_size=(64, 64))),
        ">= 5x",
        1e-3,
    )
    rule, single = (DeltaRule(args.width, args.heads, conv_size=0, chunk=c) for c in (64, 1))
    single.load_state_dict(rule.state_dict())
    runs = {
        "blocks": passes(rule, x, lambda t: rule(t)[0]),
        "steps": passes(single, x, lambda t: single(t)[0]),
    }
    compare(f"delta rule, {size}", runs, ">= 5x", 1e-4)

    if find_spec("titans_pytorch"):
        from titans_pytorch import MemoryMLP, NeuralMemory

        head = args.width // args.heads
        for chunk in (16, 64):
            for kind, depth in (("linear", 1), ("mlp", 2)):
                network = MemoryMLP(head, depth=depth, expansion_factor=2.0)
                # With batch_size its gradients are taken where each chunk begins, as ours are, and not all at
                # the initial weights.
                options = {"dim_head": head, "heads": args.heads, "momentum": False, "batch_size": chunk}
                projected = {"inner_keys": False, "inner_values": False, "inner_rates": False}
                for count, switches in ((1, projected), (5, {})):
                    theirs = nn.ModuleList(
                        NeuralMemory(args.width, chunk_size=chunk, model=deepcopy(network), **options)
                        for _ in range(count)
                    )
                    ours = memory(memory=kind, chunk_size=(chunk, chunk), **switches)
                    cases = {
                        "ours": passes(ours, x, with_method(ours, "chunked")),
                        "titans-pytorch": passes(
                            theirs, x, lambda t, layers=theirs: sum(layer(t)[0] for layer in layers)
                        ),
                    }
                    memories = "one" if count == 1 else "five"
                    compare(f"{memories} {kind}, chunks of {chunk}, {size}", cases, "> 1x", None)
    else:
        print("titans-pytorch is not installed: left out")

    sizes = {"hidden_size": args.width, "num_hidden_layers": 2, "num_attention_heads": args.heads}
    hope = HopeForCausalLM(HopeConfig(vocab_size=256, **sizes), seed=0).eval()
    prompt = torch.randint(256, (args.batch, 128), generator=torch.Generator().manual_seed(0))
    runs = {
        name: partial(generated, hope, prompt, 64, cached)
        for name, cached in (("state", True), ("none", False))
    }
    assert torch.equal(runs["state"](), runs["none"]())
    compare("Hope: 64 tokens after 128", {"with state": runs["state"], "without": runs["none"]}, "> 1x", None)
    report("hope", "self-modifying memories in blocks of tokens", rows, args.json)


if __name__ == "__main__":
    main()
