"""The adapters of NeMo's, ESPnet's and SpeechBrain's attention, on modules of our own."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from family_parity import randomized, run
from toolkit_calls import BATCH, HEADS, KITS, LENGTH, WIDTH, Called, Kit, frames, hold
from toolkit_modules import LOOKALIKES
from torch import Tensor, nn
from transformers import XLMConfig, XLMModel

import xlnet_fast
from xlnet_fast.hf.adoption import original_class
from xlnet_fast.tolerance import assert_within

MASKS = ("", "padding", "window", "padding window", "padding any")
every_kit = pytest.mark.parametrize("kit", KITS.values(), ids=KITS)
every_mask = pytest.mark.parametrize("masks", MASKS)


def made(kit: Kit, **options: Any) -> Called:
    return randomized(Called(kit, kit.own(HEADS, WIDTH, **options)), scale=0.3)


def fast_of(model: nn.Module) -> Any:
    return xlnet_fast.accelerate(copy.deepcopy(model))


@every_kit
@every_mask
def test_parity(kit: Kit, masks: str) -> None:
    """Outputs of all frames, those of padding too, and all gradients."""
    hold(kit, masks)


@every_kit
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision(kit: Kit, dtype: torch.dtype) -> None:
    hold(kit, "padding", dtype=dtype)


@every_kit
def test_autocast(kit: Kit) -> None:
    bf16 = torch.bfloat16
    hold(kit, "padding", context=lambda: torch.autocast("cpu", bf16), working=bf16)


@every_kit
def test_backend_by_name(kit: Kit) -> None:
    hold(kit, "padding any", backend="sdpa")


@every_kit
def test_padding_that_is_no_number(kit: Kit) -> None:
    """Nothing of it reaches a real frame, where the toolkits' own products carry it there."""
    fast, inputs = fast_of(made(kit)), frames(masks="padding")
    expected = run(fast, inputs, backward=False)["0"]
    real = ~inputs["padding"]
    inputs["x"] = inputs["x"].masked_fill(~real[..., None], torch.nan)
    result = run_unchecked(fast, inputs)
    assert torch.equal(result[real], expected[real])


def run_unchecked(model: nn.Module, inputs: dict[str, Any]) -> Tensor:
    with torch.no_grad():
        return model(**inputs)[0]


@every_kit
def test_dropout(kit: Kit) -> None:
    """Other draws at every call, none in evaluation; everything has a gradient."""
    model = fast_of(made(kit, dropout=0.2)).train()
    inputs = frames(masks="padding")
    first, second = (run(model, inputs) for _ in range(2))
    assert all(value is not None for value in first.values())
    assert not torch.equal(first["0"], second["0"])
    model.eval()
    assert torch.equal(run_unchecked(model, inputs), run_unchecked(model, inputs))


@every_kit
def test_mechanics(kit: Kit) -> None:
    model = made(kit)
    fast, inputs = fast_of(model), frames(masks="padding")
    ours, theirs = run_unchecked(fast, inputs), run_unchecked(model, inputs)
    assert fast.state_dict().keys() == model.state_dict().keys()
    again = copy.deepcopy(fast)
    again.attention = pickle.loads(pickle.dumps(fast.attention))
    assert original_class(again.attention) is type(model.attention)
    assert torch.equal(run_unchecked(again, inputs), ours)
    assert torch.equal(run_unchecked(xlnet_fast.restore(fast), inputs), theirs)
    assert type(fast.attention) is type(model.attention)


@every_kit
def test_compiled_and_exported(kit: Kit) -> None:
    model = made(kit)
    fast, inputs = fast_of(model), frames(masks="padding")
    theirs = run_unchecked(model, inputs)
    doubles = inputs | {name: inputs[name].double() for name in ("x", "pos")}
    exact = run_unchecked(copy.deepcopy(model).double(), doubles)
    with torch.no_grad():
        compiled = torch.compile(fast, backend="eager", fullgraph=True)(**inputs)[0]
        exported = torch.export.export(fast, (), inputs).module()(**inputs)[0]
    assert_within(compiled, theirs, exact)
    assert_within(exported, theirs, exact)


@pytest.mark.parametrize(("module", "said"), LOOKALIKES.values(), ids=LOOKALIKES)
def test_lookalikes_stay(module: nn.Module, said: str) -> None:
    """A name is no proof; what is found instead is said."""
    model = fast_of(nn.ModuleList([module]))
    assert original_class(model[0]) is None
    assert said in str(xlnet_fast.explain(model)).replace("\n", " ")


@pytest.mark.parametrize(
    ("name", "attribute", "value", "said"),
    [
        ("ESPnet", "zero_triu", True, "zero_triu is set"),
        ("ESPnet", "q_norm", nn.LayerNorm(8), "normalizes queries and keys by q_norm"),
        ("SpeechBrain", "mask_pos_future", True, "mask_pos_future is set"),
        ("NeMo", "d_k", 300, "its head dim is 300"),
    ],
)
def test_settings_that_stay(name: str, attribute: str, value: Any, said: str) -> None:
    model = made(KITS[name])
    setattr(model.attention, attribute, value)
    xlnet_fast.accelerate(model)
    assert original_class(model.attention) is None
    assert said in str(xlnet_fast.explain(model)).replace("\n", " ")


