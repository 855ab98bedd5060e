"""Checkpoints of the training loop: whole at every moment, and exact to the last bit."""

from __future__ import annotations

import random
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator


@dataclass
class FitResult:
    """Losses per optimizer step (also those before a resume), and evaluations as (step, metrics)."""

    losses: list[float] = field(default_factory=list)
    evaluations: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    steps: int = 0


class Position:
    """Where the loop stands; Accelerate saves it beside model, optimizer, schedule and RNG."""

    def __init__(self) -> None:
        self.step = self.epoch = self.batch = 0
        self.epoch_start: dict[str, Any] = {}
        self.result = FitResult()

    def state_dict(self) -> dict[str, Any]:
        position = {
            "step": self.step,
            "epoch": self.epoch,
            "batch": self.batch,
            "epoch_start": self.epoch_start,
        }
        return {**position, "losses": self.result.losses, "evaluations": self.result.evaluations}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step, self.epoch, self.batch = state["step"], state["epoch"], state["batch"]
        self.epoch_start = state["epoch_start"]
        evaluations = [(int(step), dict(metrics)) for step, metrics in state["evaluations"]]
        self.result = FitResult(list(state["losses"]), evaluations, self.step)


def usable(folder: Path) -> Path | None:
    """The checkpoint to go on from: the newest whole one."""
    return next((p for p in (folder / "last", folder / "before") if p.is_dir()), None)


def save(accelerator: Accelerator, folder: Path) -> None:
    """Write beside, then swap: at every moment one whole checkpoint stands under a final name."""
    writing, last, before = folder / "writing", folder / "last", folder / "before"
    if accelerator.is_main_process:
        shutil.rmtree(writing, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(writing))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        if last.is_dir():
            shutil.rmtree(before, ignore_errors=True)
            last.rename(before)
        writing.rename(last)
    accelerator.wait_for_everyone()


def rng_state() -> dict[str, Any]:
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002
    return {
        "python": random.getstate(),
        "numpy": (kind, np.asarray(keys).tolist(), *rest),
        "torch": torch.get_rng_state(),
    }


def set_rng_state(state: Mapping[str, Any]) -> None:
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.asarray(keys, dtype=np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"].cpu())
