"""Measures of samples: against real data, against the labels asked for, and against a reference run."""
