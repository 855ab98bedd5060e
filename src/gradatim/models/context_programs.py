r"""Programs of four primitives that learn in context: stochastic gradient descent and ridge regression.

"What learning algorithm is in-context learning?" (2022, arXiv 2211.15661) builds its transformers from four
operations on a memory H [rows, columns], a column per token. `mov` copies rows from one column to a later
one; `mul`, `div` and `aff` act within every column. Each is one decoder layer, which `Program.to_transformer`
gives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

if TYPE_CHECKING:
    from gradatim.models.program_transformer import ProgramTransformer

Block = tuple[int, int]
"""Rows from the first number up to, not including, the second."""


@dataclass(frozen=True)
class Mov:
    """Copy `rows` of column `source` to the rows from `to` on in column `target`."""

    source: int
    target: int
    rows: Block
    to: int

    def __call__(self, memory: Tensor) -> Tensor:
        """A new memory."""
        after = memory.clone()
        after[..., self.to : self.to + _size(self.rows), self.target] = memory[
            ..., slice(*self.rows), self.source
        ]
        return after

    @property
    def touched(self) -> tuple[Block, ...]:
        """Rows that are read or written."""
        return (self.rows, (self.to, self.to + _size(self.rows)))


@dataclass(frozen=True)
class Mul:
    """In every column: the a x b matrix in the rows from `left`, times the b x c matrix from `right`."""

    shape: tuple[int, int, int]
    left: int
    right: int
    to: int

    def __call__(self, memory: Tensor) -> Tensor:
        """A new memory."""
        a, b, c = self.shape
        columns = memory.mT
        left = columns[..., self.left : self.left + a * b].unflatten(-1, (a, b))
        right = columns[..., self.right : self.right + b * c].unflatten(-1, (b, c))
        return _written(memory, self.to, (left @ right).flatten(-2).mT)

    @property
    def touched(self) -> tuple[Block, ...]:
        """Rows that are read or written."""
        a, b, c = self.shape
        return tuple((s, s + n) for s, n in ((self.left, a * b), (self.right, b * c), (self.to, a * c)))


@dataclass(frozen=True)
class Div:
    """In every column: `rows` divided by the absolute value of row `by`."""

    rows: Block
    by: int
    to: int

    def __call__(self, memory: Tensor) -> Tensor:
        """A new memory."""
        return _written(
            memory, self.to, memory[..., slice(*self.rows), :] / memory[..., self.by, None, :].abs()
        )

    @property
    def touched(self) -> tuple[Block, ...]:
        """Rows that are read or written."""
        return (self.rows, (self.by, self.by + 1), (self.to, self.to + _size(self.rows)))


@dataclass(frozen=True)
class Aff:
    """In every column: W_1 rows_1 + W_2 rows_2 + ... + b, written to the rows from `to` on."""

    terms: tuple[tuple[Block, Tensor], ...]  # weights [out, rows]
    bias: Float[Tensor, " out"]
    to: int

    def __call__(self, memory: Tensor) -> Tensor:
        """A new memory."""
        total = self.bias.to(memory)[:, None].expand(*memory.shape[:-2], -1, memory.shape[-1])
        for rows, weight in self.terms:
            total = total + weight.to(memory) @ memory[..., slice(*rows), :]
        return _written(memory, self.to, total)

    @property
    def touched(self) -> tuple[Block, ...]:
        """Rows that are read or written."""
        return (*(rows for rows, _ in self.terms), (self.to, self.to + len(self.bias)))


Operation = Mov | Mul | Div | Aff


def mov(source: int, target: int, rows: Block, to: int | None = None) -> Mov:
    """Copy `rows` from column `source` to column `target`, to the same rows unless `to` names the first.

    Raises ValueError where the target comes before the source: a decoder cannot look ahead.
    """
    if not 0 <= source <= target:
        raise ValueError(f"mov reads an earlier column or its own, got {source} -> {target}")
    return Mov(source, target, _block(rows), rows[0] if to is None else to)


def mul(shape: tuple[int, int, int], left: int, right: int, to: int) -> Mul:
    """Multiply the a x b matrix that starts in row `left` by the b x c one in row `right`, row by row packed.

    Raises ValueError for sizes below 1.
    """
    if min(shape) < 1:
        raise ValueError(f"matrices need sizes of at least 1, got {shape}")
    return Mul(shape, left, right, to)


def div(rows: Block, by: int, to: int) -> Div:
    """Divide `rows` by the absolute value of row `by`; a column where that is 0 gets inf or NaN."""
    return Div(_block(rows), by, to)


def aff(
    to: int,
    *terms: tuple[Block, Tensor | float],
    bias: Float[Tensor, " out"] | None = None,
) -> Aff:
    """W_1 rows_1 + W_2 rows_2 + b, written from row `to` on; a number is that multiple of the identity.

    Raises ValueError where sizes disagree, or where there is neither a term nor a bias.
    """
    known = [
        (_block(rows), w * torch.eye(_size(rows), dtype=torch.float64) if isinstance(w, int | float) else w)
        for rows, w in terms
    ]
    sizes = {len(w) for _, w in known} | ({len(bias)} if bias is not None else set())
    if len(sizes) != 1 or any(w.shape[1] != _size(rows) for rows, w in known):
        shapes = [(rows, tuple(w.shape)) for rows, w in known]
        raise ValueError(
            f"aff needs terms of one size, got {shapes} and bias {None if bias is None else len(bias)}"
        )
    given = torch.zeros(sizes.pop(), dtype=torch.float64) if bias is None else bias
    return Aff(tuple(known), given, to)


@dataclass(frozen=True)
class Program:
    """A chain of primitives on a memory of `rows` x `columns`; every operation is one layer.

    Raises ValueError for an operation outside the memory.
    """

    operations: Sequence[Operation]
    rows: int
    columns: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "operations", tuple(self.operations))
        for k, operation in enumerate(self.operations):
            for start, stop in operation.touched:
                if start < 0 or stop > self.rows:
                    raise ValueError(f"operation {k} uses rows {start}:{stop} of {self.rows}: {operation}")
            if isinstance(operation, Mov) and operation.target >= self.columns:
                raise ValueError(f"operation {k} writes column {operation.target} of {self.columns}")

    def __len__(self) -> int:
        return len(self.operations)

    def run(self, memory: Float[Tensor, "*batch rows columns"]) -> Float[Tensor, "*batch rows columns"]:
        """The memory after all operations, computed directly."""
        if memory.shape[-2:] != (self.rows, self.columns):
            raise ValueError(f"memory must end in {self.rows, self.columns}, got {tuple(memory.shape)}")
        for operation in self.operations:
            memory = operation(memory)
        return memory

    def to_transformer(self, eps: float = 1e-3, realise: str = "gelu") -> ProgramTransformer:
        """The same program as decoder layers of softmax attention, GELU blocks and layer normalisation.

        `eps` scales what GELU multiplies and what layer normalisation divides: the error falls with its
        square, until rounding (about 1e-16 / eps per product) takes over.
        Raises ValueError for eps at or below 0, or another realisation than "gelu".
        """
        from gradatim.models.program_transformer import ProgramTransformer

        if realise != "gelu":
            raise ValueError(f"realise must be 'gelu', got {realise!r}")
        return ProgramTransformer(self, eps)

    def realisation_error(self, memory: Float[Tensor, "*batch rows columns"], eps: float) -> float:
        """Largest difference between the transformer's memory and the exact one."""
        with torch.no_grad():
            return float((self.to_transformer(eps)(memory) - self.run(memory)).abs().max())


