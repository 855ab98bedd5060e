"""Running a program as two processes that talk by gloo."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import torch


def two_processes(program: list[str], case: Any, folder: Path) -> list[Any]:
    """What `python PROGRAM FOLDER RANK` leaves in out0.pt and out1.pt of the folder, given case.pt there."""
    torch.save(case, folder / "case.pt")
    workers = [
        subprocess.Popen(
            [sys.executable, *program, str(folder), str(rank)], stderr=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    errors = [worker.communicate(timeout=300)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], errors
    return [torch.load(folder / f"out{rank}.pt", weights_only=True) for rank in range(2)]
