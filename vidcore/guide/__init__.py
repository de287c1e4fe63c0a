"""Guidance: what bends a denoiser towards a condition."""
