"""A small layer of every type that has rules, with the shape of its input."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robust_plugins.intervals.layers import (  # fmt: skip
    Add,
    Cat,
    Choose,
    Clamp,
    Constant,
    Contraction,
    Extreme,
    Index,
    Largest,
    Length,
    LogSumExp,
    Moved,
    Multiply,
    Permute,
    Pointwise,
    Power,
    Product,
    Ranked,
    Reduce,
    Reshape,
    Scale,
    Shift,
    Step,
    WeightedMean,
)


class Constants(nn.Module):
    """One synthetic layer with a parameter, as tracing would find it in a forward method."""

    def __init__(self, kind: str, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.kind, self.value = kind, nn.Parameter(torch.ones(shape))

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "constant":
            return torch.where(torch.arange(x.shape[2]) > 0, x, self.value)
        if self.kind == "contraction":
            return x @ self.value
        if self.kind == "contraction from the left":
            return self.value @ x
        if self.kind == "scale":
            return x * self.value
        return x + self.value if self.kind == "shift" else x - self.value


class Two(nn.Module):
    """Two paths through monotone functions, joined by a call."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.first, self.second = kind, nn.Tanh(), nn.Softplus()

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.first(x), self.second(x)
        if self.kind == "cat":
            return torch.cat((a, b), 1)
        if self.kind == "choose":
            return torch.where(torch.arange(a.shape[1]) % 2 == 0, a, b)
        if self.kind == "product":
            return a @ b.transpose(1, 2)
        if self.kind == "outer product":
            return torch.einsum("bi,bj->bij", a, b)
        if self.kind == "weighted mean":
            return (2 * x).softmax(-1) @ b
        if self.kind == "multiply":
            return a * b
        if self.kind == "clamp":
            return torch.clamp(a, min=b - 1, max=b)
        if self.kind in ("maximum", "minimum"):
            return getattr(torch, self.kind)(a, b)
        return a + b if self.kind == "add" else a - b


class Positive(nn.Module):
    """A function of values above zero."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name, self.first = name, nn.Softplus()

    def forward(self, x: Tensor) -> Tensor:
        a = self.first(x) + 0.2
        return a ** float(self.name) if self.name[0] in "-012" else getattr(torch, self.name)(a)


class Steep(nn.Module):
    """A layer of a multiple of its input, which so reaches beyond the layer's kinks."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layer(4 * x)
        return result


