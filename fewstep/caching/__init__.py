"""Caches: denoisers that reuse parts of earlier evaluations of the same run."""
