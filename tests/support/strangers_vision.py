"""More models of images as people copy or write them, one building block each: nothing is written for this package."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Bottleneck(nn.Module):
    expansion = 2

    def __init__(self, inplanes: int, planes: int, stride: int = 1, downsample: nn.Module | None = None) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inplanes, planes, 1, bias=False), nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, 1, bias=False)
        self.bn2, self.bn3 = nn.BatchNorm2d(planes), nn.BatchNorm2d(planes * self.expansion)
        self.conv3 = nn.Conv2d(planes, planes * self.expansion, 1, bias=False)
        self.relu, self.downsample = nn.ReLU(inplace=True), downsample

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += identity
        return self.relu(out)


class ResNet50(nn.Module):
    """A stem with max-pooling, bottlenecks made by a method, adaptive pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.inplanes = 2
        self.conv1, self.bn1 = nn.Conv2d(3, 2, 3, stride=1, padding=1, bias=False), nn.BatchNorm2d(2)
        self.relu, self.maxpool = nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
        self.layer1, self.layer2 = self._make_layer(2, 1), self._make_layer(2, 2, stride=2)
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d((1, 1)), nn.Linear(4, 3)
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")

    def _make_layer(self, planes: int, blocks: int, stride: int = 1) -> nn.Sequential:
        downsample = None
        if stride != 1 or self.inplanes != planes * Bottleneck.expansion:
            downsample = nn.Sequential(
                nn.Conv2d(self.inplanes, planes * Bottleneck.expansion, 1, stride, bias=False),
                nn.BatchNorm2d(planes * Bottleneck.expansion),
            )
        layers = [Bottleneck(self.inplanes, planes, stride, downsample)]
        self.inplanes = planes * Bottleneck.expansion
        layers += [Bottleneck(self.inplanes, planes) for _ in range(1, blocks)]
        return nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.avgpool(self.layer2(self.layer1(x)))
        return self.fc(torch.flatten(x, 1))


