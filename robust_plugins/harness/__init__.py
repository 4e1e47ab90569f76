"""Every public call does this around a component: arguments, evaluation, memory, progress, checkpoints."""
