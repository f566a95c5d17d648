"""The types every room stands on: Process, Prediction, Denoiser, the symbolic trace, the Plan and its executor."""
