"""Proofs of complete verification, for `robust_plugins.proof_check` to check."""

from robust_plugins.decisions.verifier.proofs.recording import Notes
from robust_plugins.decisions.verifier.proofs.writing import NO_PROOF, label_property, proof_file, property_of

__all__ = ["NO_PROOF", "Notes", "label_property", "proof_file", "property_of"]
