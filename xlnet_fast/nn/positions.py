"""The sinusoidal table of relative distances (Transformer-XL section 3.3)."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from xlnet_fast.errors import ArgumentError
from xlnet_fast.transforms import nobody_looks_on


def relative_positions(
    queries: int,
    keys: int,
    d_model: int,
    *,
    attn_type: str = "bi",
    bi_data: bool = False,
    clamp_len: int = -1,
    device: torch.device | None = None,
) -> Tensor:
    """Sinusoids of the distances J, J - 1, ... (HF ``relative_positional_encoding``).

    Args:
        queries: I. keys: J = M + I.
        d_model: width H of the table.
        attn_type: "bi" (distances down to 1 - I, P = I + J rows) or "uni" (down to 0, P = J + 1).
        bi_data: add a second group whose distances run the other way, for data read backwards.
        clamp_len: distances are clamped to this absolute value; no clamping where <= 0.

    Returns:
        (P, G, H) fp32, G = 2 with ``bi_data``, else 1. Row p encodes the distance J - p.

    Raises:
        ArgumentError: unknown ``attn_type``.
    """
    if attn_type not in ("bi", "uni"):
        raise ArgumentError(f"attn_type is {attn_type!r}, expected 'bi' or 'uni'")
    end = -queries if attn_type == "bi" else -1
    distance = torch.arange(keys, end, -1, device=device).float()[:, None]  # (P, 1)
    on_cpu = device is None or device.type == "cpu"
    make = _kept_frequencies if on_cpu and nobody_looks_on() else _inverse_frequencies
    inverse = make(d_model, device)  # (H / 2,)
    groups = torch.cat([distance, -distance], dim=1) if bi_data else distance  # (P, G)
    if clamp_len > 0:
        groups = groups.clamp(-clamp_len, clamp_len)
    angle = groups[:, :, None] * inverse
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


def _inverse_frequencies(d_model: int, device: torch.device | None) -> Tensor:
    frequency = torch.arange(0, d_model, 2, device=device).float() / d_model
    return 1 / torch.pow(10000, frequency)


@lru_cache(maxsize=8)
def _kept_frequencies(d_model: int, device: torch.device | None) -> Tensor:
    """The same, made once: four operators cost a small model a tenth of a layer."""
    with torch.inference_mode(False), torch.no_grad():
        return _inverse_frequencies(d_model, device)
