"""Training as torch does it, on clean data and on poisoned ones."""
