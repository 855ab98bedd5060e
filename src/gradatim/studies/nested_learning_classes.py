"""Study 04, paper profile: intents that come class by class (the paper's Figure 6), from the user's file.

The intents of a file like CLINC-150's are divided at random into ten steps; a network of three memory levels
on fixed hashed n-grams learns one step after the other with one head for all intents, and is judged on all
that came so far. It never sees an earlier intent again.
"""

from __future__ import annotations

import functools
import hashlib
import os
from pathlib import Path

import torch
from torch import Tensor

from gradatim.bench import Scale
from gradatim.tasks.intents import Intents, hashed_ngrams, read_intents

DATA_VARIABLE = "GRADATIM_INTENTS"
KEPT = 10  # examples of each intent that replay may draw from


def intents_path(scale: Scale) -> str:
    """The file of the arms `intents/...`: the scale's own, else GRADATIM_INTENTS, else ""."""
    return str(scale.get("data") or os.environ.get(DATA_VARIABLE, ""))


def data_version(scale: Scale) -> str:
    """The intents' file by its content, "" where it is not read or there is none."""
    path = intents_path(scale) if "intents" in scale else ""
    if not path or not Path(path).is_file():
        return ""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]


@functools.lru_cache(maxsize=2)
def _material(path: str, features: int) -> tuple[Intents, Tensor, Tensor]:
    if not path:
        raise FileNotFoundError(
            f"the arms intents/... need a file: set {DATA_VARIABLE} to the path of data_small.json of "
            "github.com/clinc/oos-eval"
        )
    intents = read_intents(path)
    return intents, hashed_ngrams(intents.train_texts, features), hashed_ngrams(intents.test_texts, features)


class IntentStream:
    """The steps of one seed: an order of the intents, shuffled epochs. The interface is that of `Stream`."""

    def __init__(self, seed: int, path: str, tasks: int, features: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        intents, train, test = _material(path, features)
        each = len(intents.names) // tasks
        if each < 1:
            raise ValueError(f"{len(intents.names)} intents cannot be divided into {tasks} steps")
        self.tasks, self.width, self.classes = tasks, features, len(intents.names)
        order = torch.randperm(self.classes, generator=self.generator)[: each * tasks]
        self.steps = order.view(tasks, each)
        self.x, self.y = torch.cat([train, test]), torch.cat([intents.train_labels, intents.test_labels])
        split = len(train)
        self.train, self.test = self._rows(0, split), self._rows(split, len(self.y))

    def _rows(self, first: int, last: int) -> Tensor:
        """[tasks, rows]: as many texts of every intent as the rarest has, so that seeds stack."""
        places = [
            [torch.nonzero(self.y[first:last] == c)[:, 0] + first for c in step.tolist()]
            for step in self.steps
        ]
        least = int(torch.bincount(self.y[first:last]).min())
        return torch.stack([torch.stack([p[:least] for p in step]).T.flatten() for step in places])

    def epoch(self, task: int) -> Tensor:
        """The step's training rows in a new order."""
        rows = self.train[task]
        return rows[torch.randperm(len(rows), generator=self.generator)]

    def example(self, task: int, k: int) -> Tensor:
        """The k-th training row of a step (one row), over and over."""
        return self.train[task][k % self.train.shape[1]][None]

    def held(self, task: int) -> Tensor:
        """The step's test rows."""
        return self.test[task]

    def rows(self, task: int, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors and intents."""
        return self.x[rows], self.y[rows]

    def replayed(self, before: int, count: int) -> tuple[Tensor, Tensor]:
        """`count` random examples of the first `before` steps, from 10 kept of each intent."""
        kept = self.train[:before, : KEPT * self.steps.shape[1]].flatten()
        return self.rows(0, kept[torch.randint(len(kept), (count,), generator=self.generator)])
