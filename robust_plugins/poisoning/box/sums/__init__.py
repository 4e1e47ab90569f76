"""Sums over the samples of a batch of which some are poisoned, by streaming kernels."""
