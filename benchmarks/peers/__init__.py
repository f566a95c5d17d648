"""fewstep beside diffusers, k-diffusion, azula, deepinv and torchdiffeq: accuracy, distance, cost, in one run."""
