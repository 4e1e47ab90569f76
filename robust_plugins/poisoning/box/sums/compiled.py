"""The sums of `streaming.Deviations` by compiled kernels, on the CPU."""

from __future__ import annotations

import ctypes
import itertools
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from robust_plugins.intervals import Interval, rounding
from robust_plugins.poisoning.box.sums import _kernels
from robust_plugins.poisoning.box.sums.per_sample import Outer, PerSample
from robust_plugins.poisoning.box.sums.streaming import Deviations

_INSERTION = 8
"""Up to this k, sorted lists are faster than bisection."""
_PARALLEL = 2**20
"""The number of values D from which on threads pay."""


def deviations(
    terms: Sequence[tuple[float, PerSample]], *, offset: float, floor: float, samples: int, memory: int
) -> Deviations:
    """`Deviations` of the terms, by compiled kernels where these can be used.

    They take linear layers on inputs of one axis, and other terms whose D fit into memory. Other devices than the CPU,
    other dtypes than float32 and float64, and values that may overflow are left to torch.
    """
    terms = tuple((float(sign), g) for sign, g in terms)
    plain = Deviations(terms, offset, floor, samples, memory)
    like = plain.first.like
    usable = like.device.type == "cpu" and like.dtype in (torch.float32, torch.float64)
    if not usable or (library := _kernels.library()) is None:
        return plain
    if all(isinstance(g, Outer) for _, g in terms):
        if not _bounded(plain):
            return plain
        if rounding.active():
            terms, offset = _widened(plain)
        return Compiled(terms, offset, floor, samples, memory, library, None)
    if 2 * plain.first.batch * plain.first.shape.numel() * like.element_size() > memory:
        return plain
    values = _stored(plain, library)
    return Compiled(terms, offset, floor, samples, memory, library, values) if bool(values.isfinite().all()) else plain


