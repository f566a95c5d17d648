"""`python -m fewstep`, for `accelerate launch -m fewstep train recipes/digits.toml`."""

from fewstep.cli.main import main

if __name__ == "__main__":
    main()
