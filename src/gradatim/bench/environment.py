"""Where a figure was measured: versions, processor and commit, and nothing that names a person."""

from __future__ import annotations

import os
import platform
import subprocess
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

SHOWN = (
    "gradatim", "torch", "numpy", "scipy", "scikit-learn", "transformers", "sentence-transformers",
    "accelerate",
)  # fmt: skip
KEYED = ("torch", "numpy")


def keyed_versions() -> dict[str, str]:
    """Versions that are part of a trial's key: another torch means another measurement."""
    return {name: _version(name) or "absent" for name in KEYED}


@lru_cache(maxsize=1)
def environment() -> dict[str, Any]:
    """Versions, Python, processor, cores, system and commit of this process."""
    return {
        "versions": {name: v for name in SHOWN if (v := _version(name))},
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "commit": _commit(),
    }


@lru_cache(maxsize=64)
def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.lower().startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    here = Path(__file__).resolve().parent
    try:
        head = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True, text=True, timeout=5, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return head.stdout.strip() or None
