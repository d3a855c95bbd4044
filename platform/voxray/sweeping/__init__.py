"""Searches for the best settings, on kept candidates or by training."""
