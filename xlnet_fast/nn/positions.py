"""The sinusoidal table of relative distances (Transformer-XL section 3.3)."""

from __future__ import annotations

import torch
from torch import Tensor

from xlnet_fast.errors import ArgumentError


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
    distance = torch.arange(keys, end, -1, device=device).float()  # (P,)
    frequency = torch.arange(0, d_model, 2, device=device).float() / d_model
    inverse = 1 / torch.pow(10000, frequency)  # (H / 2,)
    groups = torch.stack([distance, -distance] if bi_data else [distance], dim=1)  # (P, G)
    if clamp_len > 0:
        groups = groups.clamp(-clamp_len, clamp_len)
    angle = groups[:, :, None] * inverse
    return torch.cat([angle.sin(), angle.cos()], dim=-1)