EXAMPLES: list[tuple[type[nn.Module], nn.Module, tuple[int, ...]]] = [
    (nn.Linear, nn.Linear(4, 3), (4,)),
    (nn.Linear, nn.Linear(4, 3, bias=False), (2, 4)),
    (nn.Conv1d, nn.Conv1d(2, 3, 3, padding="same"), (2, 5)),
    (nn.Conv1d, nn.Conv1d(4, 2, 2, stride=2, groups=2), (4, 5)),
    (nn.Conv2d, nn.Conv2d(2, 2, 3, stride=2, padding=1), (2, 4, 4)),
    (nn.Conv2d, nn.Conv2d(2, 4, (2, 3), padding=(0, 2), dilation=(2, 1), groups=2, bias=False), (2, 4, 3)),
    (nn.Conv2d, nn.Conv2d(1, 2, (2, 4), padding="same"), (1, 3, 4)),
    (nn.Conv2d, nn.Conv2d(1, 2, 3, padding=1, padding_mode="reflect"), (1, 3, 3)),
    (nn.Conv1d, nn.Conv1d(1, 2, 4, padding="same", padding_mode="circular"), (1, 4)),
    (nn.Conv3d, nn.Conv3d(2, 2, (1, 2, 2), stride=(1, 2, 1), padding=(0, 1, 0), groups=2), (2, 2, 2, 3)),
    (nn.Conv3d, nn.Conv3d(1, 2, 2, dilation=(1, 1, 2)), (1, 2, 3, 4)),
    (nn.ConvTranspose1d, nn.ConvTranspose1d(2, 2, 3, stride=2, padding=1, output_padding=1), (2, 3)),
    (nn.ConvTranspose2d, nn.ConvTranspose2d(2, 4, 2, stride=(2, 1), groups=2, bias=False), (2, 2, 3)),
    (nn.ConvTranspose2d, nn.ConvTranspose2d(1, 2, 3, padding=1, dilation=2), (1, 3, 3)),
    (nn.ConvTranspose3d, nn.ConvTranspose3d(1, 2, (1, 2, 2), stride=2), (1, 1, 2, 2)),
    (nn.BatchNorm1d, nn.BatchNorm1d(3), (3,)),
    (nn.BatchNorm1d, nn.BatchNorm1d(2, affine=False), (2, 4)),
    (nn.BatchNorm2d, nn.BatchNorm2d(2), (2, 2, 3)),
    (nn.BatchNorm3d, nn.BatchNorm3d(2), (2, 1, 2, 2)),
    (nn.LayerNorm, nn.LayerNorm(4), (4,)),
    (nn.LayerNorm, nn.LayerNorm((2, 2), eps=0.1, bias=False), (2, 2, 2)),
    (nn.LayerNorm, nn.LayerNorm(70, elementwise_affine=False), (70,)),
    (nn.RMSNorm, nn.RMSNorm(3), (2, 3)),
    (nn.RMSNorm, nn.RMSNorm(4, eps=0.1, elementwise_affine=False), (4,)),
    (nn.GroupNorm, nn.GroupNorm(2, 4), (4, 2)),
    (nn.InstanceNorm1d, nn.InstanceNorm1d(2), (2, 3)),
    (nn.InstanceNorm2d, nn.InstanceNorm2d(2, affine=True), (2, 2, 2)),
    (nn.InstanceNorm2d, nn.InstanceNorm2d(2, affine=True, track_running_stats=True), (2, 1, 2)),
    (nn.InstanceNorm3d, nn.InstanceNorm3d(1), (1, 2, 1, 2)),
    (nn.ReLU, nn.ReLU(), (5,)),
    (nn.LeakyReLU, nn.LeakyReLU(0.1), (5,)),
    (nn.LeakyReLU, nn.LeakyReLU(-0.3), (5,)),
    (nn.ELU, nn.ELU(), (5,)),
    (nn.ELU, nn.ELU(1.7), (5,)),
    (nn.ELU, nn.ELU(0.4), (5,)),
    (nn.Softplus, nn.Softplus(), (5,)),
    (nn.Softplus, nn.Softplus(2.0, 0.5), (5,)),
    (nn.GELU, nn.GELU(), (5,)),
    (nn.GELU, nn.GELU("tanh"), (5,)),
    (nn.SiLU, nn.SiLU(), (5,)),
    (nn.Sigmoid, nn.Sigmoid(), (5,)),
    (nn.Tanh, nn.Tanh(), (5,)),
    (nn.Hardtanh, nn.Hardtanh(-0.7, 0.4), (5,)),
    (nn.ReLU6, nn.ReLU6(), (5,)),
    (Clamp, Clamp(-0.5, 0.8), (5,)),
    (Clamp, Clamp(0.1, None), (5,)),
    (Clamp, Clamp(None, 0.1), (5,)),
    (Step, Step(0.2), (5,)),
    (nn.SELU, nn.SELU(), (5,)),
    (nn.CELU, nn.CELU(0.6), (5,)),
    (nn.CELU, nn.CELU(-1.3), (5,)),
    (nn.Mish, nn.Mish(), (5,)),
    (nn.Hardswish, nn.Hardswish(), (7,)),
    (nn.Hardsigmoid, Steep(nn.Hardsigmoid()), (5,)),
    (nn.Softsign, nn.Softsign(), (5,)),
    (nn.Tanhshrink, nn.Tanhshrink(), (5,)),
    (nn.LogSigmoid, nn.LogSigmoid(), (5,)),
    (nn.Softshrink, nn.Softshrink(0.4), (5,)),
    (nn.Hardshrink, nn.Hardshrink(0.4), (5,)),
    (nn.Threshold, nn.Threshold(0.2, -0.5), (5,)),
    (nn.Threshold, nn.Threshold(-0.2, 0.7), (5,)),
    (nn.RReLU, nn.RReLU(), (5,)),
    (nn.PReLU, nn.PReLU(), (5,)),
    (nn.PReLU, nn.PReLU(3), (3, 2)),
    (Pointwise, Pointwise("abs"), (5,)),
    (Pointwise, Pointwise("exp"), (5,)),
    (Pointwise, Pointwise("sin"), (5,)),
    (Pointwise, Pointwise("cos"), (5,)),
    (Pointwise, Pointwise("erf"), (5,)),
    (Pointwise, Pointwise("atan"), (5,)),
    (Pointwise, Pointwise("floor"), (5,)),
    (Pointwise, Positive("log"), (4,)),
    (Pointwise, Positive("sqrt"), (4,)),
    (Pointwise, Positive("rsqrt"), (4,)),
    (Pointwise, Positive("reciprocal"), (4,)),
    (Power, Power(2.0), (5,)),
    (Power, Power(3.0), (5,)),
    (Power, Positive("-2"), (4,)),
    (Power, Positive("1.5"), (4,)),
    (Power, Positive("0.5"), (4,)),
    (nn.Softmax, nn.Softmax(-1), (4,)),
    (nn.Softmax, nn.Softmax(1), (3, 2)),
    (nn.LogSoftmax, nn.LogSoftmax(-1), (4,)),
    (nn.LogSoftmax, nn.LogSoftmax(1), (3, 2)),
    (nn.MaxPool1d, nn.MaxPool1d(2, padding=1), (2, 5)),
    (nn.MaxPool2d, nn.MaxPool2d(2, stride=1, dilation=2), (2, 4, 4)),
    (nn.MaxPool2d, nn.MaxPool2d(3, 2, 1, ceil_mode=True), (1, 4, 5)),
    (nn.MaxPool3d, nn.MaxPool3d((1, 2, 2), 1), (1, 1, 2, 3)),
    (nn.AvgPool1d, nn.AvgPool1d(2, padding=1), (2, 5)),
    (nn.AvgPool2d, nn.AvgPool2d(2, stride=1, padding=1, count_include_pad=False), (2, 3, 3)),
    (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool1d(2), (2, 5)),
    (nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool2d((None, 2)), (1, 2, 5)),
    (nn.AvgPool3d, nn.AvgPool3d((1, 2, 2), 1, padding=(0, 1, 0)), (1, 2, 2, 3)),
    (nn.AdaptiveAvgPool3d, nn.AdaptiveAvgPool3d((1, 2, 1)), (1, 2, 3, 2)),
    (nn.Upsample, nn.Upsample(scale_factor=2), (1, 2, 3)),
    (nn.Upsample, nn.Upsample(5, mode="linear", align_corners=True), (2, 3)),
    (nn.Upsample, nn.Upsample((3, 5), mode="bilinear"), (1, 2, 3)),
    (nn.Fold, nn.Fold((3, 2), 2), (4, 2)),
    (nn.Flatten, nn.Flatten(), (2, 3)),
    (nn.Unflatten, nn.Unflatten(1, (2, 3)), (6,)),
    (nn.ZeroPad1d, nn.ZeroPad1d((1, 2)), (2, 3)),
    (nn.ZeroPad2d, nn.ZeroPad2d(1), (1, 2, 2)),
    (nn.ZeroPad3d, nn.ZeroPad3d(1), (1, 1, 1, 2)),
    (nn.ConstantPad1d, nn.ConstantPad1d((0, 2), 0.7), (2, 3)),
    (nn.ConstantPad2d, nn.ConstantPad2d(1, -1.0), (1, 2, 2)),
    (nn.ConstantPad3d, nn.ConstantPad3d((0, 1, 0, 0, 0, 0), 2.0), (1, 1, 2, 2)),
    (nn.ReflectionPad1d, nn.ReflectionPad1d((2, 1)), (2, 3)),
    (nn.ReflectionPad2d, nn.ReflectionPad2d(1), (1, 2, 3)),
    (nn.ReflectionPad3d, nn.ReflectionPad3d(1), (1, 2, 2, 2)),
    (nn.ReplicationPad1d, nn.ReplicationPad1d(2), (1, 3)),
    (nn.ReplicationPad2d, nn.ReplicationPad2d((1, 0, 2, 0)), (1, 2, 2)),
    (nn.ReplicationPad3d, nn.ReplicationPad3d((1, 0, 0, 1, 0, 0)), (1, 1, 2, 2)),
    (nn.CircularPad1d, nn.CircularPad1d((1, 2)), (1, 3)),
    (nn.CircularPad2d, nn.CircularPad2d(1), (1, 2, 2)),
    (nn.CircularPad3d, nn.CircularPad3d((1, 0, 0, 0, 0, 0)), (1, 1, 2, 2)),
    (nn.PixelShuffle, nn.PixelShuffle(2), (4, 1, 2)),
    (nn.PixelUnshuffle, nn.PixelUnshuffle(2), (1, 2, 2)),
    (nn.ChannelShuffle, nn.ChannelShuffle(2), (4, 1, 2)),
    (nn.Unfold, nn.Unfold(2, padding=1), (1, 2, 2)),
    (nn.Identity, nn.Identity(), (3,)),
    (nn.Dropout, nn.Dropout(), (3,)),
    (nn.Dropout1d, nn.Dropout1d(), (2, 3)),
    (nn.Dropout2d, nn.Dropout2d(), (2, 2, 2)),
    (nn.Dropout3d, nn.Dropout3d(), (1, 2, 2, 2)),
    (nn.FeatureAlphaDropout, nn.FeatureAlphaDropout(), (2, 2)),
    (nn.AlphaDropout, nn.AlphaDropout(), (3,)),
    (Reshape, Reshape((3, 2)), (6,)),
    (Permute, Permute((0, 2, 1)), (2, 3)),
    (Index, Index((slice(0, 3, 2), -1)), (4, 2)),
    (Reduce, Reduce((1, 2), False, True), (2, 3)),
    (Reduce, Reduce((-1,), True, False), (2, 3)),
    (Scale, Constants("scale", (3, 1)), (3, 2)),
    (Scale, Constants("scale", (2, 3, 1)), (1, 3, 2)),
    (Shift, Constants("shift", (3, 1)), (3, 2)),
    (Shift, Constants("subtract", ()), (3,)),
    (Add, Two("add"), (3,)),
    (Add, Two("subtract"), (3,)),
    (Multiply, Two("multiply"), (3,)),
    (Product, Two("product"), (2, 3)),
    (Product, Two("outer product"), (2,)),
    (WeightedMean, Two("weighted mean"), (3, 3)),
    (Extreme, Two("maximum"), (3,)),
    (Extreme, Two("minimum"), (3,)),
    (Extreme, Two("clamp"), (3,)),
    (Largest, Largest((1, 2), False), (2, 3)),
    (Largest, Largest((2,), True, least=True), (2, 3)),
    (Largest, Largest((2,), False, first=True), (2, 4)),
    (Largest, Largest((2,), False, least=True, first=True), (2, 2)),
    (Ranked, Ranked(1, (3, 0, 2, 1)), (4,)),
    (Ranked, Ranked(2, (1,)), (2, 3)),
    (Length, Length((1,), False), (4,)),
    (Length, Length((1, 3), True), (2, 2, 2)),
    (LogSumExp, LogSumExp((1,), False), (4,)),
    (LogSumExp, LogSumExp((1, 3), True), (2, 2, 2)),
    (Cat, Two("cat"), (3,)),
    (Choose, Two("choose"), (4,)),
    (Moved, Moved(torch.roll, 1, 1), (4,)),
    (Moved, Moved(torch.tile, (1, 2)), (3,)),
    (Constant, Constants("constant", (2, 1)), (2, 3)),
    (Contraction, Constants("contraction", (3, 2)), (2, 3)),
    (Contraction, Constants("contraction from the left", (2, 3)), (3, 2)),
]
