"""The run-time type checker of the test suite: beartype, with int accepted where float is asked for (PEP 484)."""

from __future__ import annotations

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
