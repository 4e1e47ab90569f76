"""Bounds on gradients over a box of parameters, per sample and summed."""
