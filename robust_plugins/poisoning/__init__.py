"""Certificates against poisoned training data: abstract gradient training, attacks, and the bracket of both."""
