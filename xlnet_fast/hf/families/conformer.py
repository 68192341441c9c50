"""What the Conformer encoders of several families have in common, by the names of their attributes.

Nothing here knows a class of Hugging Face's. A family's fast classes call these functions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xlnet_fast.hf.families.family import why_not_head_dim
from xlnet_fast.hf.families.frames import mask_of_frames
from xlnet_fast.hf.last_made import LastMade
from xlnet_fast.hf.recording import IMPLEMENTATIONS, wants_probabilities, why_not_implementation
from xlnet_fast.nn.bare import is_bare
from xlnet_fast.nn.dropout import drop
from xlnet_fast.nn.pointwise import pointwise
from xlnet_fast.nn.projected_table import MOST_KEPT_BYTES, projected_table
from xlnet_fast.nn.projection import project
from xlnet_fast.nn.speech_attention import attend_frames
from xlnet_fast.transforms import can_look, nobody_looks_on

_STEP = 128
"""Frames: tables that are kept reach to a multiple of it, so that most lengths find one."""
_KEPT: WeakKeyDictionary[nn.Module, tuple[Tensor, Tensor]] = WeakKeyDictionary()


# ---- attention of Parakeet and Nemotron: q_proj .. o_proj, relative_k_proj, bias_u, bias_v ----


def attends_as_ours(
    module: Any, positions: Tensor | None, mask: Tensor | None, kwargs: dict[str, Any]
) -> bool:
    """Whether a call of an attention module is one that the op answers as HF does."""
    return (
        positions is not None
        and (mask is None or (mask.dtype == torch.bool and mask.dim() == 4 and mask.shape[1] == 1))
        and module.config._attn_implementation in IMPLEMENTATIONS
        and not wants_probabilities(module, kwargs)
        and module.attention_dropout < 1.0
    )


def attend(
    module: Any,
    hidden_states: Tensor,
    positions: Tensor,
    mask: Tensor | None,
    cached: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = lambda k, v: (k, v),
    *,
    blind_are_zero: bool = False,
) -> Tensor:
    """The output of an attention module, (B, I, H).

    Args:
        positions: (B, 2J - 1, H) table. mask: (B, 1, I, J) bool, True for keys that are seen.
        cached: makes the keys and values (B, J, N * D) of those of the I frames.
        blind_are_zero: whether frames that see nothing attend to nothing, and not to all alike.
    """
    k, v = cached(project(module.k_proj, hidden_states), project(module.v_proj, hidden_states))
    attended = attend_frames(
        project(module.q_proj, hidden_states),
        k,
        v,
        projected_table(module.relative_k_proj, positions, module.config.num_attention_heads),
        module.bias_u,
        module.bias_v,
        mask=mask_of_frames(mask),
        scale=module.scaling,
        dropout_p=module.attention_dropout if module.training else 0.0,
        backend=module._xlnet_fast_options.backend,
    )
    blind = _BLIND.of(mask) if blind_are_zero and mask is not None else None
    if blind is not None:
        attended = attended.masked_fill(blind[..., None], 0.0)
    return project(module.o_proj, attended)


def _blind_of(mask: Tensor) -> Tensor | None:
    """(B, I) bool, the frames that see nothing; None where every frame is seen to see."""
    blind = ~mask[:, 0].any(-1)
    return None if can_look(blind) and not bool(blind.any()) else blind


_BLIND = LastMade(_blind_of)


def why_not_attention(module: Any) -> str | None:
    """Why an attention module as it is configured keeps HF's code; None if it need not."""
    if module.num_key_value_groups != 1:
        return "it has fewer heads of keys than of queries"
    return why_not_head_dim(module.head_dim) or why_not_implementation(module)


# ---- the table of positions ----


def table_of_positions(
    module: Any, hidden_states: Tensor, length: int, make: Callable[[Tensor], Tensor]
) -> Tensor:
    """HF's table for ``length`` frames, (B, 2T - 1, H), one element expanded over the batch.

    On a CPU rows of a longer one that is kept: a row belongs to a distance, whatever the length is.

    Args:
        module: with the frequencies as ``inv_freq``.
        hidden_states: (B, I, H), for batch, width, dtype and device.
        make: Hugging Face's own function, from (1, T, H) to (1, 2T - 1, H).
    """
    batch, _, width = hidden_states.shape
    table = None
    if hidden_states.device.type == "cpu" and nobody_looks_on():
        table = _kept_table(module, hidden_states, length, make)
    if table is None:
        table = make(hidden_states.new_empty(1, length, width))
    return table.expand(batch, -1, -1)


