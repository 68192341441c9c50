"""Dropout of hidden states: the op, and the modules it stands for."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils import checkpoint

import xlnet_fast
from xlnet_fast import _extension
from xlnet_fast.errors import ArgumentError
from xlnet_fast.nn import dropout as dropout_module
from xlnet_fast.nn.dropout import drop, is_idle
from xlnet_fast.ops.dropout import dropout
from xlnet_fast.philox import keep_mask

SEED = torch.tensor([0x1234_5678_9ABC])
built = pytest.mark.skipif(_extension.load() is None, reason="needs the compiled extension")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@pytest.fixture
def ours(monkeypatch):
    """The masks that were made by us, by the number of their elements; also of small tensors."""
    calls, real = [], dropout_module.dropout

    def counted(x, p, seed):
        calls.append(x.numel())
        return real(x, p, seed)

    monkeypatch.setattr(dropout_module, "dropout", counted)
    monkeypatch.setattr(dropout_module, "LEAST", 1)
    return calls


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("p", [0.1, 0.5, 0.999])
def test_the_op_is_its_mask(dtype, p):
    x = torch.randn(3, 5, 37).to(dtype)
    keep = keep_mask(SEED, p, 1, 1, (0, 15), 37).view(3, 5, 37)
    out = dropout(x, p, SEED)
    assert out.dtype == dtype
    assert bool((out[~keep] == 0).all())
    assert torch.equal(out[keep], x[keep] * (1 / (1 - p)))
    assert dropout(x, 0.0, SEED) is x
    assert not torch.equal(dropout(x, p, SEED + 1), out)


@pytest.mark.parametrize(
    "x",
    [
        torch.randn(5, 3, 37).transpose(0, 1),
        torch.randn(37).expand(3, 5, 37),
        torch.randn(3, 5, 74)[..., ::2],
        torch.randn(3, 0, 37),
        torch.randn(37),
    ],
)
def test_strides_and_sizes(x):
    assert torch.equal(dropout(x, 0.3, SEED), dropout(x.contiguous(), 0.3, SEED))
    assert dropout(x, 0.3, SEED).is_contiguous()


def test_what_is_dropped_was_no_number():
    x = torch.full((64, 64), torch.nan)
    out = dropout(x, 0.5, SEED)
    assert bool((out.isnan() | (out == 0)).all())
    assert 0.45 < out.isnan().float().mean() < 0.55


def test_gradients():
    x = torch.randn(4, 33, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: dropout(t, 0.4, SEED), x)
    assert torch.autograd.gradgradcheck(lambda t: dropout(t, 0.4, SEED).square(), x)
    torch.library.opcheck(torch.ops.xlnet_fast.dropout.default, (x, SEED, 0.4))


def test_nothing_but_the_seed_is_kept_for_the_backward_pass():
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        dropout(torch.randn(64, 64, requires_grad=True), 0.4, SEED)
    assert [t.numel() for t in kept] == [1]


@pytest.mark.parametrize(
    ("x", "p", "seed", "message"),
    [
        (torch.ones(3).long(), 0.1, SEED, "x has dtype torch.int64"),
        (torch.tensor(1.0), 0.1, SEED, "x has no dimension"),
        (torch.ones(3), 1.0, SEED, "expected 0 <= dropout_p < 1"),
        (torch.ones(3), 0.1, None, "needs seed"),
        (torch.ones(3), 0.1, torch.ones(2).long(), "one element"),
    ],
)
def test_refused(x, p, seed, message):
    with pytest.raises(ArgumentError, match=message):
        dropout(x, p, seed)


# ---- modules ----


@built
def test_a_module_drops_by_our_mask(ours):
    module, x = nn.Dropout(0.3), torch.ones(100, 200)
    torch.manual_seed(5)
    first = drop(module, x)
    torch.manual_seed(5)
    assert torch.equal(drop(module, x), first)
    assert not torch.equal(drop(module, x), first)
    assert ours == [20_000] * 3
    assert first.unique().tolist() == pytest.approx([0.0, 1 / 0.7])
    assert 0.29 < (first == 0).float().mean() < 0.31


@built
def test_a_checkpoint_gets_the_same_mask(ours):
    module, x = nn.Dropout(0.3), torch.randn(50, 40, requires_grad=True)

    def layer(t):
        return drop(module, t).square().sum()

    torch.manual_seed(5)
    (direct,) = torch.autograd.grad(layer(x), x)
    torch.manual_seed(5)
    (again,) = torch.autograd.grad(checkpoint.checkpoint(layer, x, use_reentrant=False), x)
    assert torch.equal(again, direct)
    assert len(ours) == 3


class Own(nn.Dropout):
    def forward(self, x):
        return x * 2


def hooked():
    module = nn.Dropout(0.5)
    module.register_forward_hook(lambda m, args, out: out * 3)
    return module


OTHERS = {
    "evaluation": lambda: nn.Dropout(0.5).eval(),
    "zero": lambda: nn.Dropout(0.0),
    "one": lambda: nn.Dropout(1.0),
    "in place": lambda: nn.Dropout(0.5, inplace=True),
    "another class": lambda: nn.AlphaDropout(0.5),
    "a class of the user's own": lambda: Own(0.5),
    "a hook": hooked,
}


@pytest.mark.parametrize("name", OTHERS)
def test_any_other_module_is_called(name, ours):
    module, x = OTHERS[name](), torch.ones(50, 40)
    torch.manual_seed(5)
    actual = drop(module, x.clone())
    torch.manual_seed(5)
    assert torch.equal(actual, module(x.clone()))
    assert ours == []


def test_what_is_left_to_pytorch(ours, monkeypatch):
    module, x = nn.Dropout(0.5), torch.ones(50, 40)
    assert drop(module, x.to("meta")).device.type == "meta"
    assert torch.vmap(lambda t: drop(module, t), randomness="different")(x).shape == x.shape
    monkeypatch.setattr(dropout_module, "LEAST", x.numel() + 1)
    drop(module, x)
    monkeypatch.setattr(dropout_module, "LEAST", 1)
    monkeypatch.setattr(_extension, "_find", lambda: (None, "not built"))
    drop(module, x)
    assert ours == []


@built
def test_a_compiled_program_drops_by_our_masks(monkeypatch):
    monkeypatch.setattr(dropout_module, "LEAST", 1)
    module = nn.Dropout(0.3)
    compiled = torch.compile(lambda t: drop(module, t), backend="aot_eager", fullgraph=True)
    found = []
    for call in (lambda t: drop(module, t), compiled):
        torch.manual_seed(5)
        x = torch.ones(7, 9, requires_grad=True)
        out = call(x)
        out.square().sum().backward()
        found.append((out.detach(), x.grad))
    torch.testing.assert_close(found[1], found[0], rtol=0.0, atol=0.0)
    assert not torch.equal(compiled(x), compiled(x)), "another mask at each call"


def test_idle():
    assert is_idle(nn.Dropout(0.5).eval())
    assert is_idle(nn.Dropout(0.0))
    assert not is_idle(nn.Dropout(0.5))
    assert not is_idle(nn.AlphaDropout(0.5).eval())
    assert not is_idle(hooked().eval())


@built
def test_a_model_that_trains_drops_by_our_masks(ours):
    from transformers import XLNetConfig, XLNetModel

    config = XLNetConfig(vocab_size=50, d_model=16, n_layer=2, n_head=2, d_inner=32, dropout=0.2)
    model = xlnet_fast.accelerate(XLNetModel(config)).train()
    ids = torch.randint(0, 50, (2, 9))
    torch.manual_seed(3)
    first = model(ids).last_hidden_state
    # Embedding, table; for each layer the attention's output, the inner one, the block's; the last.
    assert len(ours) == 2 + 2 * 3 + 1
    first.square().sum().backward()
    torch.manual_seed(3)
    assert torch.equal(model(ids).last_hidden_state, first)
    assert all(p.grad is not None for name, p in model.named_parameters() if "mask_emb" not in name
               and "seg_embed" not in name and "r_s_bias" not in name)  # fmt: skip