class ConvBNReLU(nn.Sequential):
    def __init__(self, inp: int, out: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> None:
        padding = (kernel - 1) // 2
        super().__init__(
            nn.Conv2d(inp, out, kernel, stride, padding, groups=groups, bias=False),
            nn.BatchNorm2d(out),
            nn.ReLU6(inplace=True),
        )


class MobileBlock(nn.Module):
    def __init__(self, inp: int, oup: int, stride: int, expand_ratio: int) -> None:
        super().__init__()
        hidden = round(inp * expand_ratio)
        self.use_res_connect = stride == 1 and inp == oup
        layers: list[nn.Module] = [] if expand_ratio == 1 else [ConvBNReLU(inp, hidden, kernel=1)]
        layers += [ConvBNReLU(hidden, hidden, stride=stride, groups=hidden)]
        layers += [nn.Conv2d(hidden, oup, 1, bias=False), nn.BatchNorm2d(oup)]
        self.conv = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.use_res_connect else self.conv(x)


class MobileNetV2(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        features: list[nn.Module] = [ConvBNReLU(3, 4, stride=2)]
        for t, inp, oup, s in ((1, 4, 3, 1), (2, 3, 3, 1), (2, 3, 4, 2)):
            features.append(MobileBlock(inp, oup, s, t))
        self.features = nn.Sequential(*features, ConvBNReLU(4, 6, kernel=1))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(6, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        x = nn.functional.adaptive_avg_pool2d(x, (1, 1)).reshape(x.shape[0], -1)
        return self.classifier(x)


class Fire(nn.Module):
    def __init__(self, inplanes: int, squeeze: int, e1: int, e3: int) -> None:
        super().__init__()
        self.squeeze, self.squeeze_activation = nn.Conv2d(inplanes, squeeze, 1), nn.ReLU(inplace=True)
        self.expand1x1, self.expand1x1_activation = nn.Conv2d(squeeze, e1, 1), nn.ReLU(inplace=True)
        self.expand3x3, self.expand3x3_activation = nn.Conv2d(squeeze, e3, 3, padding=1), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.squeeze_activation(self.squeeze(x))
        return torch.cat(
            [self.expand1x1_activation(self.expand1x1(x)), self.expand3x3_activation(self.expand3x3(x))], 1
        )


class SqueezeNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.MaxPool2d(2, 2, ceil_mode=True), Fire(4, 2, 2, 2)
        )
        final_conv = nn.Conv2d(4, 3, 1)
        self.classifier = nn.Sequential(nn.Dropout(0.5), final_conv, nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.flatten(self.classifier(self.features(x)), 1)


class VGG(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for v in (3, "M", 4, 4, "M"):
            if v == "M":
                layers += [nn.MaxPool2d(kernel_size=2, stride=2)]
            else:
                layers += [nn.Conv2d(channels, int(v), 3, padding=1), nn.BatchNorm2d(int(v)), nn.ReLU(True)]
                channels = int(v)
        self.features, self.avgpool = nn.Sequential(*layers), nn.AdaptiveAvgPool2d((2, 2))
        self.classifier = nn.Sequential(
            nn.Linear(4 * 4, 8), nn.ReLU(True), nn.Dropout(), nn.Linear(8, 8), nn.ReLU(True), nn.Dropout(),
            nn.Linear(8, 3),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        x = self.avgpool(self.features(x))
        return self.classifier(x.view(x.size(0), -1))


class Inception(nn.Module):
    """Four branches, one of pooling, and a list that is joined."""

    def __init__(self) -> None:
        super().__init__()
        self.branch1 = nn.Conv2d(3, 2, 1)
        self.branch2 = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU(), nn.Conv2d(2, 2, (1, 3), padding=(0, 1)))
        self.branch3 = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU(), nn.Conv2d(2, 2, 5, padding=2))
        self.pool, self.norm, self.fc = nn.Conv2d(3, 2, 1), nn.BatchNorm2d(8, eps=0.001), nn.Linear(8, 3)

    def _forward(self, x: Tensor) -> list[Tensor]:
        pooled = F.avg_pool2d(x, kernel_size=3, stride=1, padding=1)
        return [self.branch1(x), self.branch2(x), self.branch3(x), self.pool(pooled)]

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(torch.cat(self._forward(x), 1)), inplace=True)
        return self.fc(x.mean(dim=(-2, -1)))


class LayerNorm2d(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        x = F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class CNBlock(nn.Module):
    def __init__(self, dim: int, layer_scale: float = 0.5) -> None:
        super().__init__()
        self.dwconv, self.norm = nn.Conv2d(dim, dim, 3, padding=1, groups=dim), nn.LayerNorm(dim, eps=1e-6)
        self.pwconv1, self.act, self.pwconv2 = nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim)
        self.gamma = nn.Parameter(layer_scale * torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        input = x
        x = self.dwconv(x)
        x = x.permute(0, 2, 3, 1)
        x = self.pwconv2(self.act(self.pwconv1(self.norm(x))))
        x = (self.gamma * x).permute(0, 3, 1, 2)
        return input + x


class ConvNeXt(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 2, 2), LayerNorm2d(4, eps=1e-6))
        self.stage, self.head = CNBlock(4), nn.Sequential(LayerNorm2d(4), nn.Flatten(1), nn.Linear(4, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(nn.functional.adaptive_avg_pool2d(self.stage(self.stem(x)), 1))


class SELayer(nn.Module):
    def __init__(self, channel: int, reduction: int = 2) -> None:
        super().__init__()
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Sequential(
            nn.Linear(channel, channel // reduction, bias=False), nn.ReLU(inplace=True),
            nn.Linear(channel // reduction, channel, bias=False), nn.Sigmoid(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        b, c, _, _ = x.size()
        y = self.avg_pool(x).view(b, c)
        y = self.fc(y).view(b, c, 1, 1)
        return x * y.expand_as(x)


class SpatialGate(nn.Module):
    """CBAM's gate: the mean and the largest of the channels, convolved."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat((torch.max(x, 1)[0].unsqueeze(1), torch.mean(x, 1).unsqueeze(1)), dim=1)
        return x * torch.sigmoid(self.conv(both))


class SENet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.se, self.gate = nn.Conv2d(3, 4, 3, padding=1), SELayer(4), SpatialGate()
        self.pool, self.fc = nn.AdaptiveMaxPool2d(1), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.gate(self.se(F.relu(self.conv(x))))
        return self.fc(self.pool(x).flatten(1))


class DoubleConv(nn.Module):
    def __init__(self, inp: int, out: int) -> None:
        super().__init__()
        self.double_conv = nn.Sequential(
            nn.Conv2d(inp, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU(inplace=True),
            nn.Conv2d(out, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU(inplace=True),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.double_conv(x)


class UNet(nn.Module):
    """Down, up with padding to the skip's size, and the mean of the map as logits."""

    def __init__(self) -> None:
        super().__init__()
        self.inc, self.down = DoubleConv(3, 2), nn.Sequential(nn.MaxPool2d(2), DoubleConv(2, 3))
        self.up = nn.ConvTranspose2d(3, 2, kernel_size=2, stride=2)
        self.conv, self.outc = DoubleConv(4, 2), nn.Conv2d(2, 3, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        x1 = self.inc(x)
        x2 = self.down(x1)
        up = self.up(x2)
        diff_y, diff_x = x1.size()[2] - up.size()[2], x1.size()[3] - up.size()[3]
        up = F.pad(up, [diff_x // 2, diff_x - diff_x // 2, diff_y // 2, diff_y - diff_y // 2])
        smooth = F.interpolate(x2, size=x1.shape[2:], mode="bilinear", align_corners=True)[:, :2]
        return self.outc(self.conv(torch.cat([x1, up + smooth], dim=1))).mean([2, 3])


class ConvAutoencoder(nn.Module):
    """Encoder and decoder; the logits are minus the error of each of three windows of the picture."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.ELU(), nn.Flatten(), nn.Linear(36, 4))
        self.decoder = nn.Sequential(
            nn.Linear(4, 36), nn.ELU(), nn.Unflatten(1, (4, 3, 3)), nn.Upsample(scale_factor=2, mode="nearest"),
            nn.Conv2d(4, 3, 3, padding=1), nn.Sigmoid(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        error = (self.decoder(self.encoder(x)) - x).pow(2).mean(dim=1)
        return -error.reshape(error.shape[0], 3, -1).mean(-1)


class MixerBlock(nn.Module):
    def __init__(self, tokens: int, dim: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.token_mixing = nn.Sequential(nn.Linear(tokens, 4), nn.GELU(), nn.Dropout(0.1), nn.Linear(4, tokens))
        self.channel_mixing = nn.Sequential(nn.Linear(dim, 6), nn.GELU(), nn.Dropout(0.1), nn.Linear(6, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.token_mixing(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channel_mixing(self.norm2(x))


class Mixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch_emb, self.block = nn.Conv2d(3, 4, 3, 3), MixerBlock(4, 4)
        self.norm, self.head = nn.LayerNorm(4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_emb(x).flatten(2).transpose(1, 2)
        return self.head(self.norm(self.block(x)).mean(dim=1))


class ClipVision(nn.Module):
    """A vision transformer with sequences first, a class token, and a projection by a matrix."""

    def __init__(self, width: int = 4, heads: int = 2) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 3, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width) / math.sqrt(width))
        self.positional_embedding = nn.Parameter(torch.randn(5, width) / math.sqrt(width))
        self.ln_pre, self.ln_1, self.ln_2, self.ln_post = (nn.LayerNorm(width) for _ in range(4))
        self.attn = nn.MultiheadAttention(width, heads)
        self.c_fc, self.c_proj = nn.Linear(width, 6), nn.Linear(6, width)
        self.proj = nn.Parameter(torch.randn(width, 3) / math.sqrt(width))

    def block(self, x: Tensor) -> Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=None)[0]
        h = self.c_fc(self.ln_2(x))
        return x + self.c_proj(h * torch.sigmoid(1.702 * h))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        x = x.reshape(x.shape[0], x.shape[1], -1).permute(0, 2, 1)
        token = self.class_embedding.to(x.dtype) + torch.zeros_like(x[:, :1])
        x = torch.cat([token, x], dim=1) + self.positional_embedding.to(x.dtype)
        x = self.block(self.ln_pre(x).permute(1, 0, 2)).permute(1, 0, 2)
        return self.ln_post(x[:, 0, :]) @ self.proj


class GeM(nn.Module):
    """Generalised mean pooling with a learned exponent, and a head of cosines to prototypes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.p, self.eps = nn.Conv2d(3, 4, 3), nn.Parameter(torch.ones(1) * 3), 1e-2
        self.weight = nn.Parameter(torch.randn(3, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).clamp(min=self.eps).pow(self.p)
        x = F.avg_pool2d(x, (x.size(-2), x.size(-1))).pow(1.0 / self.p).flatten(1)
        return 8 * F.linear(F.normalize(x), F.normalize(self.weight))


VISION: dict[str, tuple[type[nn.Module], tuple[int, ...]]] = {
    "bottlenecks": (ResNet50, (3, 6, 6)), "inverted residuals": (MobileNetV2, (3, 6, 6)),
    "fire": (SqueezeNet, (3, 6, 6)), "vgg": (VGG, (3, 8, 8)), "inception": (Inception, (3, 4, 4)),
    "convnext": (ConvNeXt, (3, 4, 4)), "gates": (SENet, (3, 4, 4)), "unet": (UNet, (3, 6, 6)),
    "autoencoder": (ConvAutoencoder, (3, 6, 6)), "mixer": (Mixer, (3, 6, 6)), "clip": (ClipVision, (3, 6, 6)),
    "generalised mean": (GeM, (3, 4, 4)),
}  # fmt: skip
