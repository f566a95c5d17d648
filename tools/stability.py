"""Draw docs/images/stability.png: where multistep solvers of order 4 are stable, and what damping buys.


do not grow.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fewstep.core.check import amplification
from fewstep.core.plan import Plan
from fewstep.processes.ve import VE
from fewstep.sampling.build import plan
from fewstep.sampling.heavy_ball import heavy_ball

ROOT = Path(__file__).resolve().parents[1]
H, STEPS = 0.1, 100


def late(made: Plan, z: np.ndarray) -> np.ndarray:
    """The plan's growth in the long run: the amplification of its last states, which the start no longer reaches."""
    return amplification(made, z / H, last=20)


def main() -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    process = VE(sigma_min=1e-12, sigma_max=80.0)
    times = [process.time(-2.0 + H * i) for i in range(STEPS + 1)]
    real, imaginary = np.meshgrid(np.linspace(-0.3, 1.6, 191), np.linspace(-1.2, 1.2, 241))
    z = real + 1j * imaginary
    figure, axes = plt.subplots(1, 2, figsize=(9.0, 4.2), sharey=True, layout="constrained")
    cases = (
        (
            "ghvb-4 by its damping",
            [(f"{b:g}", plan(process, "ghvb-4", timesteps=times, beta=b)) for b in (1.0, 0.7, 0.4)],
        ),
        (
            "plms with heavy ball",
            [(f"{b:g}", heavy_ball(plan(process, "plms", timesteps=times), b)) for b in (1.0, 0.7, 0.4)],
        ),
    )
    for axis, (title, plans) in zip(axes, cases, strict=True):
        for (label, made), colour in zip(plans, ("#444444", "#1f77b4", "#d95f02"), strict=True):
            axis.contour(real, imaginary, late(made, z), levels=[1.0], colors=[colour])
            axis.plot([], [], color=colour, label=label if label != "1" else "1: undamped")
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("real part of k h")
        axis.axhline(0, color="#bbbbbb", linewidth=0.6)
        axis.axvline(0, color="#bbbbbb", linewidth=0.6)
        axis.legend(frameon=False, fontsize=9)
    axes[0].set_ylabel("imaginary part of k h")
    figure.savefig(ROOT / "docs" / "images" / "stability.png", dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    main()
