"""The checkpoint of a stacked training run: one safetensors file, written whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.optim import Optimizer


def save(
    path: Path, run: dict[str, Any], step: int, losses: np.ndarray, flat: Tensor, optimizer: Optimizer
) -> None:
    """Write parameters, optimizer state and losses after `step` steps; `run` names what they belong to."""
    tensors = {"flat": flat.detach().cpu(), "losses": torch.from_numpy(losses.copy())}
    for s, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            if not isinstance(value, Tensor):
                raise ValueError(f"only tensors of an optimizer's state can be saved, got {name}={value!r}")
            tensors[f"optimizer.{s}.{name}"] = value.detach().cpu().contiguous()
    part = path.with_suffix(path.suffix + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, part, metadata={"run": json.dumps(run), "step": str(step)})
    os.replace(part, path)


def load(path: Path, run: dict[str, Any], flat: Tensor, optimizer: Optimizer) -> tuple[int, np.ndarray]:
    """Put the saved state into `flat` and `optimizer`; returns (steps done, their losses [step, S]).

    Raises ValueError where the file belongs to another run.
    """
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        found = json.loads(metadata.get("run", "null"))
        wanted = json.loads(json.dumps(run))
        if found != wanted:
            raise ValueError(f"{path.name} is the checkpoint of another run: {found}, not {wanted}")
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    with torch.no_grad():
        flat.copy_(tensors.pop("flat"))
    losses = tensors.pop("losses").numpy()
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        _, s, name = key.split(".", 2)
        state.setdefault(int(s), {})[name] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    return int(metadata["step"]), losses
