"""Properties of networks in VNN-LIB."""

from robust_plugins.adapters.onnx.properties.formulas import Row
from robust_plugins.adapters.onnx.properties.property import Case, Property, read_property

__all__ = ["Case", "Property", "Row", "read_property"]
