"""Models as a server runs them, and a server, shared by the tests."""

from __future__ import annotations

from collections.abc import Iterator

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


@pytest.fixture(scope="package")
def served() -> Iterator[object]:
    """digits and shapes behind HTTP, to the bit the same whatever shares a call."""
    from serving.http import live

    from fewstep.serving.models import Models
    from fewstep.serving.served import Limits
    from fewstep.serving.service import Service

    models = Models({"digits": "digits", "shapes": "shapes"}, load, exact=True, max_batch=16)
    with live(Service(models, Limits(samples=20, steps=50))) as running:
        yield running
