"""Text that no manual contains: brackets, sums and program source, to see how a language model leaves home.

The Dyck language follows "Energy-Based Transformers are Scalable Learners and Thinkers" (Gladstone et al.
2025, arXiv 2507.02092), whose authors score models trained on web text on the Dyck task of BIG-bench.
"""

from __future__ import annotations

import sysconfig
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import torch

BRACKETS = ("()", "[]", "{}", "<>")


def dyck_text(
    length: int,
    generator: torch.Generator,
    *,
    kinds: int = 4,
    p_open: float = 0.5,
    max_depth: int = 7,
    max_symbols: int = 30,
) -> str:
    """Lines of balanced brackets with a space after each, "( [ ] ) < >", at least `length` characters in all.

    Each symbol opens with probability `p_open` (always at depth 0, never at `max_depth`), one of `kinds`
    brackets uniformly; otherwise the innermost bracket is closed. A line ends at the first return to depth
    0 after half of `max_symbols`, and from there on opens nothing.

    Raises ValueError for kinds outside 1..4, p_open outside [0, 1], a depth or a length below 1.
    """
    if not 1 <= kinds <= len(BRACKETS):
        raise ValueError(f"kinds must be 1 to {len(BRACKETS)}, got {kinds}")
    if not 0 <= p_open <= 1:
        raise ValueError(f"p_open must be a probability, got {p_open}")
    if min(max_depth, length, max_symbols) < 1:
        raise ValueError(
            f"length, max_depth and max_symbols must be at least 1, got {length}, {max_depth}, {max_symbols}"
        )
    lines: list[str] = []
    size = 0
    while size < length:
        stack: list[str] = []
        symbols: list[str] = []
        while stack or len(symbols) < max_symbols // 2:
            drawn, kind = _uniform(generator), _whole(kinds, generator)
            free = len(symbols) < max_symbols // 2
            if not stack or (free and len(stack) < max_depth and drawn < p_open):
                symbols.append(BRACKETS[kind][0])
                stack.append(BRACKETS[kind][1])
            else:
                symbols.append(stack.pop())
        lines.append(" ".join(symbols))
        size += len(lines[-1]) + 1
    return "\n".join(lines) + "\n"


def arithmetic_text(length: int, generator: torch.Generator, *, max_value: int = 99) -> str:
    """Lines like "17 + 5 = 22" with +, - and *, at least `length` characters in all.

    Raises ValueError for a length or max_value below 1.
    """
    if min(length, max_value) < 1:
        raise ValueError(f"length and max_value must be at least 1, got {length} and {max_value}")
    operations: tuple[tuple[str, Callable[[int, int], int]], ...] = (
        ("+", lambda a, b: a + b),
        ("-", lambda a, b: a - b),
        ("*", lambda a, b: a * b),
    )
    lines: list[str] = []
    size = 0
    while size < length:
        a, b = _whole(max_value + 1, generator), _whole(max_value + 1, generator)
        sign, operation = operations[_whole(3, generator)]
        lines.append(f"{a} {sign} {b} = {operation(a, b)}")
        size += len(lines[-1]) + 1
    return "\n".join(lines) + "\n"


def python_source_text(length: int, generator: torch.Generator) -> str:
    """Pieces of the running Python's own standard library, each the start of a random file, `length` in all.

    What it gives depends on the version of Python. Raises ValueError for a length below 1.
    """
    if length < 1:
        raise ValueError(f"length must be at least 1, got {length}")
    files, piece = _sources(), 1024
    parts: list[str] = []
    size = 0
    while size < length:
        text = files[_whole(len(files), generator)]
        start = _whole(max(1, len(text) - piece), generator)
        parts.append(text[start : start + piece])
        size += len(parts[-1])
    return "".join(parts)[:length]


FORMAL_TEXTS: dict[str, Callable[[int, torch.Generator], str]] = {
    "dyck": dyck_text,
    "arithmetic": arithmetic_text,
    "python": python_source_text,
}
"""The three by name; each takes a length and a generator."""


@lru_cache(maxsize=1)
def _sources() -> tuple[str, ...]:
    folder = Path(sysconfig.get_paths()["stdlib"])
    # pydoc_data holds the help texts that models are trained on.
    files = sorted(p for p in folder.glob("*.py") if p.stat().st_size > 4096)
    return tuple(p.read_text(encoding="utf-8", errors="replace") for p in files)


def _whole(n: int, generator: torch.Generator) -> int:
    return int(torch.randint(n, (), generator=generator))


def _uniform(generator: torch.Generator) -> float:
    return float(torch.rand((), generator=generator))
