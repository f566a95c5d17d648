"""Models that ship with the package, and models found by name."""
