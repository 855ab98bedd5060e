"""Numbers as people read them: as many digits as the interval supports, real minus signs."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gradatim.bench.statistics import Estimate

_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_DASH = "–"


@dataclass(frozen=True)
class Shown:
    """An estimate as text: mean and 95% interval, rounded alike; None where there is no interval."""

    mean: str
    low: str | None
    high: str | None

    @property
    def interval(self) -> str:
        """`[low, high]`, or nothing."""
        return "" if self.low is None else f"[{self.low}, {self.high}]"

    def __str__(self) -> str:
        return f"{self.mean} {self.interval}".strip()


def number(x: float | None, digits: int = 3, signed: bool = False) -> str:
    """`x` to `digits` significant digits; a dash for None."""
    if x is None:
        return _DASH
    if not math.isfinite(x):
        return _not_finite(x)
    if x == 0:
        return "0"
    return _fixed(x, digits - 1 - math.floor(math.log10(abs(x))), _exponent(abs(x)), signed)


def shown(e: Estimate, signed: bool = True) -> Shown:
    """An estimate to two significant digits of its interval's half-width."""
    if e.mean is None:
        return Shown(_DASH, None, None)
    if e.low is None or e.high is None:
        return Shown(number(e.mean, signed=signed), None, None)
    return rounded(e.mean, e.low, e.high, signed)


def rounded(mean: float, low: float, high: float, signed: bool = True) -> Shown:
    """Mean and bounds with the same number of decimals, set by the width of the interval."""
    values = (mean, low, high)
    if not all(math.isfinite(v) for v in values):
        return Shown(*(number(v, signed=signed) for v in values))
    size = max(abs(v) for v in values)
    half = (high - low) / 2
    if size == 0:
        return Shown("0", "0", "0")
    # Never more than six significant digits of the largest number: a tiny spread is not precision.
    finest = 5 - math.floor(math.log10(size))
    wanted = 1 - math.floor(math.log10(half)) if half > 0 else finest
    decimals = min(wanted, finest)
    exponent = _exponent(size)
    return Shown(*(_fixed(v, decimals, exponent, signed) for v in values))


def probability(p: float | None) -> str:
    """A p-value: `0.013`, or `< 0.0001`."""
    if p is None:
        return _DASH
    if p < 1e-4:
        return "< 0.0001"
    return f"{p:.2f}" if p >= 0.1 else f"{p:.{1 - math.floor(math.log10(p))}f}"


def duration(seconds: float) -> str:
    """`41 s`, `3 min 20 s`, `2 h 5 min`."""
    s = max(0, round(seconds))
    if s < 60:
        return f"{s} s"
    if s < 3600:
        return f"{s // 60} min" + (f" {s % 60} s" if s % 60 else "")
    return f"{s // 3600} h" + (f" {s % 3600 // 60} min" if s % 3600 // 60 else "")


def count(n: int, noun: str, plural: str = "") -> str:
    """`1 seed`, `12 seeds`."""
    return f"{n:,} {noun if n == 1 else plural or noun + 's'}".replace(",", " ")


def _exponent(size: float) -> int | None:
    """Power of ten to factor out, or None where plain decimals read well."""
    power = math.floor(math.log10(size))
    return None if -4 < power < 6 else power


def _fixed(x: float, decimals: int, exponent: int | None, signed: bool) -> str:
    if exponent is None:
        # Decimals below zero round away digits the interval does not support.
        text = f"{abs(round(x, decimals)):.{max(decimals, 0)}f}"
        tail = ""
    else:
        text = f"{abs(x) / 10.0**exponent:.{min(max(decimals + exponent, 0), 5)}f}"
        tail = f" × 10{str(exponent).translate(_SUPERSCRIPT)}"
    zero = not text.strip("0.")
    sign = "" if zero else "−" if x < 0 else "+" if signed else ""
    return sign + text + ("" if zero else tail)


def _not_finite(x: float) -> str:
    return "not a number" if math.isnan(x) else "−∞" if x < 0 else "∞"
