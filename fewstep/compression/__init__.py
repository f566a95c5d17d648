"""Smaller networks for the same answers."""
