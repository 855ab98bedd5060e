"""Synthetic text from a mixture of hidden Markov models, from which in-context learning can emerge.

After the GINC data of Xie, Raghunathan, Liang and Ma, "An Explanation of In-context Learning as Implicit
Bayesian Inference" (2021, arXiv 2111.02080). A hidden state is a value v and a slot s; the token is
E[v, s], and slot 0 always shows the delimiter, token 0. Given a concept c,

    s' ~ A_c[s],  A_c = sum_i softmax((u_ci - 1/2) / temperature)_i P_i     P_i permutations, u_ci ~ U(0, 1)
    v' ~ B[v],    B = mixing * sum_i softmax(...)_i Q_i + (1 - mixing) * I  shared by all concepts

A document follows one concept. A prompt is a row of short examples of one concept, all beginning in the same
slot and with a value drawn uniformly, separated by delimiters; what is asked is the last token of one more.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

DELIMITER = 0


@dataclass(frozen=True)
class GINCPrompts:
    """tokens   [prompts, n_examples * (length + 1) + length - 1]: whole examples, then the open one
    answers  [prompts] the likeliest last token, given the concept
    concepts, slots  [prompts] what the examples were drawn from
    """

    tokens: Int[Tensor, "prompts length"]
    answers: Int[Tensor, " prompts"]
    concepts: Int[Tensor, " prompts"]
    slots: Int[Tensor, " prompts"]


class GINC:
    """A language of `concepts` hidden Markov models; the seed decides all of it.

    Raises ValueError for sizes below 2 or a mixing weight outside [0, 1].
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        concepts: int = 5,
        values: int = 10,
        slots: int = 10,
        symbols: int = 50,
        permutations: int = 10,
        temperature: float = 0.1,
        mixing: float = 0.1,
    ) -> None:
        if min(values, slots, symbols) < 2 or min(concepts, permutations) < 1:
            raise ValueError(
                "GINC needs at least two values, slots and symbols, one concept and one permutation; got "
                f"{values}, {slots}, {symbols}, {concepts}, {permutations}"
            )
        if not 0 <= mixing <= 1:
            raise ValueError(f"the mixing weight lies between 0 and 1, got {mixing}")
        g = torch.Generator().manual_seed(seed)
        self.concepts, self.values, self.slots, self.symbols = concepts, values, slots, symbols

        def mixture(size: int, count: int) -> Tensor:
            drawn = [torch.randperm(size, generator=g) for _ in range(permutations)]
            shuffled = torch.eye(size, dtype=torch.float64)[torch.stack(drawn)]
            u = torch.rand(count, permutations, generator=g, dtype=torch.float64)
            return torch.einsum("cp,pij->cij", ((u - 0.5) / temperature).softmax(-1), shuffled)

        self.slot_transition: Float[Tensor, "concepts slots slots"] = mixture(slots, concepts)
        mixed, stay = mixture(values, 1)[0], torch.eye(values, dtype=torch.float64)
        self.value_transition: Float[Tensor, "values values"] = mixing * mixed + (1 - mixing) * stay
        self.emission: Int[Tensor, "values slots"] = torch.randint(1, symbols, (values, slots), generator=g)
        self.emission[:, 0] = DELIMITER

    def documents(
        self, count: int, length: int, *, generator: torch.Generator | None = None
    ) -> tuple[Int[Tensor, "count length"], Int[Tensor, " count"]]:
        """Documents of `length` tokens, and the concept of each; they begin in a state drawn uniformly."""
        concepts = torch.randint(self.concepts, (count,), generator=generator)
        slots = torch.randint(self.slots, (count,), generator=generator)
        return self._walk(concepts, slots, length, generator), concepts

    def prompts(
        self, count: int, n_examples: int, length: int, *, generator: torch.Generator | None = None
    ) -> GINCPrompts:
        """Prompts of `n_examples` whole examples of `length` tokens and one that lacks its last.

        Raises ValueError for a length below 2 or a negative number of examples.
        """
        if length < 2 or n_examples < 0:
            raise ValueError(
                f"need examples of 2 tokens and 0 of them or more, got {length} and {n_examples}"
            )
        concepts = torch.randint(self.concepts, (count,), generator=generator)
        slots = torch.randint(1, self.slots, (count,), generator=generator)
        rows = [self._walk(concepts, slots, length, generator) for _ in range(n_examples + 1)]
        end = torch.full((count, 1), DELIMITER)
        asked = rows[-1][:, :-1]
        tokens = torch.cat([part for row in rows[:-1] for part in (row, end)] + [asked], dim=1)
        answers = self.next_token(asked, concepts, slots).argmax(-1)
        return GINCPrompts(tokens, answers, concepts, slots)

    def next_token(
        self, tokens: Int[Tensor, "rows length"], concepts: Int[Tensor, " rows"], slots: Int[Tensor, " rows"]
    ) -> Float[Tensor, "rows symbols"]:
        """p(next token | tokens, concept, first slot), the first value uniform: the forward algorithm."""
        transition = self.slot_transition[concepts]
        belief = torch.zeros(len(tokens), self.values, self.slots, dtype=torch.float64)
        belief[torch.arange(len(tokens)), :, slots] = 1 / self.values
        for column in tokens.T:
            belief = belief * (self.emission[None] == column[:, None, None])
            belief = belief / belief.sum((1, 2), keepdim=True).clamp(min=1e-300)
            belief = torch.einsum("bvs,vw,bst->bwt", belief, self.value_transition, transition)
        seen = torch.zeros(len(tokens), self.symbols, dtype=torch.float64)
        return seen.index_add_(1, self.emission.flatten(), belief.flatten(1))

    def log_likelihood(
        self, tokens: Int[Tensor, "rows length"], slots: Int[Tensor, " rows"]
    ) -> Float[Tensor, "rows concepts"]:
        """log p(tokens | concept, first slot) of single examples, for every concept."""
        found = torch.zeros(len(tokens), self.concepts, dtype=torch.float64)
        for c in range(self.concepts):
            belief = torch.zeros(len(tokens), self.values, self.slots, dtype=torch.float64)
            belief[torch.arange(len(tokens)), :, slots] = 1 / self.values
            for column in tokens.T:
                belief = belief * (self.emission[None] == column[:, None, None])
                mass = belief.sum((1, 2))
                found[:, c] += mass.log()
                belief = belief / mass.clamp(min=1e-300)[:, None, None]
                belief = torch.einsum(
                    "bvs,vw,st->bwt", belief, self.value_transition, self.slot_transition[c]
                )
        return found

    def _walk(
        self, concepts: Tensor, slots: Tensor, length: int, generator: torch.Generator | None
    ) -> Int[Tensor, "rows length"]:
        """Tokens of one hidden walk per row, from a value drawn uniformly."""
        values = torch.randint(self.values, concepts.shape, generator=generator)
        tokens = []
        for _ in range(length):
            tokens.append(self.emission[values, slots])
            values = torch.multinomial(self.value_transition[values], 1, generator=generator)[:, 0]
            slots = torch.multinomial(self.slot_transition[concepts, slots], 1, generator=generator)[:, 0]
        return torch.stack(tokens, dim=1)