@dataclass(frozen=True, eq=False)
class Compiled(Deviations):
    """`values`, (2, batch, rows, columns), holds D where not all terms are linear layers.

    Rows and columns are then the parameter's entries in any arrangement, padded at the end.
    """

    library: ctypes.CDLL
    values: Tensor | None

    def sums(self) -> Tensor:
        """The sum over the samples."""
        return self._run("sums", 1)[0]

    def topk(self, k: int) -> Tensor:
        """The sum of the k largest, k at most the batch."""
        return self._run("insertion" if k <= _INSERTION else "bisection", 1, k=k)[0]

    def moments(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The sums of D and of its square, and the smallest and largest D. An empty batch: 0, 0, inf, -inf."""
        total, squares, low, high = self._run("moments", 4)
        return total, squares, low, high

    def excess(self, t: Float[Tensor, "2 *parameter"]) -> tuple[Tensor, Tensor]:
        """`sum (D - t)^+` and the number of `D > t`, for thresholds t of shape (2, *shape)."""
        over, count = self._run("excess", 2, thresholds=t)
        return over, count

    def _run(self, name: str, count: int, *, k: int | None = None, thresholds: Tensor | None = None) -> list[Tensor]:
        """Calls a kernel for both ends: `count` results of shape (2, *shape)."""
        like, size = self.first.like, self.first.shape.numel()
        if self.values is None:
            rows, width = self.first.shape
            columns = _padded(width, self.library, like)
        else:
            rows, width = self.values.shape[2:]
            columns = width

        def arranged(t: Tensor) -> Tensor:
            if self.values is None:
                return F.pad(t, (0, columns - width)).contiguous()
            return F.pad(t.reshape(2, size), (0, rows * columns - size)).view(2, rows, columns)

        def restored(t: Tensor) -> Tensor:
            kept = t[..., :width] if self.values is None else t.reshape(2, -1)[:, :size]
            return kept.reshape(2, *self.first.shape)

        results = like.new_empty(2, count, rows, columns)
        levels = None if thresholds is None else arranged(thresholds)
        kernel = self.library[f"{name}_{str(like.dtype).removeprefix('torch.')}"]
        alive: list[Tensor] = []
        calls: list[Callable[[int, int], object]] = []
        for end in (0, 1):
            problem = self._problem(end, rows, columns, alive)
            extra: list[object] = []
            if k is not None:
                extra.append(ctypes.c_int64(k))
            if levels is not None:
                extra.append(ctypes.c_void_p(levels[end].data_ptr()))
            calls.append(_bound(kernel, problem, results[end], extra))
        _divided(calls, rows, self.first.batch * rows * columns)
        return [restored(results[:, i]) for i in range(count)]

    def _problem(self, end: int, rows: int, columns: int, alive: list[Tensor]) -> _kernels.Problem:
        """One end's problem; `alive` keeps the tensors that it points to."""
        if self.values is not None:
            return _kernels.Problem(
                None, self.values[end].data_ptr(), 0, self.first.batch, rows, columns, self.offset, self.floor
            )
        terms = []
        for sign, g in self.terms:
            assert isinstance(g, Outer)
            delta, a = g.scaled, g.activation
            # The largest of -d a over d in [l, u] is the largest of d a over d in [-u, -l].
            ends = (delta.lower, delta.upper) if end else (-delta.upper, -delta.lower)
            low = F.pad(a.lower, (0, columns - a.shape[1])).contiguous()
            up = low if a.is_point else F.pad(a.upper, (0, columns - a.shape[1])).contiguous()
            tensors = [ends[0].contiguous(), ends[1].contiguous(), low, up]
            alive.extend(tensors)
            clip = math.inf if g.clip is None else g.clip
            terms.append(_kernels.Term(*(t.data_ptr() for t in tensors), sign, clip, int(bool((low >= 0).all()))))
        array = (_kernels.Term * len(terms))(*terms)
        return _kernels.Problem(array, None, len(terms), self.first.batch, rows, columns, self.offset, self.floor)


def _bound(
    kernel: Callable[..., object], problem: _kernels.Problem, results: Tensor, extra: list[object]
) -> Callable[[int, int], object]:
    return lambda first, last: kernel(
        ctypes.byref(problem), ctypes.c_int64(first), ctypes.c_int64(last), ctypes.c_void_p(results.data_ptr()), *extra
    )


def _divided(calls: Sequence[Callable[[int, int], object]], rows: int, work: int) -> None:
    """Makes the calls for all rows, by as many threads as torch uses; the kernels run without Python's lock."""
    threads = min(torch.get_num_threads(), rows)
    if threads == 1 or work < _PARALLEL:
        for call in calls:
            call(0, rows)
        return
    with ThreadPoolExecutor(threads) as pool:
        cuts = [i * rows // threads for i in range(threads + 1)]
        for done in [pool.submit(call, *cut) for call in calls for cut in itertools.pairwise(cuts)]:
            done.result()


def _padded(width: int, library: ctypes.CDLL, like: Tensor) -> int:
    lanes = int(library.vector_bytes()) // like.element_size()
    return width + -width % lanes


def _stored(plain: Deviations, library: ctypes.CDLL) -> Tensor:
    """All D, as the kernels read them: as many rows as threads."""
    size, batch = plain.first.shape.numel(), plain.first.batch
    rows = max(min(torch.get_num_threads(), size), 1)
    columns = _padded(-(-size // rows), library, plain.first.like)
    values = plain.first.like.new_zeros(2, batch, rows * columns)
    per_row = plain.first.shape[1:].numel()
    for block, parts in plain.parts():
        start = 0
        for part in parts:
            n = part.shape[1]
            values[:, start : start + n, block.start * per_row : block.stop * per_row] = part.reshape(2, n, -1)
            start += n
    return values.view(2, batch, rows, columns)


def _widened(plain: Deviations) -> tuple[tuple[tuple[float, PerSample], ...], float]:
    """Terms and offset with the allowance for rounding of `Deviations.part`: magnitudes are products of magnitudes."""
    like = plain.first.like
    kappa = rounding.kappa(plain.samples + len(plain.terms), like.dtype)
    slack: list[tuple[float, PerSample]] = []
    for sign, g in plain.terms:
        assert isinstance(g, Outer)
        delta, activation = g.scaled.magnitude, g.activation.magnitude
        around_zero = Outer(Interval(-delta, delta), Interval.point(activation), clip=g.clip)
        slack.append((kappa * abs(sign), around_zero))
    offset = plain.offset + kappa * abs(plain.offset) + rounding.underflow(plain.samples, like.dtype)
    return (*plain.terms, *slack), offset


def _bounded(plain: Deviations) -> bool:
    """Whether no product, difference or sum over the batch can overflow: comparisons with NaN would drop samples."""
    largest = abs(plain.offset)
    for sign, g in plain.terms:
        assert isinstance(g, Outer)
        factors = [g.delta, g.activation] if g.scale is None else [g.delta, g.activation, g.scale]
        largest += abs(sign) * math.prod(float(f.magnitude.max()) for f in factors if f.lower.numel())
    return 4 * (plain.first.batch + 1) * largest < torch.finfo(plain.first.like.dtype).max  # False for NaN
