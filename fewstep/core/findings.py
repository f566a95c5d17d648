"""What a check finds: one test with its bound."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One test: its value, its bound, and whether it passed."""

    name: str
    value: float
    bound: float
    ok: bool

    def __str__(self) -> str:
        return f"{'ok   ' if self.ok else 'FAILS'}  {self.name}: {self.value:.3g} (bound {self.bound:.3g})"


def below(name: str, value: float, bound: float) -> Finding:
    """One that passes at its bound or below."""
    return Finding(name, value, bound, value <= bound)
