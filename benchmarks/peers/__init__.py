"""Accuracy beside diffusers, k-diffusion and azula on exact problems: the adapter to the harness, and its summary."""
