"""Data sets: what they are (shape, value range, classes) and how they are opened."""
