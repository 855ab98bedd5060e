"""Boolean functions in batches: how each class draws them, evaluates them and plants their inputs.

The classes of Bhattamishra, Patel, Blunsom and Kanade, "Understanding In-Context Learning in Transformers and
LLMs by Learning to Learn Discrete Functions" (2023, arXiv 2310.03016). Inputs and labels are -1 and +1; a bit
is set where the input is +1. A weight w_i = +1 stands for the literal x_i, -1 for not x_i, 0 for absence.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations, product
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

Rule = Literal["dnf", "cnf", "halfspace", "parity"]


@dataclass(frozen=True)
class BooleanClass:
    """How a class draws its functions: `terms` vectors of weights under a rule.

    `prior` holds the probabilities of (0, +1, -1) per weight; `k` instead says that exactly k weights are +1;
    `integers` that weights are uniform over -integers..integers. `bias` is the threshold of a halfspace, None
    for the random one of `threshold`. `planted` is the share of inputs made to satisfy a term (rule "dnf") or
    to falsify a clause ("cnf"); `planted_taught` the share in prompts that begin with a teaching sequence.
    """

    rule: Rule
    terms: int = 1
    prior: tuple[float, float, float] | None = None
    k: int | None = None
    integers: int | None = None
    bias: float | None = 0.0
    planted: float = 0.0
    planted_taught: float = 0.0


LITERALS = (0.7, 0.15, 0.15)
BOOLEAN_CLASSES: dict[str, BooleanClass] = {
    "conjunction": BooleanClass("dnf", 1, LITERALS, planted=0.3, planted_taught=0.4),
    "disjunction": BooleanClass("cnf", 1, LITERALS, planted=0.3, planted_taught=0.4),
    "monotone_conjunction": BooleanClass("dnf", 1, (0.7, 0.3, 0.0), planted=0.3, planted_taught=0.4),
    "monotone_disjunction": BooleanClass("cnf", 1, (0.7, 0.3, 0.0), planted=0.3, planted_taught=0.4),
    "sparse_disjunction": BooleanClass("cnf", 1, k=4, planted=0.3, planted_taught=0.4),
    "dnf": BooleanClass("dnf", 3, (0.8, 0.1, 0.1), planted=0.35, planted_taught=0.35),
    "cnf": BooleanClass("cnf", 3, (0.8, 0.1, 0.1), planted=0.3, planted_taught=0.35),
    "monotone_dnf": BooleanClass("dnf", 3, (0.8, 0.2, 0.0), planted=0.35, planted_taught=0.35),
    "monotone_cnf": BooleanClass("cnf", 3, (0.8, 0.2, 0.0), planted=0.3, planted_taught=0.35),
    "majority": BooleanClass("halfspace", 1, (0.7, 0.3, 0.0), bias=0.5),
    "threshold": BooleanClass("halfspace", 1, LITERALS, bias=None),
    "int_halfspace": BooleanClass("halfspace", 1, integers=3, bias=0.5),
    "parity": BooleanClass("parity", 1, (0.5, 0.5, 0.0)),
    "sparse_parity": BooleanClass("parity", 1, k=2),
}


@dataclass(frozen=True)
class BooleanFunctions:
    """A batch of functions {-1,+1}^n -> {-1,+1}; calling it labels x [batch, m, n] with y [batch, m].

    With k_j literals in term j:
    - "dnf": +1 iff some term has w_j . x > k_j - 1 (all its literals hold); one term is a conjunction;
    - "cnf": +1 iff every clause has w_j . x > 1 - k_j (a literal of it holds); one clause is a disjunction;
    - "halfspace": +1 iff w . x > bias;
    - "parity": +1 iff an odd number of the bits with w_i != 0 is set.

    An empty term holds everywhere and an empty clause nowhere, so such functions may be constant.
    """

    rule: Rule
    w: Float[Tensor, "batch terms n"]
    bias: Float[Tensor, " batch"]

    def __call__(self, x: Float[Tensor, "batch m n"]) -> Float[Tensor, "batch m"]:
        w = self.w.to(x.device, x.dtype)
        if self.rule == "parity":
            # w . x counts set minus unset bits of the subset; with k of them, (w . x + k) / 2 are set.
            used = w[:, 0].abs()
            odd = ((x * used[:, None]).sum(-1) + used.sum(-1)[:, None]) / 2 % 2
            return 2 * odd - 1
        # [batch, m, terms]; a product with one column is slower than its sum
        margin = (x * w).sum(-1, keepdim=True) if w.shape[1] == 1 else x @ w.transpose(1, 2)
        if self.rule == "halfspace":
            positive = margin[..., 0] > self.bias.to(x.device, x.dtype)[:, None]
        else:
            size = w.abs().sum(-1)[:, None]
            held = margin > size - 1 if self.rule == "dnf" else margin > 1 - size
            positive = held.any(-1) if self.rule == "dnf" else held.all(-1)
        return 2 * positive.to(x.dtype) - 1

    def __len__(self) -> int:
        return len(self.w)

    def __getitem__(self, index: Int[Tensor, " chosen"]) -> BooleanFunctions:
        return replace(self, w=self.w[index], bias=self.bias[index])

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> BooleanFunctions:
        """The same functions elsewhere or in another precision."""
        return replace(self, w=self.w.to(device, dtype), bias=self.bias.to(device, dtype))

    def matches(self, others: BooleanFunctions) -> Bool[Tensor, " batch"]:
        """Which functions have the weights and the bias of one of `others` (the order of terms counts)."""
        same = (self.w[:, None] == others.w[None]).flatten(2).all(-1)
        return (same & (self.bias[:, None] == others.bias[None])).any(-1)


def draw_functions(
    kind: BooleanClass, n: int, batch: int, generator: torch.Generator | None = None
) -> BooleanFunctions:
    """`batch` functions of a class, drawn on the generator's device in float32."""
    device = None if generator is None else generator.device
    shape = (batch, kind.terms, n)
    if kind.integers is not None:
        w = torch.randint(
            -kind.integers, kind.integers + 1, shape, generator=generator, device=device
        ).float()
    else:
        u = torch.rand(shape, generator=generator, device=device)
        if kind.k is not None:
            w = torch.zeros_like(u).scatter_(-1, u.topk(kind.k, dim=-1).indices, 1.0)
        else:
            assert kind.prior is not None
            _, plus, minus = kind.prior
            w = (u < plus).float() - (u >= 1 - minus).float()
    if kind.bias is None:
        bias = torch.randint(-3, 3, (batch,), generator=generator, device=device) + 0.5
    else:
        bias = torch.full((batch,), kind.bias, device=device)
    return BooleanFunctions(kind.rule, w, bias)


