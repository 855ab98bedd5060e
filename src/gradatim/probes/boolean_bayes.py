"""The Bayes-optimal learner of a Boolean class, by enumeration: from labels alone, or from inputs as well."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from gradatim.probes.boolean_references import check_prompts
from gradatim.tasks.boolean_functions import BOOLEAN_CLASSES, BooleanFunctions, all_functions

# Posterior weights held at once: prompts are taken in parts where more would be needed.
CELLS = 8_000_000


@dataclass(frozen=True)
class TernaryBayes:
    """Posterior over every function of a class of one term with weights in {-1, 0, +1}.

        p(w | pairs) ~ p(w) prod_j p(x_j | w)^[inputs] p(y_j | x_j, w)

    where p(y | x, w) is 1 - noise for y = f_w(x) and noise otherwise. In the paper's tasks the inputs are
    planted: with k literals and a planted share q,

        p(x | w) = 2^-n (1 - q + q 2^k [x satisfies w])

    for conjunctions (falsifies, for disjunctions), so the inputs tell about the function even without a
    label. `inputs=True` uses that, the input to be answered included; a learner of the labels alone does not.

    `name` is the class (`BOOLEAN_CLASSES`, one term, no integer weights), `prior`, `k` and `planted` its
    settings in the task (None: the class's own). Raises ValueError for other classes and for n > 12
    (3^n functions).
    """

    name_of_class: str = "conjunction"
    inputs: bool = False
    noise: float = 0.0
    prior: tuple[float, float, float] | None = None
    k: int | None = None
    planted: float | None = None

    def __post_init__(self) -> None:
        if self.name_of_class not in BOOLEAN_CLASSES:
            known = ", ".join(BOOLEAN_CLASSES)
            raise ValueError(f"no Boolean class {self.name_of_class!r}; there are {known}")
        kind = BOOLEAN_CLASSES[self.name_of_class]
        if kind.terms > 1 or kind.integers is not None:
            raise ValueError(
                f"{self.name_of_class} is no class of one term with weights -1, 0, +1: it is not enumerated"
            )
        if not 0 <= self.noise <= 0.5:
            raise ValueError(f"noise must lie in [0, 0.5], got {self.noise}")
        if not 0 <= self.share < 1:
            raise ValueError(f"planted must lie in [0, 1), got {self.planted}")

    @property
    def share(self) -> float:
        """The planted share."""
        return BOOLEAN_CLASSES[self.name_of_class].planted if self.planted is None else self.planted

    @property
    def name(self) -> str:
        """Such as "Bayes (labels only)"."""
        return f"Bayes ({'labels and inputs' if self.inputs else 'labels only'})"

    def predict(self, x: Float[Tensor, "batch m n"], y: Float[Tensor, "batch m"]) -> Float[Tensor, "batch m"]:
        """P(+1) - P(-1) for every point; 0 where no function fits the pairs."""
        check_prompts(x, y)
        functions, prior = enumerated(self.name_of_class, x.shape[2], self.k, self.prior)
        functions, prior = functions.to(x.device), prior.to(x.device)
        answer = self._possible if self.noise == 0 else self._weighted
        part = max(1, CELLS // len(functions))
        return torch.cat(
            [answer(x[i : i + part], y[i : i + part], functions, prior) for i in range(0, len(x), part)]
        )

    curve = __call__ = predict

    def _weighted(self, x: Tensor, y: Tensor, functions: BooleanFunctions, prior: Tensor) -> Tensor:
        """Every function keeps a weight for every prompt."""
        weight = prior.expand(len(x), -1).clone()
        found = torch.zeros_like(y)
        for t in range(x.shape[1]):
            values = values_at(functions, x[:, t])
            if self.inputs:
                weight = weight * self.input_likelihood(functions, values)
            total = weight.sum(1)
            found[:, t] = ((weight * values).sum(1) / total.clamp(min=1e-300)).to(y.dtype)
            weight = self.updated(weight, values, y[:, t])
        return found

    def _possible(self, x: Tensor, y: Tensor, functions: BooleanFunctions, prior: Tensor) -> Tensor:
        """Without noise a label rules functions out for good: only pairs (prompt, function) left are kept."""
        batch, count = len(x), len(functions)
        prompt = torch.arange(batch, device=x.device).repeat_interleave(count)
        function = torch.arange(count, device=x.device).repeat(batch)
        weight = prior.repeat(batch)
        found = torch.zeros_like(y)
        w, used = functions.w[:, 0].to(x.dtype), functions.w.abs().sum((1, 2)).to(x.dtype)
        threshold = thresholds(functions).to(x.dtype)
        for t in range(x.shape[1]):
            dense = len(prompt) > batch * count // 8
            margins = (
                (x[:, t] @ (w.abs() if functions.rule == "parity" else w).T).flatten() if dense else None
            )
            if margins is None:
                rows = w[function].abs_() if functions.rule == "parity" else w[function]
                margin = (x[prompt, t] * rows).sum(1)
            else:
                margin = margins if len(prompt) == len(margins) else margins[prompt * count + function]
            if functions.rule == "parity":
                positive = (margin + used[function]) / 2 % 2 == 1
            else:
                positive = margin > threshold[function]
            if self.inputs:
                values = 2.0 * positive.double() - 1
                weight = weight * self.input_likelihood(functions, values, function)
            total = weight.new_zeros(batch).index_add_(0, prompt, weight)
            agree = weight.new_zeros(batch).index_add_(0, prompt, weight * positive)
            some = total > 0
            found[:, t] = torch.where(some, 2 * agree / total.clamp(min=1e-300) - 1, 0.0).to(y.dtype)
            kept = positive == (y[prompt, t] > 0)
            weight = weight[kept] / total[prompt[kept]]
            prompt, function = prompt[kept], function[kept]
        return found

    def input_likelihood(
        self, functions: BooleanFunctions, values: Float[Tensor, "*batch f"], index: Tensor | None = None
    ) -> Float[Tensor, "*batch f"]:
        """2^n p(x | w) for every function (those of `index`), from its value at x."""
        if not self.share:
            return torch.ones_like(values)
        literals = functions.w.abs().sum((1, 2)).double()
        target = 1.0 if functions.rule == "dnf" else -1.0
        gain = self.share * 2**literals
        return 1 - self.share + (gain if index is None else gain[index]) * (values == target)

    def updated(
        self, weight: Float[Tensor, "batch f"], values: Float[Tensor, "batch f"], y: Float[Tensor, " batch"]
    ) -> Float[Tensor, "batch f"]:
        """The posterior after a label, normalised so that long prompts do not underflow."""
        agree = values == y[:, None].to(values.dtype)
        weight = torch.where(agree, weight * (1 - self.noise), weight * self.noise)
        return weight / weight.sum(1, keepdim=True).clamp(min=1e-300)


@lru_cache(maxsize=8)
def enumerated(
    name: str, n: int, k: int | None, prior: tuple[float, float, float] | None
) -> tuple[BooleanFunctions, Tensor]:
    """Every function of the class, and its probability."""
    functions, log_prior = all_functions(name, n, k, prior)
    return functions, log_prior.exp()


def values_at(functions: BooleanFunctions, x: Float[Tensor, "batch n"]) -> Float[Tensor, "batch f"]:
    """Every function of one term at one input per prompt, in float64."""
    w = functions.w[:, 0]  # [f, n]
    x = x.to(w.dtype)
    if functions.rule == "parity":
        odd = (x @ w.abs().T + w.abs().sum(-1)) / 2 % 2
        return 2.0 * odd.double() - 1
    return 2.0 * (x @ w.T > thresholds(functions)).double() - 1


def thresholds(functions: BooleanFunctions) -> Float[Tensor, " f"]:
    """What w . x must exceed for +1, for functions of one term (not for parities)."""
    size = functions.w.abs().sum((1, 2))
    return {"dnf": size - 1, "cnf": 1 - size}.get(functions.rule, functions.bias)
