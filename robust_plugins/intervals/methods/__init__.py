"""Methods that run over the graph: interval propagation, linear relaxation, affine forms, gradients of losses."""
