"""Small studies, and components that hang, crash or fail; other processes import them from here."""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import robust_plugins as rp


@dataclass(frozen=True, kw_only=True)
class Moody(rp.Attack):
    """Returns random points, after `seconds`, or does what `mood` says."""

    mood: str = ""
    seconds: float = 0.0

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, ball: rp.Ball, *, targeted: bool) -> Tensor:
        time.sleep(self.seconds)
        if self.mood == "hangs":
            time.sleep(1000)
        elif self.mood == "crashes" or (self.mood == "crashes on some" and bool((x[:, 0] > 0.69).any())):
            os.kill(os.getpid(), signal.SIGSEGV)
        elif self.mood == "prints":
            print("words", flush=True)
            os.write(1, b"bytes\n")
        elif self.mood == "moves":
            model.to("meta")
        elif self.mood == "doubles":
            model.double()
        elif self.mood == "forks":
            os.fork()  # and both go on
        elif self.mood == "settles in":
            os.chdir("/")
            sys.path.append("/nowhere")
            sys.setrecursionlimit(500)
            torch.use_deterministic_algorithms(True)
            torch.autograd.set_detect_anomaly(True)
            torch.set_default_dtype(torch.float64)
            torch.set_num_threads(3)
            torch.manual_seed(7)
        elif self.mood == "cannot say":
            raise type("OddError", (Exception,), {"__str__": lambda self: 1})
        elif self.mood == "interrupts":
            raise KeyboardInterrupt
        elif self.mood == "leaves":
            raise SystemExit(0)
        elif self.mood == "tells":
            raise RuntimeError(f"process {os.getpid()}")
        elif self.mood == "fails":
            raise MemoryError("no memory left")
        return ball.project(x + torch.randn_like(x), x)


class Moods:
    """A plugin with the attack above."""

    @rp.hookimpl
    def register_attacks(self, register: Any) -> None:
        register("test:moody", Moody)


def data(count: int = 12) -> rp.Dataset:
    """Points in the unit cube, in three classes."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(count, 4, generator=generator)
    return rp.Dataset(
        name="points", x_train=x, y_train=(3 * x[:, 0]).long(), x_test=x, y_test=(3 * x[:, 0]).long(), classes=3,
        clip=(0.0, 1.0),
    )  # fmt: skip


def network(seed: int = 0) -> nn.Module:
    """A small network on them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


def study(folder: Path, **changes: Any) -> rp.Study:
    """A study of 12 samples in two balls by an attack that draws and a certifier, 5 at a time: 60 records."""
    keys: dict[str, Any] = {
        "models": [{"name": "net", "source": network()}],
        "data": [{"name": "points", "source": data(), "samples": 12}],
        "balls": [{"eps": [0.05, 0.2]}],
        "components": [{"use": "test:moody"}, {"use": "interval:ibp"}],
        "store": str(folder / "s.sqlite"),
        "run": {"batch_size": 5, "isolate": False},
    }
    return rp.Study(**keys | changes)


TIMES = ("seconds", "backend_seconds", "created")


def answers(found: rp.Study) -> dict[str, dict[str, Any]]:
    """All records by identity, without their times."""
    with found.store() as store:
        columns = store.columns()
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    assert len({row["identity"] for row in rows}) == len(rows)
    return {row["identity"]: {k: v for k, v in row.items() if k not in TIMES} for row in rows}