@dataclass(frozen=True)
class ContextProgram:
    """A program that reads x_1, y_1, x_2, y_2 ... and leaves every prediction in the column of its x.

    Calling it on contexts (x [batch, n, d], y [batch, n]) gives predictions [batch, n], entry t from the
    pairs before t, as every in-context learner does. `machine` runs the memory: the program itself, or its
    transformer after `realise(eps)`.
    """

    program: Program
    d: int
    n: int
    answer: int
    name: str
    machine: Callable[[Tensor], Tensor] = field(repr=False)

    def memory(
        self, x: Float[Tensor, "batch n d"], y: Float[Tensor, "batch n"]
    ) -> Float[Tensor, "batch rows columns"]:
        """Row 0 holds y in the columns of labels, rows 1 .. d hold x in the columns of inputs."""
        if x.shape[1:] != (self.n, self.d) or y.shape != x.shape[:2]:
            raise ValueError(
                f"contexts must be [batch, {self.n}, {self.d}] and [batch, {self.n}], got {tuple(x.shape)}, "
                f"{tuple(y.shape)}"
            )
        h = x.new_zeros(len(x), self.program.rows, self.program.columns)
        h[:, 1 : 1 + self.d, 0::2] = x.mT
        h[:, 0, 1::2] = y
        return h

    def __call__(
        self, x: Float[Tensor, "batch n d"], y: Float[Tensor, "batch n"]
    ) -> Float[Tensor, "batch n"]:
        """Predictions of every prefix."""
        return self.machine(self.memory(x, y))[:, self.answer, 0::2]

    def realise(self, eps: float = 1e-3) -> ContextProgram:
        """The same, run by the transformer of the program."""
        machine = self.program.to_transformer(eps)
        return ContextProgram(self.program, self.d, self.n, self.answer, f"{self.name}, eps {eps:g}", machine)


