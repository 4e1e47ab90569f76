"""Bounds on the input gradient of a network, and on what is made of it."""