@every_kit
def test_proof_draws_no_number_of_the_user(kit: Kit) -> None:
    model = made(kit, dropout=0.123)  # not tried yet
    before = torch.get_rng_state()
    xlnet_fast.accelerate(model)
    assert torch.equal(torch.get_rng_state(), before)


@every_kit
def test_subclass_keeps_its_forward(kit: Kit) -> None:
    class Own(kit.own):  # type: ignore[name-defined]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return super().forward(*args, **kwargs)

    model = Called(kit, Own(HEADS, WIDTH))
    xlnet_fast.accelerate(model)
    assert original_class(model.attention) is None
    assert "Own overrides forward" in str(xlnet_fast.explain(model))


@every_kit
def test_patched_class(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    fast, inputs = fast_of(made(kit)), frames()
    nothing = torch.zeros(BATCH, LENGTH, WIDTH)
    monkeypatch.setattr(kit.own, "forward", lambda self, *args, **kwargs: (nothing,))
    with torch.no_grad():
        assert not bool(fast(**inputs)[0][0].any())


def test_nemo_cache() -> None:
    """Frames of before are keys, and the cache goes on as NeMo's code takes it."""
    model = made(KITS["NeMo"])
    model.attention.cache_drop_size = 2
    fast = fast_of(model)
    new, cache = frames(6)["x"], frames(9, seed=1)["x"]
    pos = frames(15)["pos"]
    mask = torch.rand(BATCH, 6, 15) < 0.3
    given = {"query": new, "key": new, "value": new, "mask": mask, "pos_emb": pos, "cache": cache}
    (ours, kept), (theirs, expected) = fast.attention(**given), model.attention(**given)
    doubles = {name: x.double() if x.is_floating_point() else x for name, x in given.items()}
    exact, _ = copy.deepcopy(model.attention).double()(**doubles)
    assert torch.equal(kept, expected)
    assert_within(ours, theirs, exact)


def test_espnet_probabilities() -> None:
    """A hook finds them; without one, those of an earlier call are gone."""
    model = made(KITS["ESPnet"])
    fast, inputs = fast_of(model), frames(masks="padding")
    seen: list[Tensor] = []
    handle = fast.attention.register_forward_hook(lambda m, args, out: seen.append(m.attn))
    run_unchecked(fast, inputs)
    run_unchecked(model, inputs)
    assert torch.equal(seen[0], model.attention.attn)
    handle.remove()
    run_unchecked(fast, inputs)
    assert fast.attention.attn is None


def test_speechbrain_weights() -> None:
    """They are there where they are asked for."""
    model = made(KITS["SpeechBrain"])
    fast, inputs = fast_of(model).attention, frames()
    x, pos = inputs["x"], inputs["pos"]
    out, weights = model.attention(x, x, x, pos)
    assert all(map(torch.equal, fast(x, x, x, pos, return_attn_weights=True), (out, weights)))
    assert fast(x, x, x, pos)[1] is None
    assert isinstance(fast(x, x, x, pos, return_attn_weights=False), Tensor)
    fast.register_forward_hook(lambda module, args, result: None)
    assert torch.equal(fast(x, x, x, pos)[1], weights)


@pytest.mark.parametrize("name", KITS)
def test_calls_that_are_theirs(name: str) -> None:
    """Masks and operands that the op does not answer for give what the toolkit's code gives."""
    model = made(KITS[name])
    ours, theirs = fast_of(model).attention, model.attention
    inputs = frames()
    x, pos = inputs["x"], inputs["pos"]
    y = x.flip(0)
    shared = torch.ones(1, LENGTH, LENGTH, dtype=torch.bool).tril()
    calls: dict[str, list[tuple[tuple[Any, ...], dict[str, Any]]]] = {
        "NeMo": [((x, x, x, ~shared, pos), {})],
        "ESPnet": [((x, x, x, pos, shared), {})],
        "SpeechBrain": [
            ((x, y, y, pos), {}),
            ((x, x, x, pos), {"attn_mask": torch.randn(LENGTH, LENGTH)}),
        ],
    }
    for args, kwargs in calls[name]:
        result, expected = ours(*args, **kwargs), theirs(*args, **kwargs)
        if isinstance(result, tuple):
            result, expected = result[0], expected[0]
        assert torch.equal(result, expected)


def test_families_together() -> None:
    """Three toolkits and a model of Hugging Face's in one of a user's."""
    xlm = XLMModel(XLMConfig(vocab_size=20, emb_dim=16, n_layers=1, n_heads=2))
    model = nn.ModuleList([*(made(kit) for kit in KITS.values()), xlm])
    xlnet_fast.accelerate(model)
    told = xlnet_fast.explain(model)
    assert {row.family for row in told.rows} == {"XLM", *KITS}
    assert sum(original_class(module) is not None for module in model.modules()) == 3 + 2
    xlnet_fast.restore(model)
    assert not xlnet_fast.is_accelerated(model)
