"""Evidence: for every method a short, repeatable experiment against what it claims to beat. `python -m claims` runs all."""
