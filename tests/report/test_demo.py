"""The demo's page from figures alone."""

from __future__ import annotations

import re

import pytest
import torch

from fewstep.report.demo import diverged, page, pictured
from fewstep.report.page import render


def row(name, nfe, error, asked=None):
    return {
        "name": name, "timesteps": "log-snr", "asked_nfe": asked or nfe, "planned_nfe": nfe,
        "actual_nfe": None if error is None else nfe, "seconds": 0.5, "endpoint": error, "median": error,
        "frechet": None if error is None else 0.5 + error, "accuracy": 0.9,
    }  # fmt: skip


@pytest.fixture
def result():
    reference = row("reference", 100, 0.0) | {"endpoint": None, "median": None}
    rows = [reference, row("ddim", 4, 0.3), row("ddim", 20, 0.1), row("wild", 4, 7.5), row("wild", 20, None)]
    rows += [row("accelerated", 4, 0.03), row("student", 1, 0.2)]
    return {
        "model": "digits", "parameters": 5, "n": 90, "seed": 0, "timesteps": "log-snr", "fast_nfe": 4,
        "student": "student", "reference_nfe": 100, "reference_error": 0.001, "features": "pixels",
        "floor": {"value": 0.4, "n": 90},
        "validation": {"value": 0.4, "n": 30}, "rows": rows, "seconds": 72.4, "cpu_seconds": 80.2,
        "accelerate": {"rows": [{"role": "learned", "name": "learned from x", "planned_nfe": 4, "n": 90,
                                 "endpoint": 0.03, "frechet": 0.5}], "figures": {}, "notes": ["A note."]},
        "machine": {"torch": "2"},
    }  # fmt: skip


@pytest.fixture
def html(result):
    return render(page(result, [torch.zeros(3, 1, 8, 8)] * len(result["rows"])))


def test_diverged_samplers_are_folded_away_with_a_reason(result, html):
    assert [diverged(one) for one in result["rows"]] == [False, False, False, True, True, False, False]
    (folded,) = re.findall(r"<details>.*?</details>", html, re.DOTALL)
    summary = re.search(r"<summary>(.*?)</summary>", folded).group(1)
    assert summary.startswith("2 of 7 samplers diverged (wild): their samples are not finite, or farther")
    assert folded.count(">wild<") == 2 and "7.50" in folded
    assert "wild" not in html.replace(folded, "")


def test_without_diverged_samplers_nothing_is_folded(result):
    result["rows"] = [one for one in result["rows"] if one["name"] != "wild"]
    assert "<details>" not in render(page(result, [torch.zeros(3, 1, 8, 8)] * len(result["rows"])))


def test_the_accelerated_plan_is_marked_in_plots_pictures_and_tables(html):
    assert html.count("var(--mark)") > 4
    marked = re.findall(r'<tr class="marked">\s*<t[hd][^>]*>([^<]*)<', html)
    assert marked == ["accelerated, 4", "accelerated", "learned from x"]


def test_pictures_are_large_enough_to_tell_a_digit(html):
    (rule,) = re.findall(r"\.pictures img \{([^}]*)\}", html)
    assert float(re.search(r"min-width: ([\d.]+)rem", rule).group(1)) * 16 >= 48
    assert ".sharp { image-rendering: pixelated; }" in html and 'class="sharp"' in html


def test_both_clocks_are_told(html, result):
    facts = dict(re.findall(r"<dt>([^<]*)</dt><dd>([^<]*)</dd>", html))
    assert facts["seconds in all"] == "72" and facts["CPU seconds in all"] == "80"
    assert pictured(result) == [0, 5, 2, 1, 6]