def sgd_program(d: int, n: int, lr: float, weight_decay: float = 0.0) -> ContextProgram:
    r"""One pass of stochastic gradient descent: w <- w - 2 lr (x (w^T x - y) + weight_decay w), from w = 0.

    Seven layers per pair and O(d) rows. Raises ValueError for sizes below 1 or a rate at or below 0.
    """
    _refuse_sizes(d, n, "lr", lr)
    x, w, guess = (1, 1 + d), (1 + d, 1 + 2 * d), 1 + 2 * d
    error, gradient, answer = guess + 1, guess + 2, guess + 2 + d
    chain: list[Operation] = []
    for i in range(n):
        at, label = 2 * i, 2 * i + 1
        if i:
            chain.append(mov(at - 1, at, w))
        chain += [
            mul((1, d, 1), w[0], x[0], guess),
            mov(at, at, (guess, guess + 1), answer),  # out of reach of later layers
        ]
        if i < n - 1:
            chain += [
                mov(at, label, (x[0], guess + 1)),
                aff(error, ((guess, guess + 1), 1.0), ((0, 1), -1.0)),
                mul((d, 1, 1), x[0], error, gradient),
                aff(w[0], (w, 1 - 2 * lr * weight_decay), ((gradient, gradient + d), -2 * lr)),
            ]
    program = Program(chain, answer + 1, 2 * n)
    return ContextProgram(program, d, n, answer, f"SGD program({lr:g})", program.run)


def ridge_program(d: int, n: int, alpha: float) -> ContextProgram:
    r"""Ridge regression by Sherman-Morrison: A^-1 <- A^-1 - u u^T / (1 + x^T u), u = A^-1 x, from I / alpha.

    Thirteen layers per pair and O(d^2) rows. Raises ValueError for sizes below 1 or alpha at or below 0.
    """
    _refuse_sizes(d, n, "alpha", alpha)
    sizes = {"y": 1, "x": d, "inverse": d * d, "moment": d, "w": d, "guess": 1, "u": d, "scale": 1, "v": d}
    sizes |= {"outer": d * d, "product": d, "answer": 1}
    at = dict(zip(sizes, torch.tensor([0, *sizes.values()]).cumsum(0).tolist(), strict=False))
    block = {name: (at[name], at[name] + size) for name, size in sizes.items()}
    state = (at["inverse"], at["moment"] + d)
    one = torch.ones(1, dtype=torch.float64)
    eye = torch.eye(d, dtype=torch.float64).flatten()
    chain: list[Operation] = [aff(at["inverse"], bias=eye / alpha)]
    for i in range(n):
        column, label = 2 * i, 2 * i + 1
        if i:
            chain.append(mov(column - 1, column, state))
        chain += [
            mul((d, d, 1), at["inverse"], at["moment"], at["w"]),
            mul((1, d, 1), at["w"], at["x"], at["guess"]),
            mov(column, column, block["guess"], at["answer"]),
        ]
        if i < n - 1:
            chain += [
                mov(column, label, (at["x"], state[1])),
                mul((d, d, 1), at["inverse"], at["x"], at["u"]),
                mul((1, d, 1), at["x"], at["u"], at["scale"]),
                aff(at["scale"], (block["scale"], 1.0), bias=one),
                div(block["u"], at["scale"], at["v"]),
                mul((d, 1, d), at["u"], at["v"], at["outer"]),
                aff(at["inverse"], (block["inverse"], 1.0), (block["outer"], -1.0)),
                mul((d, 1, 1), at["x"], at["y"], at["product"]),
                aff(at["moment"], (block["moment"], 1.0), (block["product"], 1.0)),
            ]
    program = Program(chain, sum(sizes.values()), 2 * n)
    return ContextProgram(program, d, n, at["answer"], f"ridge program({alpha:g})", program.run)


def _refuse_sizes(d: int, n: int, name: str, value: float) -> None:
    if d < 1 or n < 1:
        raise ValueError(f"d and n must be at least 1, got d={d}, n={n}")
    if not value > 0:
        raise ValueError(f"{name} must be above 0, got {value}")


def _block(rows: Block) -> Block:
    if not 0 <= rows[0] < rows[1]:
        raise ValueError(f"a block of rows needs 0 <= first < last + 1, got {rows}")
    return rows


def _size(rows: Block) -> int:
    return rows[1] - rows[0]


def _written(memory: Tensor, start: int, rows: Tensor) -> Tensor:
    """The memory with `rows` [*batch, k, columns] in place of those from `start` on."""
    stop = start + rows.shape[-2]
    return torch.cat([memory[..., :start, :], rows, memory[..., stop:, :]], dim=-2)
