"""Checks proofs of complete verification, without the search and the engine that found them."""

from robust_plugins.proof_check.checking import check
from robust_plugins.proof_check.reading import ProofError, network, records

__all__ = ["ProofError", "check", "network", "records"]
