"""The standalone attention layer: the same as HF's with the same parameters, and its own errors."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from cpu_kernels import needs_kernels
from hf_oracle import F64
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import XLNetConfig
from transformers.models.xlnet.modeling_xlnet import XLNetModel, XLNetRelativeAttention

from xlnet_fast import ArgumentError, AttentionMask, BackendUnavailable, ShapeError
from xlnet_fast.nn import AttentionContext, RelativeAttention, relative_positions
from xlnet_fast.tolerance import assert_within

BATCH, LENGTH, MEMORY, WIDTH, HEADS = 2, 5, 3, 8, 2
KEYS = MEMORY + LENGTH


def config(**options):
    sizes = {"vocab_size": 10, "d_model": WIDTH, "n_layer": 1, "n_head": HEADS, "d_inner": 8}
    return XLNetConfig(**{**sizes, "dropout": 0.0, **options})


@pytest.fixture
def layer():
    return RelativeAttention(WIDTH, HEADS, initializer_range=0.5).double()


def hf_layer(layer):
    """HF's with the same parameters; strict loading: the names and shapes are HF's."""
    theirs = XLNetRelativeAttention(config()).double()
    theirs.load_state_dict(layer.state_dict(), strict=True)
    return theirs.eval()


def operands(seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=F64)

    table = relative_positions(LENGTH, KEYS, WIDTH).double()
    return {"h": normal(LENGTH, BATCH, WIDTH), "g": normal(2, BATCH, WIDTH), "r": table,
            "memory": normal(MEMORY, BATCH, WIDTH)}  # fmt: skip


def contexts(kind):
    """Our context and HF's four dense arguments."""
    segments = torch.tensor([[0] * MEMORY + [0, 0, 1, 1, 2], [0] * MEMORY + [1, 1, 1, 0, 0]])
    differ = (segments[:, MEMORY:, None] != segments[:, None]).permute(1, 2, 0)
    padding = torch.zeros(BATCH, KEYS, dtype=torch.bool)
    padding[0, MEMORY] = True
    hidden = padding[:, None].expand(BATCH, LENGTH, KEYS).permute(1, 2, 0)[..., None].double()
    itself = torch.eye(LENGTH, KEYS).roll(MEMORY, 1)[:, :, None, None]
    dense = {
        "attn_mask_h": (hidden - itself > 0).double(),
        "attn_mask_g": hidden,
        "seg_mat": F.one_hot(differ.long(), 2).double(),
        "target_mapping": None,
    }
    context = {"mask": AttentionMask(key_padding=padding, see_self=True), "segments": segments}
    positions = torch.tensor([[4, 1], [0, -1]])
    mapping = (F.one_hot(positions.clamp(min=0), LENGTH) * (positions >= 0)[..., None]).double()
    if kind == "positions":
        context["positions"] = positions
    if kind == "mapping":
        mapping = mapping + 0.25
        context["target_mapping"] = mapping.permute(1, 2, 0)
    if kind != "one stream":
        dense["target_mapping"] = mapping.permute(1, 2, 0)
    return AttentionContext(**context), dense


@pytest.mark.parametrize("kind", ["one stream", "positions", "mapping"])
@pytest.mark.parametrize("attentions", [False, True])
@pytest.mark.parametrize("memory", [False, True])
def test_against_hugging_faces_layer(layer, kind, attentions, memory):
    if attentions and kind == "positions":
        kind = "mapping"  # probabilities are those of all positions
    context, dense = contexts(kind)
    x = operands()
    past = x["memory"]
    if not memory:  # the same arguments without the leading memory keys
        past = None
        x["r"] = relative_positions(LENGTH, LENGTH, WIDTH).double()
        mask = AttentionMask(key_padding=context.mask.key_padding[:, MEMORY:], see_self=True)
        context = AttentionContext(mask, context.segments[:, MEMORY:], context.positions,
                                   context.target_mapping)  # fmt: skip
        for name in ("attn_mask_h", "attn_mask_g", "seg_mat"):
            dense[name] = dense[name][:, MEMORY:]
    g = None if kind == "one stream" else x["g"]
    theirs = hf_layer(layer)
    expected = theirs(x["h"], g, dense["attn_mask_h"], dense["attn_mask_g"],
                      x["r"].expand(-1, BATCH, -1), dense["seg_mat"], past,
                      dense["target_mapping"], output_attentions=attentions)  # fmt: skip
    actual = layer(x["h"], g, context, x["r"], past, attentions)
    assert len(actual) == len(expected) == 2 + attentions
    total = {"ours": 0.0, "theirs": 0.0}
    for ours, theirs_value in zip(flat(actual), flat(expected), strict=True):
        torch.testing.assert_close(ours, theirs_value, atol=1e-12, rtol=0)
        # Not the sum of squares: of a layer norm's output that is a constant.
        total["ours"] = total["ours"] + ours.sin().sum()
        total["theirs"] = total["theirs"] + theirs_value.sin().sum()
    total["ours"].backward()
    total["theirs"].backward()
    for (name, ours), theirs_parameter in zip(
        layer.named_parameters(), theirs.parameters(), strict=True
    ):
        torch.testing.assert_close(ours.grad, theirs_parameter.grad, atol=1e-10, rtol=0, msg=name)


