"""A differential fuzzer: random models, balls around random inputs, and every certifier of the registry against points.

`python -m support.fuzzing --minutes 60 --seed 0`, run from `tests/`, looks for violations for an hour.
"""
