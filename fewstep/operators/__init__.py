"""What a measurement does to a sample, `y = A(x) + noise`: masks, blurs, fewer pixels, projections and so on.

Every class of a card here is a name of this room, `fewstep.operators.Downsample`, imported on first use.
"""

from __future__ import annotations

from typing import Any

from fewstep.core.errors import suggest
from fewstep.core.methods import methods


def __getattr__(name: str) -> Any:
    if name.startswith("_"):
        raise AttributeError(f"module 'fewstep.operators' has no attribute {name!r}")
    known = {card.use: card for card in methods(room="operators")}
    if name not in known:
        raise AttributeError(str(suggest("operator", name, known)))
    value = globals()[name] = known[name].load()
    return value


def __dir__() -> list[str]:
    return [*globals(), *(card.use for card in methods(room="operators"))]
