"""Measures of what a clip shows."""
