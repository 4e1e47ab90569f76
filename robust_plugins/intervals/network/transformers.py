"""How encoders of torch.nn compute, without their fast paths and checks, which symbols do not pass."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

LAYERS = (nn.TransformerEncoder, nn.TransformerEncoderLayer, nn.TransformerDecoder, nn.TransformerDecoderLayer)
"""Layers of torch.nn that are made of others, and are traced through as a user's are."""


def simplified(layer: nn.Module) -> Callable[..., Any] | None:
    """The forward of an encoder, or of a layer of one, as symbols pass it; None for all others."""
    for kind, (original, forward) in _FORWARDS.items():
        if isinstance(layer, kind) and type(layer).forward is original and "forward" not in vars(layer):
            return partial(forward, layer)
    return None


def _encoder(
    m: nn.TransformerEncoder,
    src: Any,
    mask: Any = None,
    src_key_padding_mask: Any = None,
    is_causal: bool | None = None,
) -> Any:
    for layer in m.layers:
        src = layer(src, src_mask=mask, src_key_padding_mask=src_key_padding_mask)
    return src if m.norm is None else m.norm(src)


def _encoder_layer(
    m: Any, src: Any, src_mask: Any = None, src_key_padding_mask: Any = None, is_causal: bool = False
) -> Any:
    """Attention and two linear layers, each beside a shortcut; that a mask is causal is a hint for its computation."""

    def attended(x: Any) -> Any:
        found = m.self_attn(x, x, x, attn_mask=src_mask, key_padding_mask=src_key_padding_mask, need_weights=False)
        return m.dropout1(found[0])

    def fed(x: Any) -> Any:
        return m.dropout2(m.linear2(m.dropout(m.activation(m.linear1(x)))))

    if m.norm_first:
        src = src + attended(m.norm1(src))
        return src + fed(m.norm2(src))
    src = m.norm1(src + attended(src))
    return m.norm2(src + fed(src))


_FORWARDS: dict[type[nn.Module], tuple[Any, Callable[..., Any]]] = {
    nn.TransformerEncoder: (nn.TransformerEncoder.forward, _encoder),
    nn.TransformerEncoderLayer: (nn.TransformerEncoderLayer.forward, _encoder_layer),
}
