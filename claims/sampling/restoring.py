"""Claims of the solvers of restoration: under approximate posteriors, against plain ancestral steps."""

from __future__ import annotations

from claims.restoration.league import beats

CLAIMS = (
    beats("renoise", "under diffpir it is nearer to the posterior than ddpm", "ddpm", "half seen",
          {"method": "diffpir", "solver": "renoise"}, {"method": "diffpir", "solver": "ddpm"}),
    beats("resampled", "under ddnm it is nearer to the posterior than ddpm", "ddpm", "half seen",
          {"method": "ddnm", "solver": "resampled"}, {"method": "ddnm", "solver": "ddpm"}, noise=0.02),
)  # fmt: skip
