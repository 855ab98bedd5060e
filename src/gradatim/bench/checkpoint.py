"""Checkpoints that a kill cannot spoil, and the random state they carry.

A checkpoint is a folder `step-N`. It is written under another name, flushed, and renamed into place, so
that a folder of that name is always whole; older ones go only after that. Files are safetensors or
tensors and plain values that `torch.load(weights_only=True)` accepts: reading one runs no code.
"""

from __future__ import annotations

import os
import random
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import PickleError
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator


def rng_state() -> dict[str, Any]:
    """The global random state of Python, NumPy and torch (with CUDA where it is in use), as plain values."""
    numpy_state: dict[str, Any] = np.random.get_state(legacy=False)  # type: ignore[assignment]  # noqa: NPY002
    return {
        "python": random.getstate(),
        "numpy": {
            **numpy_state,
            "state": {**numpy_state["state"], "key": numpy_state["state"]["key"].tolist()},
        },
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Restore what `rng_state` returned."""
    random.setstate(state["python"])
    key = np.array(state["numpy"]["state"]["key"], dtype=np.uint32)
    np.random.set_state({**state["numpy"], "state": {**state["numpy"]["state"], "key": key}})  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])


@contextmanager
def kept_rng(seed: int | None = None) -> Iterator[None]:
    """Whatever is drawn inside leaves the global random state as it was; `seed` sets it on entry."""
    before = rng_state()
    if seed is not None:
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        torch.manual_seed(seed)
    try:
        yield
    finally:
        set_rng_state(before)


def steps_saved(folder: Path) -> dict[int, Path]:
    """Whole checkpoints under `folder` by step, oldest first."""
    found = {int(m[1]): p for p in folder.glob("step-*") if (m := re.fullmatch(r"step-(\d+)", p.name))}
    return dict(sorted(found.items()))


def remove_checkpoints(folder: Path) -> None:
    """Remove the checkpoints under `folder`, and nothing else."""
    for path in steps_saved(folder).values():
        shutil.rmtree(path)


def save_checkpoint(accelerator: Accelerator, folder: Path, step: int, loop: dict[str, Any]) -> None:
    """Write what the accelerator prepared, and this process's `loop` values, as `folder/step-N`.

    Collective: every process calls it, on a file system they share. Raises TypeError where `loop` holds
    something that could not be read back safely.
    """
    final, aside = folder / f"step-{step}", folder / f".step-{step}.tmp"
    if accelerator.is_main_process:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(aside))
    own = aside / f"loop-{accelerator.process_index}.pt"
    try:
        torch.save(loop, own)
        torch.load(own, weights_only=True)
    except (PickleError, AttributeError, TypeError) as error:
        raise TypeError(
            "a checkpoint holds tensors and plain Python values only; a state_dict() given to fit holds "
            f"something else: {str(error).splitlines()[-1]}"
        ) from error
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        for path in [p for p in aside.rglob("*") if p.is_file()] + [aside]:
            _flush(path)
        os.replace(aside, final)
        _flush(folder)
        for other in steps_saved(folder).values():
            if other != final:
                shutil.rmtree(other)
    accelerator.wait_for_everyone()


def load_checkpoint(accelerator: Accelerator, path: Path) -> dict[str, Any]:
    """Load `path` into what the accelerator prepared; returns this process's `loop` values.

    Raises ValueError where another number of processes wrote it.
    """
    written_by = len(list(path.glob("loop-*.pt")))
    if written_by != accelerator.num_processes:
        raise ValueError(
            f"{path} was written by {written_by} processes and cannot continue bit for bit in "
            f"{accelerator.num_processes}; start as many, or give resume=False"
        )
    accelerator.load_state(str(path))
    loop: dict[str, Any] = torch.load(path / f"loop-{accelerator.process_index}.pt", weights_only=True)
    return loop


def _flush(path: Path) -> None:
    """Force a file or a folder's entries to the disk: a rename may otherwise outlive the data it names."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
