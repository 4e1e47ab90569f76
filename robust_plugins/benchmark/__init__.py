"""Comparisons of attacks and certifiers on the same model and inputs."""
