"""When a method acts and by how much, as the host knows it."""

from __future__ import annotations

import math

from fewstep.core.memory import Memory
from fewstep.guidance.parts import Guide, Rule, Source, level
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM


def memory(t: float | None) -> Memory:
    made = Memory(1, () if t is None else (t,), 0.0)
    made.advance()
    return made


def guide(scale, zero=1.0, interval=None) -> Guide:
    return Guide(Source(), Rule(), scale, zero, interval, ("own", {}))


def test_weights_count_from_one():
    assert guide(3.0).weight(EDM(), None) == 3 and guide(3.0, zero=0.0).weight(EDM(), None) == 4
    assert guide(0.6, zero=None).weight(EDM(), None) == 0.6
    ramp = guide(lambda log_snr: -log_snr, zero=0.0)
    assert ramp.weight(EDM(), None) is None and ramp.weight(EDM(), memory(None)) is None
    assert math.isclose(ramp.weight(EDM(), memory(4.0)), 1 + math.log(4.0))


def test_an_interval_of_noise_levels():
    one = guide(3.0, interval=(0.5, 2.0))
    assert guide(3.0).acts(EDM(), None) is True and one.acts(EDM(), None) is None
    assert [one.acts(EDM(), memory(t)) for t in (0.4, 0.5, 2.0, 2.1)] == [False, True, True, False]
    assert one.acts(EDM(), memory(None)) is None
    assert one.acts(Flow(), memory(0.5)) is True and one.acts(Flow(), memory(1.0)) is False
    assert level(Flow(), 1.0) == math.inf and level(EDM(), 3.0) == 3.0