@pytest.mark.parametrize("kind", ["one stream", "positions"])
def test_gradients_of_a_memory_that_wants_them(layer, kind):
    context, dense = contexts(kind)
    x = operands()
    g = None if kind == "one stream" else x["g"]
    grads = []
    for call in ("ours", "theirs"):
        memory = x["memory"].clone().requires_grad_()
        if call == "ours":
            outputs = layer(x["h"], g, context, x["r"], memory)
        else:
            outputs = hf_layer(layer)(
                x["h"], g, dense["attn_mask_h"], dense["attn_mask_g"],
                x["r"].expand(-1, BATCH, -1), dense["seg_mat"], memory, dense["target_mapping"],
            )  # fmt: skip
        sum(output.sin().sum() for output in flat(outputs)).backward()
        grads.append(memory.grad)
    torch.testing.assert_close(grads[0], grads[1], atol=1e-10, rtol=0)
    assert grads[0].abs().max() > 1e-3


class Concatenations(TorchDispatchMode):
    """The shapes that tensors are concatenated to."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if "cat" in str(func):
            self.shapes.append(tuple(result.shape))
        return result


@pytest.mark.parametrize("kind", ["one stream", "positions"])
def test_memory_is_never_copied_together_with_the_present(layer, kind):
    context, _ = contexts(kind)
    x = operands()
    g = None if kind == "one stream" else x["g"]
    with Concatenations() as fused:
        layer(x["h"], g, context, x["r"], x["memory"])
    assert fused.shapes == []
    if kind == "positions":
        return  # probabilities are those of all positions
    with Concatenations() as visible:
        layer(x["h"], g, context, x["r"], x["memory"], output_attentions=True)
    head_dim = WIDTH // HEADS
    assert visible.shapes == [(BATCH, KEYS, HEADS, head_dim)] * 2, "keys and values only"


def flat(outputs):
    values = []
    for value in outputs:
        values += list(value) if isinstance(value, tuple) else [value]
    return [value for value in values if value is not None]


def test_parameters_are_named_and_shaped_as_hugging_faces():
    ours = RelativeAttention(WIDTH, HEADS)
    theirs = XLNetRelativeAttention(config())
    expected = {name: p.shape for name, p in theirs.named_parameters()}
    assert {name: p.shape for name, p in ours.named_parameters()} == expected
    assert ours.scale == theirs.scale


def test_initial_weights():
    torch.manual_seed(0)
    ours = RelativeAttention(64, 4, initializer_range=0.02, layer_norm_eps=1e-6)
    assert abs(ours.q.std().item() - 0.02) < 0.001
    assert torch.equal(ours.layer_norm.weight, torch.ones(64))
    assert ours.layer_norm.eps == 1e-6


def test_head_dim_of_its_own():
    ours = RelativeAttention(WIDTH, HEADS, d_head=3)
    assert ours.q.shape == (WIDTH, HEADS, 3)
    x = operands()
    output = ours(x["h"].float(), None, AttentionContext(), relative_positions(5, 5, WIDTH))[0]
    assert output.shape == (LENGTH, BATCH, WIDTH)
    assert ours.scale == 3**-0.5


def test_width_that_heads_do_not_divide():
    with pytest.raises(ShapeError, match="d_model is 9, expected a multiple of n_head = 2"):
        RelativeAttention(9, 2)


def test_dropout_is_drawn_in_training_only():
    ours = RelativeAttention(WIDTH, HEADS, dropout=0.5, initializer_range=0.5)
    x = operands()
    arguments = (x["h"].float(), None, AttentionContext(), relative_positions(5, 5, WIDTH))
    with torch.no_grad():
        first, second = (ours.train()(*arguments)[0] for _ in range(2))
        assert not torch.equal(first, second)
        first, second = (ours.eval()(*arguments)[0] for _ in range(2))
        assert torch.equal(first, second)


@pytest.mark.parametrize("attentions", [False, True])
def test_backends_agree_and_a_missing_one_raises(layer, attentions):
    context, _ = contexts("one stream")
    x = operands()
    results = []
    for backend in ("sdpa", "reference"):
        named = AttentionContext(context.mask, context.segments, backend=backend)
        results.append(flat(layer(x["h"], None, named, x["r"], x["memory"], attentions)))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)
    for backend, error in (("triton", BackendUnavailable), ("nonsense", ArgumentError)):
        with pytest.raises(error, match=backend):
            layer(x["h"], None, AttentionContext(backend=backend), x["r"], x["memory"])


@needs_kernels
@pytest.mark.parametrize("kind", ["one stream", "positions"])
def test_the_cpu_kernels_are_as_accurate_as_the_reference(layer, kind):
    """In fp32, the kernels' dtype; many inputs, so that no single element decides by luck."""
    context, _ = contexts(kind)
    single = copy.deepcopy(layer).float()
    layer.load_state_dict(single.state_dict())
    results = {"cpu": [], "reference": [], "exact": []}
    for seed in range(16):
        x = {name: value.float() for name, value in operands(seed).items()}
        for name, values in results.items():
            own = layer if name == "exact" else single
            mine = {n: value.double() for n, value in x.items()} if name == "exact" else x
            backend = "reference" if name == "exact" else name
            g = None if kind == "one stream" else mine["g"]
            named = replace(context, backend=backend)
            values.append(flat(own(mine["h"], g, named, mine["r"], mine["memory"])))
    for streams in zip(*(zip(*values, strict=True) for values in results.values()), strict=True):
        assert_within(*(torch.stack(stream).detach() for stream in streams))


