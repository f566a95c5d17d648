"""What a run's report says: evaluations once each, whatever is called how often, and means where rows differ."""

from __future__ import annotations

import torch

from fewstep.caching.report import tell
from fewstep.core.memory import Memory, Together


def test_branches_and_rows_of_one_evaluation_count_once():
    memory = Memory(4, (1.0, 0.5), 0.0)
    memory.advance()
    for branch in ("given", "empty"):
        memory.branch(branch).keep("x @0", torch.zeros(4, 8))
        memory.branch(branch).keep("what is no cache's", torch.zeros(4, 8))
        tell(memory.branch(branch), "key", "whole", 1.0)
    tell(memory.branch("given")[:2], "key", "part", 0.25)
    assert memory.report == {"bytes": 2 * 4 * 8 * 4, "whole": 1, "part": 0, "forecast": 0, "cost": 1.0}
    memory.advance()
    memory.branch("given").forget("x @0")
    tell(memory.branch("given"), "key", "part", 0.25)
    tell(memory.branch("empty"), "other", "forecast", None)
    assert memory.report == {"bytes": 2 * 4 * 8 * 4, "whole": 1, "part": 1, "forecast": 1, "cost": 1.25}


def test_rows_that_differ_are_means():
    one, two = Memory(3, (1.0, 0.5), 0.0), Memory(1, (1.0,), 0.0)
    for memory in (one, two):
        memory.advance()
    tell(Together([one, two]), "key", "part", 0.5, [True, False, True, False])
    assert one.report == {"bytes": 0, "whole": 2 / 3, "part": 1 - 2 / 3, "forecast": 0, "cost": 2 / 3 + (1 - 2 / 3) / 2}
    assert two.report == {"bytes": 0, "whole": 0, "part": 1, "forecast": 0, "cost": 0.5}
    one.advance()
    tell(one, "key", "part", None, [True, True, False])
    assert one.report["whole"] == 2 * 4 / 6 and one.report["whole"] + one.report["part"] == 2
