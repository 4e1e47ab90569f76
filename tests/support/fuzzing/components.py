"""The components of the registry that take part: all, and those that round outward besides."""

from __future__ import annotations

import robust_plugins as rp


def certifiers() -> dict[str, rp.Certifier]:
    """Every certifier that can run here, by name."""
    found = {}
    for info in rp.certifiers():
        if info.status == "loaded":
            # An optimised bound is sound at every step, and a search at every moment.
            fewer = {"steps": 3, "root_steps": 3, "timeout": 2.0, "stages": ("interval:ibp", "interval:crown")}
            few = {name: value for name, value in fewer.items() if name in info.parameters}
            found[info.name] = rp.certifier(info.name, **few)
            if "outward" in info.parameters:
                found[f"{info.name}(outward=True)"] = rp.certifier(info.name, outward=True)
    return found


def explanation_certifiers() -> dict[str, rp.ExplanationCertifier]:
    """Every explanation certifier that can run here, by name."""
    found = {}
    for info in rp.explanation_certifiers():
        if info.status == "loaded":
            found[info.name] = rp.explanation_certifier(info.name)
            if "outward" in info.parameters:
                found[f"{info.name}(outward=True)"] = rp.explanation_certifier(info.name, outward=True)
    return found
