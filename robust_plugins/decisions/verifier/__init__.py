"""A complete verifier: attack, linear relaxation, then branch and bound over neurons' signs or boxes of inputs."""

from robust_plugins.decisions.verifier.properties import Answer, Halfspaces
from robust_plugins.decisions.verifier.stages import Engine
from robust_plugins.decisions.verifier.verify import verify_property

__all__ = ["Answer", "Engine", "Halfspaces", "verify_property"]
