"""What runs over the graph: interval propagation, linear relaxation, affine forms, gradients of losses."""
