"""Checkpoints of a training: everything that decides how it goes on."""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path
from typing import Any

import torch

from robust_plugins.errors import ArgumentError

NAME = "last.pt"
"""The file in the checkpoint folder."""


def save(folder: Path, state: dict[str, Any]) -> None:
    """Writes `state` and all random states; an interruption leaves the checkpoint before."""
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / f"{NAME}.part"
    torch.save(state | {"random": _random_states()}, unfinished)
    os.replace(unfinished, folder / NAME)


def read(folder: Path) -> dict[str, Any] | None:
    """The state saved last; None where there is none. Read without unpickling code.

    Raises ArgumentError for a file that `save` did not write.
    """
    path = folder / NAME
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises what its reader happens to meet
        raise unusable(folder, "it cannot be read") from error
    if not isinstance(state, dict) or "random" not in state:
        raise unusable(folder, "it is no checkpoint of this package")
    return state


def restore(state: dict[str, Any]) -> None:
    """Sets all random states to those of a checkpoint that was read."""
    _restore(state["random"])


def unusable(folder: Path, why: str) -> ArgumentError:
    """The error for a checkpoint that cannot be gone on from."""
    return ArgumentError(
        "checkpoint", f"{str(folder / NAME)!r}: {why}", accepted="a folder that this training wrote, or an empty one",
        hint="Name another folder, or delete the file to begin anew.",
    )  # fmt: skip


def _random_states() -> dict[str, Any]:
    numpy = sys.modules.get("numpy")
    name, keys, *rest = numpy.random.get_state() if numpy else ("", [], 0, 0, 0.0)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        "python": random.getstate(),
        "numpy": (name, [int(key) for key in keys], *rest),
    }


def _restore(states: dict[str, Any]) -> None:
    torch.set_rng_state(states["torch"])
    if states["cuda"]:
        torch.cuda.set_rng_state_all(states["cuda"])
    random.setstate(states["python"])
    numpy = sys.modules.get("numpy")
    if numpy and states["numpy"][0]:
        numpy.random.set_state(states["numpy"])
