"""What a distilled model says of itself, and where students begin."""

from __future__ import annotations

import json
import math

import pytest

from fewstep.core.student import NO_NEGATIVE, Student, check_unguided, default_start, spoken_guidance
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP


def test_its_configuration_is_json():
    student = Student("map", "ctm", "digits", start=3.3, iterations=100, evaluations=1.5e6)
    assert Student.from_config(json.loads(json.dumps(student.config()))) == student
    listed = Student("jump", "dmd2", times=[1.0, 0.5, 0.1])
    assert listed.times == (1.0, 0.5, 0.1) and listed.first == 1.0 and student.first == 3.3
    assert Student.from_config(json.loads(json.dumps(listed.config()))) == listed
    assert Student("denoiser", "progressive").first is None


@pytest.mark.parametrize(
    "wrong,message",
    [
        ({"kind": "maps"}, "did you mean 'map'"),
        ({"times": (0.1, 0.5)}, r"times must be at least one and decrease, got \[0.1, 0.5\]"),
        ({"times": ()}, "at least one"),
        ({"times": (2.0, 0.5), "start": 3.0}, "the first of the times is the start, got start=3"),
        ({"start": math.inf}, "start must be finite"),
        ({"guidance": math.nan}, "guidance must be finite"),
        ({"guidance": (4.0, 1.0)}, r"guidance must be finite, one scale or a range that rises, got \[4.0, 1.0\]"),
        ({"guidance": "strong"}, "guidance must be"),
        ({"iterations": -1}, "iterations must be a whole number of at least 0"),
        ({"method": 3}, "method must be a text"),
    ],
)
def test_bad_input(wrong, message):
    with pytest.raises(ValueError, match=message):
        Student(**{"kind": "jump", "method": "dmd2"} | wrong)


def test_bad_configurations():
    with pytest.raises(ValueError, match="field of a student"):
        Student.from_config({"kind": "map", "method": "ctm", "started": 1.0})
    with pytest.raises(ValueError, match="a student needs 'method'"):
        Student.from_config({"kind": "map"})


def test_the_start_is_where_the_noise_is_nearly_seven_times_the_data():
    assert default_start(EDM(), 0.75) == pytest.approx(5.0)
    assert default_start(EDM(), 0.3) == pytest.approx(2.0)
    for process in (VP(), Flow()):
        t = default_start(process, 0.6)
        assert process.sigma(t) / process.alpha(t) == pytest.approx(4.0)
    assert default_start(EDM(), 100.0) == EDM().t_max  # which is nearer to the data
    assert Flow().t_max > default_start(Flow(), 1e3) > 0.999
    # In pictures larger than 8 pixels a side the ratio grows with the side; clips have theirs last as well.
    for shape, times in (((64,), 1), ((1, 8, 8), 1), ((3, 4, 4), 1), ((3, 32, 32), 4), ((8, 3, 16, 16), 2)):
        assert default_start(EDM(), 0.3, shape=shape) == pytest.approx(2.0 * times)


def test_guidance_inside_is_a_scale_or_a_range():
    told = Student("denoiser", "guided", guidance=[1, 4])
    assert told.guidance == (1.0, 4.0) and Student.from_config(json.loads(json.dumps(told.config()))) == told
    assert spoken_guidance(told.guidance) == "1 to 4" and spoken_guidance(2.5) == "2.5"
    check_unguided(Student("denoiser", "kd")), check_unguided(None)
    with pytest.raises(ValueError, match=r"inside \(scale 2, by 'kd'\): sample it as it is, or guide its teacher"):
        check_unguided(Student("jump", "kd", guidance=2.0))
    with pytest.raises(ValueError, match=r"inside \(scale 1 to 4, by 'guided'\): say its scale, guidance=1, in place"):
        check_unguided(told)
    with pytest.raises(ValueError, match="by 'guided'.: it leads away from the empty condition alone"):
        check_unguided(told, NO_NEGATIVE)
