"""Networks in ONNX files, through our own importer. Importing this package imports no backend."""

from robust_plugins.adapters.onnx.network import OnnxNetwork, read_classifier, read_network

__all__ = ["OnnxNetwork", "read_classifier", "read_network"]
