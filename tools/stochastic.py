"""Measures stochastic solvers on the zoo, and writes docs/stochastic.json: what `auto-sde` is chosen by.

`python tools/stochastic.py` draws samples with each solver, rule and number of evaluations on problems whose law is
known, and takes their sliced Wasserstein distance from it, over that of exact samples of the law. About a quarter of an
hour of one core.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fewstep.core.files import write

FIGURES = Path(__file__).resolve().parents[1] / "docs" / "stochastic.json"
SOLVERS = (
    "ddpm", "dpmpp-2m-sde", "dpmpp-3m-sde", "dpmpp-2s-sde", "sa-solver", "dpm-2-ancestral", "dpmpp-2s-ancestral",
    "shift-ancestral",
)  # fmt: skip
RULES = ("log-snr", "karras", "quadratic", "short", "admissible")
COUNTS = (4, 5, 6, 8, 10, 15, 20, 30, 50)
USUAL = "dpmpp-2m-sde on karras"  # what other libraries' users take
SAMPLES = 1024
EVERY = 2  # so manieth of the mixtures learned from, and numbers in a sample of all, at most
LARGEST = 64


def problems() -> Iterator[tuple[str, bool, Any, Any, float]]:
    """(name, judging, model, exact samples, the distance of others of the law from them)."""
    import torch

    from fewstep.denoisers.gaussian_mixture import GaussianMixture
    from fewstep.metrics.sliced_wasserstein import sliced_wasserstein
    from fewstep.searching.zoo import zoo

    found = [species for species in zoo() if species.family in ("mixtures", "gaussians", "steep mixtures")]
    learned = [species for species in found if not species.judging][::EVERY]
    for species in learned + [species for species in found if species.judging]:
        model = species.make()
        assert isinstance(model, GaussianMixture)
        if math.prod(model.shape or ()) > LARGEST:
            continue
        exact, other = (model.sample(SAMPLES, seed=seed).to(torch.float32) for seed in (1, 2))
        yield species.name, species.judging, model, exact, sliced_wasserstein(other, exact).value


def measure() -> list[dict[str, Any]]:
    import torch

    from fewstep.core.noise import Noise
    from fewstep.metrics.sliced_wasserstein import sliced_wasserstein
    from fewstep.sampling.auto import spectrum
    from fewstep.sampling.build import fixed_plan

    rows = []
    for name, judging, model, exact, floor in problems():
        noise = Noise(0, 0).normal(0, (SAMPLES, *(model.shape or ())), dtype=torch.float32)
        for count in COUNTS:
            ratios = {}
            for solver in SOLVERS:
                for rule in RULES:
                    try:
                        samples = fixed_plan(model.process, solver, nfe=count, timesteps=rule)(model, noise, seed=0)
                        found = sliced_wasserstein(samples, exact).value
                    except ValueError:  # too few evaluations for this solver, or it diverged
                        continue
                    ratios[f"{solver} on {rule}"] = float(f"{max(found / floor, 1.0):.4g}")
            about = {"problem": name, "judging": judging, "spectrum": spectrum(model), "evaluations": count}
            rows.append(about | {"ratios": ratios})
        print(name, flush=True)
    return rows


def means(rows: list[dict[str, Any]], count: int, judging: bool) -> dict[str, float]:
    """Geometric means over the problems, of what has a figure on each of them, best first."""
    chosen = [row["ratios"] for row in rows if row["evaluations"] == count and row["judging"] == judging]
    names = set.intersection(*(set(ratios) for ratios in chosen))
    found = {name: math.exp(sum(math.log(ratios[name]) for ratios in chosen) / len(chosen)) for name in names}
    return dict(sorted(found.items(), key=lambda item: (item[1], item[0])))


def lines(figures: dict[str, Any]) -> list[str]:
    """The table of docs/choose.md."""
    from fewstep.sampling.auto import automatic_sde

    rows = ["| evaluations | taken | distance | best of all | " + USUAL + " |", "| --- " * 5 + "|"]
    for count in COUNTS:
        found = means(figures["rows"], count, True)
        taken = " on ".join(automatic_sde(count))
        best = next(iter(found))
        rows.append(f"| {count} | {taken} | {found[taken]:.3g} | {found[best]:.3g} ({best}) | {found[USUAL]:.3g} |")
    return rows


def main() -> None:
    import torch

    torch.set_num_threads(1)
    rows = measure()
    write(FIGURES, json.dumps({"samples": SAMPLES, "rows": rows}).replace('{"problem"', '\n{"problem"') + "\n")
    for count in COUNTS:
        for judging in (False, True):
            print(count, "judging" if judging else "learning", list(means(rows, count, judging).items())[:5])


if __name__ == "__main__":
    main()
