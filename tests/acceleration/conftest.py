"""Few candidates: the whole list takes its time, and nothing here depends on its length."""

from __future__ import annotations

import pytest

from fewstep.searching import candidates

FEW = ["ddim", "dpmpp-2m", "dpmpp-3m", "unipc-2", "vab-3", "plms"]


@pytest.fixture(scope="module", autouse=True)
def few_candidates():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(candidates, "_tried", lambda: FEW)
        yield
