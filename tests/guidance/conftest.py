"""Fixtures of the room."""

from __future__ import annotations

import pytest
from scaled import Scaled


@pytest.fixture
def scaled() -> Scaled:
    return Scaled()
