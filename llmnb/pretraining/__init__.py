"""Pretraining: tokens, objectives, the optimizer and the loop."""
