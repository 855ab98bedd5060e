"""Small word vectors out of a language model's own table."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def principal_word_vectors(
    table: Float[Tensor, "vocabulary width"], dim: int
) -> Float[Tensor, "vocabulary dim"]:
    """The table's rows along their `dim` directions of largest variance, scaled to unit mean square.

    Unscaled, a model's tiny word vectors would leave a fresh convolution to its bias alone. Signs are such
    that each direction's largest weight is positive, so that the result is the same on every machine up to
    rounding. Raises ValueError unless 1 <= dim <= width.
    """
    width = table.shape[1]
    if not 1 <= dim <= width:
        raise ValueError(f"dim={dim} must lie between 1 and the vectors' {width} dimensions")
    rows = table.detach().double().cpu()
    centred = rows - rows.mean(dim=0)
    directions = torch.linalg.eigh(centred.T @ centred).eigenvectors.flip(1)[:, :dim]
    largest = directions.gather(0, directions.abs().argmax(dim=0, keepdim=True))
    vectors = centred @ (directions * largest.sign())
    return (vectors / vectors.square().mean().sqrt()).float()
