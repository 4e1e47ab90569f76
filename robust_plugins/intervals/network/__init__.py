"""A model, traced into a graph of layers."""