BAD = {
    "h of rank 2": ({"h": torch.ones(LENGTH, 8, dtype=F64)}, ShapeError, r"h has shape \(5, 8\)"),
    "g of rank 2": ({"g": torch.ones(2, WIDTH, dtype=F64)}, ShapeError, r"g has shape \(2, 8\)"),
    "memory of another width": (
        {"memory": torch.ones(MEMORY, BATCH, 3, dtype=F64)},
        ShapeError,
        r"memory has shape \(3, 2, 3\), expected \(M, 2, 8\)",
    ),
    "table of another width": (
        {"r": torch.ones(2 * KEYS, 1, 3, dtype=F64)},
        ShapeError,
        r"shape \(16, 1, 3\), expected width 8",
    ),
    "h of another width": (
        {"h": torch.ones(LENGTH, BATCH, 3, dtype=F64), "memory": None},
        ShapeError,
        r"shape \(5, 2, 3\), expected width 8",
    ),
    "short table": ({"r": torch.ones(KEYS, 1, WIDTH, dtype=F64)}, ShapeError, "r has 8 rows"),
    "groups": ({"r": torch.ones(2 * KEYS, 3, WIDTH, dtype=F64)}, ShapeError, "r has 3 groups"),
    "mask": (
        {"context": AttentionContext(AttentionMask(key_padding=torch.ones(2, 3).bool()))},
        ShapeError,
        r"mask.key_padding has shape \(2, 3\), expected \(2, 8\)",
    ),
    "segments": (
        {"context": AttentionContext(segments=torch.ones(2, 3).long())}, ShapeError, "segments_"
    ),
    "float segments": (
        {"context": AttentionContext(segments=torch.ones(2, KEYS))}, ArgumentError, "segments_"
    ),
    "query stream without targets": (
        {"g": torch.ones(2, BATCH, WIDTH, dtype=F64)}, ShapeError, "q_g .without positions"
    ),
    "position beyond the segment": (
        {"g": torch.ones(2, BATCH, WIDTH, dtype=F64),
         "context": AttentionContext(positions=torch.full((BATCH, 2), LENGTH))},
        ArgumentError,
        "positions reach 5",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input(layer, case):
    changes, error, message = BAD[case]
    x = {**operands(), "g": None, "context": AttentionContext(), **changes}
    with pytest.raises(error, match=message):
        layer(x["h"], x["g"], x["context"], x["r"], x["memory"])


@pytest.mark.parametrize("attn_type", ["bi", "uni"])
@pytest.mark.parametrize("bi_data", [False, True])
@pytest.mark.parametrize("clamp_len", [-1, 0, 3])
@pytest.mark.parametrize("memory", [0, 4])
@pytest.mark.parametrize("width", [8, 10])
def test_position_table_is_hugging_faces(attn_type, bi_data, clamp_len, memory, width):
    options = {"attn_type": attn_type, "bi_data": bi_data, "clamp_len": clamp_len}
    model = XLNetModel(config(d_model=width, **options))
    keys = memory + LENGTH
    ours = relative_positions(LENGTH, keys, width, **options)
    theirs = model.relative_positional_encoding(LENGTH, keys, bsz=4)
    assert ours.shape == (
        2 * LENGTH + memory if attn_type == "bi" else keys + 1,
        1 + bi_data,
        width,
    )
    assert torch.equal(ours.repeat_interleave(4 // ours.shape[1], dim=1), theirs)


def test_position_table_row_p_encodes_the_distance_j_minus_p():
    table = relative_positions(3, 7, 8)
    for row in range(table.shape[0]):
        angle = (7 - row) * 10000 ** (-torch.arange(0, 8, 2) / 8)
        expected = torch.cat([angle.sin(), angle.cos()])
        torch.testing.assert_close(table[row, 0], expected)
    with pytest.raises(ArgumentError, match="attn_type is 'both', expected 'bi' or 'uni'"):
        relative_positions(3, 7, 8, attn_type="both")


def test_layer_survives_a_copy(layer):
    x = operands()
    arguments = (x["h"], None, contexts("one stream")[0], x["r"], x["memory"])
    assert torch.equal(copy.deepcopy(layer)(*arguments)[0], layer(*arguments)[0])
