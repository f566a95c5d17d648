"""`python -m fewstep`, for `accelerate launch -m fewstep train digits`."""

from __future__ import annotations

from fewstep.cli.main import main

if __name__ == "__main__":
    main()
