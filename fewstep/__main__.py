"""`python -m fewstep`, for `accelerate launch -m fewstep train recipes/digits.toml`."""

from __future__ import annotations

from fewstep.cli.main import main

if __name__ == "__main__":
    main()
