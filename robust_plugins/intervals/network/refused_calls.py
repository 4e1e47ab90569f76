"""Calls that have no bounds, and what to write instead."""

from __future__ import annotations

from typing import Any

import torch

from robust_plugins.intervals.network.calls import Build, Emit, _ArgumentsError, _means

TRANSFORMS = (
    torch.fft.fft, torch.fft.ifft, torch.fft.rfft, torch.fft.irfft, torch.fft.fft2, torch.fft.ifft2, torch.fft.rfft2,
    torch.fft.irfft2, torch.fft.fftn, torch.fft.ifftn, torch.fft.rfftn, torch.fft.irfftn, torch.stft, torch.istft,
    "stft", "istft",
)  # fmt: skip


def _refused(why: str) -> Build:
    def build(emit: Emit, *_: Any, like: Any, **__: Any) -> int:
        raise _ArgumentsError(why)

    return build


_means(*TRANSFORMS)(
    _refused(
        "complex numbers have no bounds; multiply by matrices of cosines and of sines instead, as in h @ c and h @ s "
        "with the buffers c and s = torch.fft.fft(torch.eye(n)).real and .imag"
    )
)
_means(torch.linalg.det, torch.det, "det", torch.linalg.inv, torch.inverse, "inverse", torch.linalg.solve)(
    _refused("matrices that depend on the input are neither inverted nor solved for; invert constant ones alone")
)
