"""Records of components that really ran, one for each sample, as a study keeps them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from robust_plugins.balls import Ball
from robust_plugins.benchmark.records import Record, ball_fields
from robust_plugins.decisions.attack import Attack
from support.study_records import record


def answers(
    component: Any, model: nn.Module, x: Tensor, y: Tensor, ball: Ball, *, batch_size: int = 64
) -> list[Record]:
    """What an attack or a certifier says about each sample, in batches of `batch_size`."""
    rows: list[Record] = []
    for start in range(0, len(x), batch_size):
        part = slice(start, start + batch_size)
        attack = isinstance(component, Attack)
        result = component(model, x[part], y[part], ball, **({"seed": 0} if attack else {}))
        others = result.logits.scatter(1, y[part].unsqueeze(1), -torch.inf).amax(1)
        reached = result.logits.gather(1, y[part].unsqueeze(1)).squeeze(1) - others
        for i in range(len(x[part])):
            if attack:
                won = bool(result.success[i])
                said = {
                    "kind": "attack", "verdict": "falsified" if won else "unknown", "success": won,
                    "margin": float(reached[i]), "distance": float(result.distance[i]),
                }  # fmt: skip
            else:
                said = {"kind": "certifier", "verdict": str(result.verdicts[i]), "margin": float(result.margin[i])}
            rows.append(record(
                **said, **ball_fields(ball), sample=start + i, label=int(y[start + i]), batch_size=batch_size,
                component=type(component).__name__, method=type(component).__name__,
            ))  # fmt: skip
    return rows
