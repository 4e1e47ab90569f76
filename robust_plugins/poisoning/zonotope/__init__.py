"""Abstract gradient training over zonotopes, which keeps the contraction of gradient descent."""

from robust_plugins.poisoning.zonotope.domain import Zonotope

__all__ = ["Zonotope"]
