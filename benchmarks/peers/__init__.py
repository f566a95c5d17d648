"""fewstep beside diffusers, k-diffusion, azula and torchdiffeq: accuracy, sample distance and overhead, in one run."""
