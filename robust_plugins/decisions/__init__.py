"""Whether some input of the ball changes the decision: attacks, certifiers, and their results."""
