"""Abstract gradient training: bounds on the parameters through every update."""
