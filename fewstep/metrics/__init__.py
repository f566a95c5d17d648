"""Measures of samples: against real data (Frechet distance and kin), against labels, and against a reference run."""
