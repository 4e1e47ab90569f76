"""What every public call does around a component: arguments, evaluation, memory, progress, checkpoints."""
