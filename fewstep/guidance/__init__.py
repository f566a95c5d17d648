"""Guidance: functions from denoiser to denoiser that steer what is predicted."""
