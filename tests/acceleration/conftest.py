"""Few candidates: nothing in this room's tests depends on how many there are."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module", autouse=True)
def _few(few_candidates):
    pass