def _kept_table(
    module: Any, hidden_states: Tensor, length: int, make: Callable[[Tensor], Tensor]
) -> Tensor | None:
    """None where it would be too large to keep."""
    kept = _KEPT.get(module)
    fits = (
        kept is not None
        and kept[1].dtype == hidden_states.dtype
        and kept[1].shape[1] >= 2 * length - 1
        and torch.equal(kept[0], module.inv_freq)
    )
    if not fits:
        # Nemotron's raises for more frames than its config has.
        most = max(length, module.max_position_embeddings)
        longest, width = min(-(-length // _STEP) * _STEP, most), hidden_states.shape[2]
        if (2 * longest - 1) * width * hidden_states.element_size() > MOST_KEPT_BYTES:
            return None
        with torch.inference_mode(False), torch.no_grad():
            kept = module.inv_freq.clone(), make(hidden_states.new_empty(1, longest, width))
        _KEPT[module] = kept
    assert kept is not None
    first = (kept[1].shape[1] + 1) // 2 - length
    return kept[1][:, first : first + 2 * length - 1]


# ---- feed-forward blocks: linear1, activation, linear2 ----


def feed_forward(module: Any, hidden_states: Tensor) -> Tensor:
    """(B, T, H) to (B, T, H), as HF."""
    inner = module.activation(project(module.linear1, hidden_states))
    inner = F.dropout(inner, p=module.activation_dropout, training=module.training)
    return project(module.linear2, inner)


# ---- convolution blocks, whose products over channels are linear layers on frames as they lie ----


_BY_ELEMENT = (
    nn.SiLU, nn.ReLU, nn.GELU, nn.Tanh, nn.Sigmoid, nn.Mish, nn.Hardswish, nn.Identity, nn.Dropout,
)  # fmt: skip


def by_element(module: Any, frames: Tensor) -> Tensor:
    """``module``, which HF calls on channels (B, C, T), on frames (B, T, C); (B, T, C).

    One that may look at more than an element at a time, or is looked at, sees them as HF's does.
    """
    known = type(module) in _BY_ELEMENT or type(module).__module__ == "transformers.activations"
    if known and is_bare(module):
        return drop(module, frames)
    output: Tensor = module(frames.transpose(1, 2))
    return output.transpose(1, 2)


def gate(glu: nn.Module, x: Tensor) -> Tensor:
    """``glu``, which gates channels (B, 2C, T), on frames (B, T, 2C); (B, T, C)."""
    if type(glu) is nn.GLU and glu.dim in (1, -2) and is_bare(glu):
        return F.glu(x, dim=-1)
    gated: Tensor = glu(x.transpose(1, 2))
    return gated.transpose(1, 2)


def bare_convolution(module: Any, hidden_states: Tensor, attention_mask: Tensor | None) -> Tensor:
    """The block without a layer norm and a dropout of its own (Parakeet, FastSpeech2-Conformer).

    Args:
        attention_mask: (B, 1, T, T), bool or additive: a frame that sees nothing is zero.
    """
    gated = F.glu(pointwise(module.pointwise_conv1, hidden_states), dim=-1)
    if attention_mask is not None:
        is_shown = attention_mask if attention_mask.dtype == torch.bool else attention_mask == 0
        gated = gated.masked_fill(~is_shown.any(dim=2)[:, 0, :, None], 0.0)
    mixed = module.norm(module.depthwise_conv(gated.transpose(1, 2)))
    return pointwise(module.pointwise_conv2, module.activation(mixed).transpose(1, 2))


# ---- keys for distances, of Shaw et al. ----


def table_of_keys(embedding: nn.Module, rows: Tensor) -> Tensor:
    """Rows of an embedding of distances, the same for all heads.

    Args:
        rows: (P,) integers, of the distances that the table of :func:`attend_frames` has.

    Returns:
        (1, P, 1, D).
    """
    table: Tensor = embedding(rows)
    return table[None, :, None, :]
