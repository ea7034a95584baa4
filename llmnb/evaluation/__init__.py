"""Measuring language models, and how far to trust the measurement (notebook 05)."""
