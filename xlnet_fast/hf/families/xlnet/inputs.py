"""From HF's forward arguments to what the kernels want: checked, compact, prepared once.

HF builds a dense float mask (i, j, b, 1), a one-hot segment tensor (i, j, b, 2) and a position
table expanded over the batch before its first layer; here padding stays a vector, a permutation
becomes bits or two integers per token, and segments stay ids.

Letters: B batch, I current tokens, M memory, J = M + I, I' predicted positions, H hidden size.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xlnet_fast.errors import ArgumentError, ShapeError
from xlnet_fast.masks import AttentionMask, pack_bits
from xlnet_fast.ops._dispatch import choose, request_on
from xlnet_fast.transforms import can_look, is_xla, nobody_looks_on

_HANDED_TO_ALL = {"use_cache", "cache_position", "next_sequence_length", "num_items_in_batch"}
"""What ``generate`` and ``Trainer`` hand to every model, and XLNet does not read."""
_WARNED_OF: set[str] = set()
_LOWEST_RANK = -(2**31)


def embed_tokens(embedding: nn.Module, input_ids: Tensor) -> Tensor:
    """(B, I) ids to (I, B, H).

    Raises:
        ShapeError, ArgumentError: not (B, I) integers, or not on the table's device.
        IndexError: an id outside the vocabulary (on CPU; a GPU reports it as a device-side
            assertion, since looking would synchronise).
    """
    if input_ids.dim() != 2:
        raise ShapeError(f"input_ids has shape {tuple(input_ids.shape)}, expected (B, I)")
    if input_ids.dtype not in (torch.int32, torch.int64):
        raise ArgumentError(f"input_ids has dtype {input_ids.dtype}, expected int32 or int64")
    # A subclass, or a module that a hook offloads, may move ids by itself.
    plain = type(embedding) is nn.Embedding and not hasattr(embedding, "_hf_hook")
    if plain and embedding.weight.device != input_ids.device:
        raise ArgumentError(
            f"input_ids is on {input_ids.device}, expected the model's device: "
            f"{embedding.weight.device}"
        )
    try:
        embedded: Tensor = embedding(input_ids.transpose(0, 1))
    except IndexError as error:
        size = getattr(embedding, "num_embeddings", None)
        if size is None or input_ids.device.type != "cpu" or not can_look(input_ids):
            raise
        low, high = (int(x) for x in input_ids.aminmax())
        if low >= 0 and high < size:
            raise  # a hook's
        raise IndexError(
            f"input_ids go from {low} to {high}, expected 0 to {size - 1} "
            f"(the vocabulary has {size} entries)"
        ) from error
    if embedded.dim() != 3 or embedded.shape[:2] != input_ids.shape[::-1]:
        raise ShapeError(
            f"word_embedding returned {tuple(embedded.shape)} for input_ids of shape "
            f"{tuple(input_ids.shape)}, expected (I, B, H): a hook on it changed the batch. Give "
            "inputs_embeds instead (captum: IntegratedGradients on inputs_embeds)"
        )
    return embedded


def check_embeds(inputs_embeds: Tensor, embedding: nn.Module, hidden_size: int) -> None:
    """(B, I, H) in the dtype of the model's own embeddings; under autocast in any floating one.

    Raises:
        ShapeError, ArgumentError: another shape or dtype.
    """
    shape = tuple(inputs_embeds.shape)
    if len(shape) != 3 or shape[2] != hidden_size:
        raise ShapeError(
            f"inputs_embeds has shape {shape}, expected (B, I, H) with H = {hidden_size}"
        )
    dtype, device = inputs_embeds.dtype, inputs_embeds.device.type
    own = embedding.weight.dtype if type(embedding) is nn.Embedding else dtype
    autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    if not dtype.is_floating_point or (dtype != own and not autocast):
        raise ArgumentError(f"inputs_embeds has dtype {dtype}, expected that of the model: {own}")


def check_mems(
    mems: Sequence[Tensor | None] | None, layers: int, hidden: Tensor
) -> tuple[list[Tensor] | None, int]:
    """Memory per layer, all (M, B, H), and M; (None, 0) without memory.

    Args:
        mems: one entry per layer, in any floating dtype. layers: their number.
        hidden: (I, B, H) embeddings of this segment.

    Raises:
        ShapeError: another number of layers, or a layer's memory of another shape.
        ArgumentError: a layer's memory is no floating tensor, or on another device.
    """
    if mems is None or len(mems) == 0 or all(map(_is_no_memory, mems)):
        return None, 0
    if len(mems) != layers:
        raise ShapeError(f"mems has {len(mems)} entries, expected one per layer: {layers}")
    first = mems[0]
    length = first.shape[0] if isinstance(first, Tensor) and first.dim() else "M"
    shape = (length, *hidden.shape[1:])
    checked = []
    for number, memory in enumerate(mems):
        letters = "M, B, H, with one M for all layers"
        _expect(f"mems[{number}]", memory, shape, letters, hidden.device)
        assert memory is not None
        if not memory.is_floating_point():
            raise ArgumentError(
                f"mems[{number}] has dtype {memory.dtype}, expected a floating dtype"
            )
        checked.append(_differentiable(memory))
    return checked, checked[0].shape[0]


def _is_no_memory(memory: Tensor | None) -> bool:
    """None, or what HF passes over as well: a tensor without dimensions to hold any."""
    return memory is None or (
        isinstance(memory, Tensor) and memory.dim() == 1 and not memory.numel()
    )


def _differentiable(memory: Tensor) -> Tensor:
    """A copy of what `torch.inference_mode` made, which autograd refuses to keep."""
    if torch.compiler.is_compiling() or not memory.is_inference():
        return memory
    keeps = torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    return memory.clone() if keeps else memory


def build_mask(
    *,
    batch: int,
    queries: int,
    memory_length: int,
    memory_padding: Tensor | None,
    attention_mask: Tensor | None,
    input_mask: Tensor | None,
    perm_mask: Tensor | None,
    permutation_ranks: tuple[Tensor, Tensor] | None,
    created: Tensor | None,
    causal: bool,
    same_length: bool,
    device: torch.device,
) -> AttentionMask:
    """The mask of one forward pass (HF combines the same parts into one dense float tensor).

    Args:
        memory_padding: (B, M) bool, the memory's own, or None.
        attention_mask: (B, I), 1 or True for real tokens, or (B, M + I) with those of the memory.
            input_mask: its negative. At most one.
        perm_mask: (B, I, I), positive where token i must not see token j.
        permutation_ranks: (rank_q, rank_k), both (B, I) integers: the compact form, token j is
            visible to i iff ``rank_q[i] > rank_k[j]``. Not together with ``perm_mask``.
        created: (I, J) what a user's own ``create_mask`` gave, positive where hidden, or None.
        causal: ``attn_type="uni"``. same_length: HF's option of that name.
        device: of the model.

    Raises:
        ShapeError, ArgumentError: name the argument, what it is and what is expected.
    """
    if attention_mask is not None and input_mask is not None:
        raise ArgumentError(
            "give one of attention_mask (1 for real tokens) and input_mask (1 for padding)"
        )
    if memory_padding is not None:
        letters = "B, M: the padding of mems"
        _expect("mems.padding", memory_padding, (batch, memory_length), letters, device)
    padding = _padding(attention_mask, input_mask, batch, queries, memory_length, device)
    if memory_padding is not None and (padding is None or padding.shape[1] == queries):
        current = memory_padding.new_zeros(batch, queries) if padding is None else padding
        padding = torch.cat([memory_padding, current], dim=1)
    elif padding is not None and padding.shape[1] == queries:
        padding = F.pad(padding, (memory_length, 0))  # all may see the memory
    hidden = rank_q = rank_k = None
    if created is not None:
        keys = memory_length + queries
        _expect("the result of create_mask", created, (queries, keys), "I, J", device)
        hidden = created[None] > 0
    if perm_mask is not None:
        if permutation_ranks is not None:
            raise ArgumentError("give one of perm_mask and permutation_ranks")
        # As it is: bits of one stand for all.
        _expect_batch("perm_mask", perm_mask, (batch, queries, queries), "B, I, I", device)
        permuted = F.pad(perm_mask > 0, (memory_length, 0))
        hidden = permuted if hidden is None else hidden | permuted
    if permutation_ranks is not None:
        if not isinstance(permutation_ranks, (tuple, list)) or len(permutation_ranks) != 2:
            raise ArgumentError(
                "permutation_ranks must be a pair of (B, I) tensors: (rank_q, rank_k)"
            )
        ranks = []
        for number, rank in enumerate(permutation_ranks):
            name = f"permutation_ranks[{number}]"
            ranks.append(_expect_batch(name, rank, (batch, queries), "B, I", device))
            _expect_integers(name, rank)
        rank_q, rank_k = ranks
        rank_k = F.pad(rank_k, (memory_length, 0), value=_LOWEST_RANK)
    return AttentionMask(
        key_padding=padding,
        rank_q=rank_q,
        rank_k=rank_k,
        bits=None if hidden is None else pack_bits(hidden),
        causal=causal,
        same_length=causal and same_length,
        see_self=True,
    )


def check_head_mask(head_mask: Tensor, layers: int, heads: int, device: torch.device) -> Tensor:
    """(layers, N) from (N,), the same for all layers, or from one row for each.

    Raises:
        ShapeError, ArgumentError: another shape, no tensor, or on another device.
    """
    if isinstance(head_mask, Tensor) and head_mask.dim() == 1:
        _expect("head_mask", head_mask, (heads,), "N", device)
        return head_mask.expand(layers, heads)
    _expect("head_mask", head_mask, (layers, heads), "layers, N", device)
    return head_mask


def warn_of_unknown(arguments: Iterable[str]) -> None:
    """One warning, the first time, for each keyword argument that nothing reads."""
    unknown = sorted(set(arguments) - _HANDED_TO_ALL - _WARNED_OF)
    if not unknown or torch.compiler.is_compiling():
        return
    names = ", ".join(map(repr, unknown))
    warnings.warn(
        f"XLNet's forward has no argument {names}; ignored, as Hugging Face ignores it. Is it "
        "misspelt?",
        stacklevel=3,
    )
    _WARNED_OF.update(unknown)


def build_segments(
    token_type_ids: Tensor | None,
    batch: int,
    queries: int,
    memory_length: int,
    device: torch.device,
) -> Tensor | None:
    """(B, J) int64 segment ids; memory belongs to segment 0, as in HF.

    Raises:
        ShapeError, ArgumentError: wrong shape, dtype or device.
    """
    if token_type_ids is None:
        return None
    token_type_ids = _expect_batch(
        "token_type_ids", token_type_ids, (batch, queries), "B, I", device
    )
    if token_type_ids.is_floating_point() or token_type_ids.is_complex():
        raise ArgumentError(f"token_type_ids has dtype {token_type_ids.dtype}, expected integers")
    segments = token_type_ids.to(torch.int64)
    if not memory_length and not torch.is_grad_enabled() and nobody_looks_on():
        return segments  # with a gradient a copy, which nobody changes before the backward pass
    return F.pad(segments, (memory_length, 0))


def compact_targets(target_mapping: Tensor) -> Tensor | None:
    """Positions of a mapping whose rows are one-hot or zero and which repeats no position.

    Looking at the values synchronises a GPU once; under compilation or graph capture, where that
    cannot be done, and where the mapping needs a gradient, the answer is None.

    Args:
        target_mapping: (B, I', I).

    Returns:
        (B, I') int64, -1 for zero rows, or None: the mapping has to be applied as it is.
    """
    if target_mapping.requires_grad or not can_look(target_mapping):
        return None
    one = target_mapping == 1
    regular = (one | (target_mapping == 0)).all()
    regular &= (one.sum(2) <= 1).all() & (one.sum(1) <= 1).all()
    if not bool(regular):
        return None
    return torch.where(one.any(2), one.int().argmax(2), -1)


def check_targets(
    target_mapping: Tensor | None,
    target_positions: Tensor | None,
    batch: int,
    queries: int,
    device: torch.device,
) -> tuple[Tensor | None, Tensor | None]:
    """Both for the whole batch: at most one of them, of the right shape, no position twice.

    The values of ``target_positions`` are looked at on the CPU only; a GPU would synchronise.

    Raises:
        ShapeError, ArgumentError: name the argument, what it is and what is expected.
    """
    if target_mapping is not None and target_positions is not None:
        raise ArgumentError("give one of target_mapping and target_positions")
    if target_mapping is not None:
        count = target_mapping.shape[1] if target_mapping.dim() == 3 else "I'"
        target_mapping = _expect_batch(
            "target_mapping", target_mapping, (batch, count, queries), "B, I', I", device
        )
    if target_positions is not None:
        count = target_positions.shape[1] if target_positions.dim() == 2 else "I'"
        target_positions = _expect_batch(
            "target_positions", target_positions, (batch, count), "B, I'", device
        )
        _expect_integers("target_positions", target_positions)
        if target_positions.device.type == "cpu" and can_look(target_positions):
            _check_positions(target_positions, queries)
    return target_mapping, target_positions


def _check_positions(target_positions: Tensor, queries: int) -> None:
    highest = int(target_positions.max()) if target_positions.numel() else -1
    if highest >= queries:
        raise ArgumentError(
            f"target_positions reach {highest}, expected at most {queries - 1} (the input has "
            f"{queries} tokens), or a negative number for no prediction"
        )
    if bool((dense_mapping(target_positions, queries).sum(1) > 1).any()):
        raise ArgumentError("target_positions name a position twice in one batch element")


def saves_by_positions(embedded: Tensor, head_dim: int, backend: str) -> bool:
    """Whether attention with the predicted rows alone costs less than with all.

    Not where XLA compiles the reference: it would gather scores, which costs more than all rows.

    Args:
        embedded: on the model's device, in its dtype. head_dim: D. backend: the model's.
    """
    if not is_xla(embedded.device):
        return True
    request = request_on(
        "two_stream_attention",
        embedded.device,
        embedded.dtype,
        head_dim=head_dim,
        needs_grad=torch.is_grad_enabled(),
        features=("positions",),
    )
    return choose(request, backend).backend != "reference"


def dense_mapping(target_positions: Tensor, queries: int) -> Tensor:
    """(B, I', I) fp32 mapping of compact positions, zero rows for negative ones."""
    column = torch.arange(queries, device=target_positions.device)
    return (target_positions[:, :, None] == column).float()


def _padding(
    attention_mask: Tensor | None,
    input_mask: Tensor | None,
    batch: int,
    queries: int,
    memory_length: int,
    device: torch.device,
) -> Tensor | None:
    """(B, I) or (B, M + I) bool, True for padding; None where none is and looking is free."""
    if attention_mask is None and input_mask is None:
        return None
    name, mask = "attention_mask", attention_mask
    if mask is None:
        name, mask = "input_mask", input_mask
    length, letters = queries, "B, I"
    if memory_length and isinstance(mask, Tensor) and mask.shape[1:] == (memory_length + queries,):
        length, letters = memory_length + queries, "B, M + I"
    mask = _expect_batch(name, mask, (batch, length), letters, device)
    # HF masks where 1 - attention_mask > 0.
    padding = mask < 1 if name == "attention_mask" else mask > 0
    if padding.device.type == "cpu" and can_look(padding) and not bool(padding.any()):
        return None
    return padding


def _expect(name: str, x: Any, shape: tuple[Any, ...], letters: str, device: torch.device) -> None:
    if not isinstance(x, Tensor):
        raise ArgumentError(f"{name} must be a tensor ({letters}), got {type(x).__name__}")
    if tuple(x.shape) != shape:
        raise ShapeError(f"{name} has shape {tuple(x.shape)}, expected {shape} = ({letters})")
    if x.device != device:
        raise ArgumentError(f"{name} is on {x.device}, expected the model's device: {device}")


def _expect_batch(
    name: str, x: Any, shape: tuple[Any, ...], letters: str, device: torch.device
) -> Tensor:
    """The argument for the whole batch: a batch of one stands for all, as in HF."""
    if isinstance(x, Tensor) and x.dim() == len(shape) and x.shape[0] == 1:
        _expect(name, x, (1, *shape[1:]), letters, device)
        return x.expand(shape)
    _expect(name, x, shape, letters, device)
    return cast(Tensor, x)


def _expect_integers(name: str, x: Tensor) -> None:
    if x.dtype not in (torch.int32, torch.int64):
        raise ArgumentError(f"{name} has dtype {x.dtype}, expected int32 or int64")
