"""What a denoiser may be conditioned on besides state and time: labels, captions, pictures, numbers."""
