"""Numbers as text."""

import json
from typing import Any


def percent(share: float) -> str:
    """`0.98765` -> `98.77`."""
    return f"{100 * share:.2f}"


def loss(value: float) -> str:
    """`0.123456` -> `0.1235`."""
    return f"{value:.4f}"


def count(number: float) -> str:
    """`11173962` -> `11.17 M`: four digits, where it is not below 1000."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if float(f"{number / size:.4g}") >= 1:
            return f"{number / size:#.4g} {unit}"
    return f"{number:,.0f}"


def rate(number: float) -> str:
    """`1234.5` -> `1,234`, or three digits."""
    return f"{number:,.0f}" if number >= 99.95 else f"{number:#.3g}"


def memory(num_bytes: float) -> str:
    """`1650000000` -> `1.65 GB`."""
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.0f} MB"


def duration(seconds: float) -> str:
    """`76` -> `1 min 16 s`, in two units at most."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def plain(value: Any) -> str:
    """A value of an option, as JSON writes it but without quotation marks."""
    return value if isinstance(value, str) else json.dumps(value)
