"""Linear specifications of the logits: which combinations of them a certifier bounds."""

from __future__ import annotations

from functools import lru_cache

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from robust_plugins.intervals import Interval

TABLE = 64
"""Up to so many classes, the rows of all classes are computed once and kept."""


def margin_spec(
    y: Integer[Tensor, " batch"], classes: int, *, dtype: torch.dtype | None = None
) -> Float[Tensor, "batch margins classes"]:
    """The rows `z_y - z_j` for every class `j != y`, in the order of `j`: shape (batch, classes - 1, classes).

    A certifier that merges these rows into the last linear layer (elision) bounds the margins far tighter than one
    that bounds each logit on its own. Gowal et al. 2018, "On the effectiveness of interval bound propagation",
    section 3.

    >>> rp.margin_spec(torch.tensor([1]), 3)
    tensor([[[-1.,  1.,  0.],
             [ 0.,  1., -1.]]])
    """
    y = y.long()  # indices of one byte would be a mask
    dtype = torch.get_default_dtype() if dtype is None else dtype
    if classes <= TABLE:
        return _table(classes, dtype, y.device)[y]
    return _rows(y, classes, dtype)


def _rows(y: Tensor, classes: int, dtype: torch.dtype) -> Tensor:
    eye = torch.eye(classes, dtype=dtype, device=y.device)
    differences = eye[y].unsqueeze(1) - eye  # row j is e_y - e_j
    wrong = torch.arange(classes, device=y.device) != y.unsqueeze(1)
    return differences[wrong].view(len(y), classes - 1, classes)


@lru_cache(maxsize=8)
def _table(classes: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # kept for callers that differentiate
        return _rows(torch.arange(classes, device=device), classes, dtype)


def apply_spec(logits: Interval, spec: Float[Tensor, "batch rows classes"] | None) -> Interval:
    """Bounds on `spec @ z` from bounds on the logits `z` of shape (batch, classes); `logits` itself for None.

    Sound, and loose: every logit takes its own extreme at once. For certifiers that cannot merge the rows into the
    last layer.

    >>> logits = rp.Interval(torch.tensor([[0.0, 2.0, 0.0]]), torch.tensor([[1.0, 3.0, 1.0]]))
    >>> rp.apply_spec(logits, rp.margin_spec(torch.tensor([1]), 3))
    Interval(lower=tensor([[1., 1.]]), upper=tensor([[3., 3.]]))
    """
    if spec is None:
        return logits
    positive, negative = spec.clamp(min=0), spec.clamp(max=0)
    low, up = logits.lower.unsqueeze(-1), logits.upper.unsqueeze(-1)
    return Interval(
        (positive @ low + negative @ up).squeeze(-1),
        (positive @ up + negative @ low).squeeze(-1),
    )
