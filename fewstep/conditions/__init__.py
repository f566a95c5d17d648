"""What a denoiser may be told beside state and time: labels, captions, pictures, numbers."""
