"""Models as a server runs them, shared by the tests."""

from __future__ import annotations

import pytest

from fewstep.hub.models import load
from fewstep.serving.served import Served


@pytest.fixture(scope="session")
def digits() -> Served:
    return Served(load("digits"))


@pytest.fixture(scope="session")
def exact_digits() -> Served:
    return Served(load("digits"), exact=True)


@pytest.fixture(scope="session")
def shapes() -> Served:
    return Served(load("shapes"))
