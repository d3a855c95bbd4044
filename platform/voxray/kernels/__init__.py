"""Kernels of our own, where no library computes a thing as fast."""
