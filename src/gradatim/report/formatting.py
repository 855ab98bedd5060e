"""Numbers as people read them: as many digits as the interval supports, real minus signs."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gradatim.bench.statistics import Estimate

_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_DASH = "–"


@dataclass(frozen=True)
class Shown:
    """An estimate as text: mean and 95% interval, rounded alike; None where there is no interval.

    `tail` is the power of ten that all three carry, where they carry one.
    """

    mean: str
    low: str | None
    high: str | None
    tail: str = ""

    @property
    def interval(self) -> str:
        """`[low, high]` with a common power of ten, or nothing."""
        if self.low is None or self.high is None:
            return ""
        return f"[{self.low.removesuffix(self.tail)}, {self.high.removesuffix(self.tail)}]{self.tail}"

    def __str__(self) -> str:
        return f"{self.mean} {self.interval}".strip()


def number(x: float | None, digits: int = 3, signed: bool = False) -> str:
    """`x` to `digits` significant digits, without zeros that say nothing; a dash for None.

    Digits before the decimal point are never rounded away.
    """
    if x is None:
        return _DASH
    if not math.isfinite(x):
        return _not_finite(x)
    if x == 0:
        return "0"
    exponent = _exponent(abs(x))
    decimals = digits - 1 - math.floor(math.log10(abs(x)))
    text = _fixed(x, decimals if exponent is not None else max(decimals, 0), exponent, signed)
    tail = _tail(exponent)
    text = text.removesuffix(tail)
    return (text.rstrip("0").rstrip(".") if "." in text else text) + tail


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
    if half == 0:
        return Shown(*(number(v, 6, signed) for v in values))
    # Never more than six significant digits of the largest number: a tiny spread is not precision.
    finest = 5 - math.floor(math.log10(size))
    decimals = min(1 - math.floor(math.log10(half)), finest)
    exponent = _exponent(size)
    texts = [_fixed(v, decimals, exponent, signed) for v in values]
    return Shown(texts[0], texts[1], texts[2], _tail(exponent))


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
        tail = _tail(exponent)
    zero = not text.strip("0.")
    sign = "" if zero else "−" if x < 0 else "+" if signed else ""
    return sign + text + ("" if zero else tail)


def _tail(exponent: int | None) -> str:
    return "" if exponent is None else f" × 10{str(exponent).translate(_SUPERSCRIPT)}"


def _not_finite(x: float) -> str:
    return "not a number" if math.isnan(x) else "−∞" if x < 0 else "∞"
