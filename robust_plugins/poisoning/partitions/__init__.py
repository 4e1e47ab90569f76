"""Certificates against poisoned training data for any learner: models of disjoint partitions that vote."""
