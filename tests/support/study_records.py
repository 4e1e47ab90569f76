"""Records of a study that never ran: samples with a true radius each, attacks above it and certifiers below it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from robust_plugins.benchmark.records import Record


def record(**given: Any) -> Record:
    """One record of a certifier in an L-infinity ball of radius 0.1, but for what is given."""
    fields: dict[str, Any] = {
        "model": "small", "data": "digits", "sample": 0, "norm": "linf", "eps": 0.1, "clip": "[0.0,1.0]",
        "component": "bounds", "method": "mylab:bounds", "kind": "certifier", "seed": 0, "verdict": "unknown",
        "label": 3, "prediction": 3, "model_hash": "m", "input_hash": "x", "component_hash": "", "batch_size": 64,
    }  # fmt: skip
    fields |= given
    if fields["kind"] == "clean":
        fields |= {"norm": "", "eps": 0.0, "clip": "", "component": "clean", "method": "clean"}
    fields["component_hash"] = fields["component_hash"] or f"hash of {fields['component']}"
    fields["input_hash"] = given.get("input_hash", f"{fields['data']} {fields['sample']}")
    fields["model_hash"] = given.get("model_hash", fields["model"])
    return Record(**fields)


def synthetic(
    samples: int,
    *,
    models: Sequence[str] = ("plain", "robust", "certified"),
    data: Sequence[str] = ("digits",),
    radii: Sequence[float] = (0.02, 0.05, 0.1, 0.2),
    attacks: Sequence[str] = ("fgsm", "pgd", "strong"),
    certifiers: Sequence[str] = ("ibp", "crown", "complete"),
    seed: int = 0,
) -> list[Record]:
    """`len(models) * len(data) * samples * (1 + len(radii) * (len(attacks) + len(certifiers)))` sound records.

    Later models are more robust and less accurate; later attacks and certifiers are better. A few have no answer.
    """
    rng = np.random.default_rng(seed)
    rows: list[Record] = []
    for m, model in enumerate(models):
        for name in data:
            true = rng.gamma(2.0, 0.03 * (m + 1), samples)
            right = rng.random(samples) < 0.99 - 0.03 * m
            for i in range(samples):
                label, other, size = int(i % 10), int((i + 1) % 10), float(true[i])
                common = {"model": model, "data": name, "sample": i, "label": label}
                wrong = {"prediction": other, "verdict": "falsified"}
                clean = {"prediction": label, "verdict": "unknown", "margin": 30 * size} if right[i] else wrong
                rows.append(record(**common, kind="clean", seconds=1e-4, **clean))
                size = size if right[i] else 0.0
                for eps in radii:
                    for a, attack in enumerate(attacks):
                        reach = size * (1 + 0.5 / 4**a)  # where this attack begins to succeed
                        found, margin = right[i] and eps < reach, 30 * (reach - eps)
                        rows.append(record(
                            **common, kind="attack", component=attack, method=f"mylab:{attack}", eps=eps,
                            success=not found, verdict="unknown" if found else "falsified", queries=40,
                            margin=max(margin, 1e-3) if found else min(margin, -1e-3), distance=eps,
                            loss=float(np.exp(-margin)), prediction=label if found else other,
                            seconds=float(rng.exponential(0.01 * (a + 1))), backend_seconds=0.005,
                        ))  # fmt: skip
                    for c, certifier in enumerate(certifiers):
                        proved = size * (0.3 + 0.5 * c / max(len(certifiers) - 1, 1))
                        complete = c == len(certifiers) - 1
                        verdict = "falsified" if not right[i] else "certified" if eps < proved else "unknown"
                        if verdict == "unknown" and complete:
                            verdict = "falsified" if eps >= size and rng.random() < 0.7 else "timeout"
                        slow = 0.002 * 4**c
                        error = "stopped after 2 s" if verdict == "timeout" else ""
                        if c == 0 and rng.random() < 0.01:
                            verdict, error = "error", "MemoryError: 3 GiB were not there"
                        answered = verdict not in ("error", "timeout")
                        rows.append(record(
                            **common, component=certifier, method=f"mylab:{certifier}", eps=eps, verdict=verdict,
                            margin=30 * (proved - eps) if answered and right[i] else None, error=error,
                            distance=eps if verdict == "falsified" and right[i] else None,
                            seconds=2.0 if verdict == "timeout" else float(rng.exponential(slow)),
                            parameters='{"timeout":2.0}' if complete else "{}",
                        ))  # fmt: skip
    return rows
