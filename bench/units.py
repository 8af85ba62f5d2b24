"""Numbers as people read them."""

from __future__ import annotations

_LARGE = ("", "k", "M", "G", "T", "P")
_SMALL = ("s", "ms", "µs", "ns")


def si(value: float, unit: str = "") -> str:
    """Write a count with three significant digits and an SI prefix: 200704 is "201 k"; below 1000 it stays whole."""
    if abs(value) < 1000 and float(value).is_integer():
        return f"{value:.0f} {unit}".rstrip()
    step = 0
    while abs(value) >= 999.5 and step < len(_LARGE) - 1:
        value /= 1000
        step += 1
    return f"{three_digits(value)} {_LARGE[step]}{unit}".rstrip()


def seconds(value: float) -> str:
    """Write a duration with three significant digits: 0.00123 is "1.23 ms"."""
    step = 0
    while value < 0.9995 and step < len(_SMALL) - 1:
        value *= 1000
        step += 1
    return f"{three_digits(value)} {_SMALL[step]}"


def percent(fraction: float) -> str:
    """Write a fraction as a percentage, with two digits where it is small: 0.0031 is "0.31%"."""
    return f"{fraction:.2%}" if fraction < 0.00995 else f"{fraction:.1%}" if fraction < 0.0995 else f"{fraction:.0%}"


def three_digits(value: float) -> str:
    """Write a number with three significant digits, but whole from 100 on."""
    size = abs(value)
    decimals = 0 if size >= 99.95 else 1 if size >= 9.995 else 2
    return f"{value:.{decimals}f}"
