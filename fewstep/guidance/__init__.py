"""Guidance: functions from denoiser to denoiser that steer the predictions."""
