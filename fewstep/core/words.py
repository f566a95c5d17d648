"""Numbers in sentences."""

from __future__ import annotations


def number_of(count: float, thing: str) -> str:
    """A count and what is counted, in the singular or plural: "1 step", "2.5 evaluations"."""
    return f"{count if isinstance(count, int) else f'{count:g}'} {thing}{'' if count == 1 else 's'}"