def all_functions(
    name: str, n: int, k: int | None = None, prior: tuple[float, float, float] | None = None
) -> tuple[BooleanFunctions, Float[Tensor, " f"]]:
    """Every function of a class of one term, and the log-probability with which it is drawn.

    All 3^n (or, for monotone classes and parity, 2^n) weight vectors of positive prior; C(n, k) of them where
    the class fixes k. Raises ValueError for classes of several terms or of integer weights, and for n > 12.
    """
    kind = replace(BOOLEAN_CLASSES[name], prior=prior or BOOLEAN_CLASSES[name].prior)
    k = kind.k if k is None else k
    if kind.terms > 1 or kind.integers is not None:
        raise ValueError(f"{name} is not enumerated: only classes of one term with ternary weights are")
    if k is not None:
        rows = list(combinations(range(n), k))
        w = torch.zeros(len(rows), n).scatter_(1, torch.tensor(rows).reshape(len(rows), k), 1.0)
        log_prior = torch.zeros(len(rows), dtype=torch.float64)
    else:
        if n > 12:
            raise ValueError(f"enumeration of {name} needs n <= 12 (3^n functions), got n={n}")
        assert kind.prior is not None
        values = [v for v, p in zip((0.0, 1.0, -1.0), kind.prior, strict=True) if p > 0]
        w = torch.tensor(list(product(values, repeat=n)))
        logs = torch.tensor([p for p in kind.prior if p > 0], dtype=torch.float64).log()
        index = torch.tensor(list(product(range(len(values)), repeat=n)))
        log_prior = logs[index].sum(-1)
    if kind.bias is None:
        biases = torch.arange(-3, 3) + 0.5
        w, log_prior = w.repeat(len(biases), 1), log_prior.repeat(len(biases))
        bias = biases.repeat_interleave(len(w) // len(biases))
    else:
        bias = torch.full((len(w),), kind.bias)
    return BooleanFunctions(kind.rule, w[:, None], bias), log_prior.log_softmax(0)


def draw_inputs(
    batch: int, m: int, n: int, generator: torch.Generator | None = None, prob: float = 0.5
) -> Shaped[Tensor, "batch m n"]:
    """Bits as bools: independent, each set with probability `prob`."""
    device = None if generator is None else generator.device
    if prob != 0.5:
        return torch.rand(batch, m, n, generator=generator, device=device) < prob
    # One random word gives 62 fair bits: some twenty times cheaper than a draw for each bit.
    bits = 62
    words = torch.empty(batch, m, -(-n // bits), dtype=torch.int64, device=device).random_(
        generator=generator
    )
    # Byte by byte, the lowest first as processors keep them: an eighth of the memory to go through.
    places = (1 << torch.arange(8, device=device)).to(torch.uint8)
    found = (words.view(torch.uint8)[..., None] & places) != 0  # [batch, m, 8 per word, 8]
    if n <= bits:
        return found[:, :, : -(-n // 8)].flatten(2)[..., :n]
    return found.unflatten(2, (-1, 8)).flatten(3)[..., :bits].flatten(2)[..., :n]


def plant(
    x: Float[Tensor, "batch m n"],
    functions: BooleanFunctions,
    share: float,
    generator: torch.Generator | None = None,
    per_point: bool = False,
) -> Float[Tensor, "batch m n"]:
    """Overwrite literals so that a share of the inputs satisfies a term ("dnf"), falsifies a clause ("cnf").

    The term is one per prompt, as in the paper's code, or with `per_point` drawn anew for every input. Note
    that planted inputs carry information about the function before any label is seen.
    """
    batch, m, _ = x.shape
    terms = functions.w.shape[1]
    device = None if generator is None else generator.device
    term = torch.randint(terms, (batch, m if per_point else 1), generator=generator, device=device).to(
        x.device
    )
    chosen = (torch.rand(batch, m, generator=generator, device=device) < share).to(x.device)
    w = functions.w.to(x.device, x.dtype)
    target = w[torch.arange(batch, device=x.device)[:, None], term]  # [batch, m or 1, n]
    if functions.rule == "cnf":
        target = -target
    return torch.where(chosen[..., None] & (target != 0), target, x)
