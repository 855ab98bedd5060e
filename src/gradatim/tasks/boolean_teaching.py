"""Teaching sequences: the shortest lists of examples that single out a function within its class.

Goldman and Kearns, "On the complexity of teaching" (1995); the sequences are those of Bhattamishra et al.
(2023, arXiv 2310.03016). Disjunctions follow from f(x) = not g(not x), which turns one rule into the other.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gradatim.tasks.boolean_functions import BooleanFunctions

TAUGHT_CLASSES = (
    "conjunction",
    "disjunction",
    "monotone_conjunction",
    "monotone_disjunction",
    "sparse_disjunction",
    "monotone_dnf",
    "monotone_cnf",
    "parity",
    "sparse_parity",
)


def teaching_sequence(
    name: str, functions: BooleanFunctions
) -> tuple[Float[Tensor, "batch longest n"], Int[Tensor, " batch"]]:
    """Inputs of the teaching sequence of each function, and its length; rows beyond the length are -1.

    - monotone conjunction of k literals, k + 1 points: the literals set and all else unset (positive), then
      the same with one literal unset at a time (negative);
    - conjunction, k + 2 points: literals satisfied with irrelevant bits unset, then set (both positive), then
      one literal falsified at a time with irrelevant bits unset (negative);
    - monotone DNF: the monotone sequence of each term in turn, which singles f out among DNFs of that many
      terms where no term contains another;
    - sparse parity: for each relevant bit the point with this bit alone set (label +1); k has to be known;
    - parity: the n points with one bit set.

    Labels are the function's own. Raises ValueError for a class without a sequence.
    """
    if name not in TAUGHT_CLASSES:
        raise ValueError(f"no teaching sequence for {name!r}; there is one for {', '.join(TAUGHT_CLASSES)}")
    w = functions.w
    if name == "parity":
        points = (2 * torch.eye(w.shape[2], device=w.device, dtype=w.dtype) - 1).repeat(len(w), 1, 1)
        return points, torch.full((len(w),), w.shape[2], device=w.device)
    if name == "sparse_parity":
        points = _flipped(w, heads=0, base=torch.full_like(w, -1.0), to=w.abs())[:, 0]
        return points, (w != 0).sum((1, 2))
    heads = 2 if name in ("conjunction", "disjunction") else 1
    blocks = _flipped(w, heads, base=torch.where(w != 0, w, -1.0), to=-w)  # [batch, terms, heads + n, n]
    if heads == 2:
        blocks[:, :, 1] = torch.where(w != 0, w, 1.0)
    points, length = _concatenate(blocks, (w != 0).sum(-1) + heads)
    return (points if functions.rule == "dnf" else -points), length


def _flipped(w: Tensor, heads: int, base: Tensor, to: Tensor) -> Tensor:
    """`heads` copies of `base`, then a row per used weight with this one coordinate taken from `to`."""
    used = w != 0
    rank = used.cumsum(-1) - 1 + heads  # the row in which a used coordinate is the changed one
    rows = torch.arange(heads + w.shape[-1], device=w.device)[:, None]
    changed = used[..., None, :] & (rank[..., None, :] == rows)
    return torch.where(changed, to[..., None, :], base[..., None, :])


def _concatenate(blocks: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """The first lengths[b, j] rows of every block of prompt b, one block after the other."""
    _, terms, longest, n = blocks.shape
    if terms == 1:
        return blocks[:, 0], lengths[:, 0]
    valid = torch.arange(longest, device=blocks.device) < lengths[..., None]  # [batch, terms, longest]
    # A stable sort moves the valid rows to the front and keeps their order.
    order = (~valid).flatten(1).long().argsort(dim=1, stable=True)
    rows = blocks.flatten(1, 2).gather(1, order[..., None].expand(-1, -1, n))
    return rows, lengths.sum(1)


def permuted_prefix(
    x: Float[Tensor, "batch m n"], length: Int[Tensor, " batch"], generator: torch.Generator | None = None
) -> Float[Tensor, "batch m n"]:
    """The first length[b] points of each prompt in random order, the others where they are."""
    device = None if generator is None else generator.device
    keys = torch.rand(x.shape[:2], generator=generator, device=device).to(x.device)
    position = torch.arange(x.shape[1], device=x.device)
    order = torch.where(position < length[:, None], keys, position + 1.0).argsort(dim=1)
    return x.gather(1, order[..., None].expand_as(x))
