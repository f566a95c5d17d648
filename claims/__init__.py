"""Evidence: a short, repeatable experiment for every method, against what it claims to beat (`python -m claims`)."""
