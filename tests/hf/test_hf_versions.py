"""Versions of transformers: which are supported, and what is done where they differ.

`make oldest` runs these and other tests with the oldest; here its form of the code is made by hand.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from hf_parity import (
    CLASSES,
    F64,
    accelerated,
    assert_tight,
    hf_in,
    random_ids,
    random_mems,
    run,
    tiny_model,
)
from transformers import XLNetForMultipleChoice, XLNetForQuestionAnswering, XLNetLMHeadModel

from xlnet_fast.errors import UnsupportedVersion
from xlnet_fast.hf import versions

ROOT = Path(__file__).resolve().parents[2]
OLDEST, NEWEST = (".".join(map(str, end)) for end in (versions.OLDEST, versions.NEWEST))
BATCH, LENGTH = 2, 5
HEAD_MASK = torch.tensor([[0.5, 1.0], [0.0, 2.0]], dtype=F64)
while_there_was_a_head_mask = pytest.mark.skipif(
    not versions.HAS_HEAD_MASK, reason="needs transformers before 5.0"
)


def module_with(version, monkeypatch):
    """The module as it is where transformers has this version."""
    # Not as imported here: transformers puts another module in its own place.
    monkeypatch.setattr(sys.modules["transformers"], "__version__", version)
    spec = importlib.util.find_spec("xlnet_fast.hf.versions")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ---- which are supported ----


@pytest.mark.parametrize("version", ["3.5.1", "4.8.0", "4.56.2"])
def test_an_older_version_is_refused_with_what_would_do(version, monkeypatch):
    with pytest.raises(UnsupportedVersion) as refused:
        module_with(version, monkeypatch)
    message = str(refused.value)
    assert f"transformers {version} is too old" in message
    assert f"tested with {OLDEST} to {NEWEST}" in message
    assert f"pip install 'transformers>={OLDEST}'" in message
    assert isinstance(refused.value, ImportError)


@pytest.mark.parametrize("version", [f"{NEWEST[:-1]}99.0", "6.0.0.dev0"])
def test_a_newer_version_has_one_warning(version, monkeypatch):
    monkeypatch.delenv("XLNET_FAST_NO_WARN", raising=False)
    with pytest.warns(UserWarning, match=f"transformers {version} is newer.*xlnet-fast check"):
        module_with(version, monkeypatch)
    monkeypatch.setenv("XLNET_FAST_NO_WARN", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module_with(version, monkeypatch)


@pytest.mark.parametrize("version", [f"{OLDEST}.0", f"{NEWEST}.3", f"{NEWEST}.0.dev0", "5.0.0rc1"])
def test_what_lies_between_is_taken_in_silence(version, monkeypatch):
    monkeypatch.delenv("XLNET_FAST_NO_WARN", raising=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module_with(version, monkeypatch)


def test_the_drop_in_refuses_before_anything_else_and_the_rest_stays():
    """By a module in the place of an old transformers, which has nothing that is imported."""
    code = (
        "import sys, types\n"
        "sys.modules['transformers'] = types.ModuleType('transformers')\n"
        "sys.modules['transformers'].__version__ = '4.40.0'\n"
        "import xlnet_fast\n"
        "try:\n"
        "    xlnet_fast.accelerate\n"
        "except xlnet_fast.XLNetFastError as refused:\n"
        "    print(refused)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert "transformers 4.40.0 is too old" in done.stdout, done.stderr


def test_the_pages_and_the_package_say_the_same():
    project = (ROOT / "pyproject.toml").read_text()
    assert f'"transformers>={OLDEST},<6"' in project
    assert f"transformers {OLDEST} to {NEWEST}" in (ROOT / "docs/install.md").read_text()
    assert f"OLDEST ?= transformers=={OLDEST}" in (ROOT / "Makefile").read_text()


# ---- what they differ in ----


def test_a_forward_of_version_4_has_head_mask_before_the_later_arguments(monkeypatch):
    def forward(self, first=None, second=None, third=None, *, head_mask=None):
        return first, second, third, head_mask

    old = module_with("4.57.6", monkeypatch).with_head_mask_at(1)(forward)
    assert old(None, 1) == (1, None, None, None)
    assert old(None, 1, 2, 3) == (1, 3, None, 2)
    assert old(None, 1, head_mask=2, third=4) == (1, None, 4, 2)
    new = module_with("5.0.0", monkeypatch).with_head_mask_at(1)(forward)
    assert new is forward  # and costs nothing


@pytest.mark.parametrize("torchscript", [True, False])
def test_torchscript_asks_for_tuples_in_version_4(torchscript, monkeypatch):
    class Config:
        return_dict = True

    Config.torchscript = torchscript
    assert module_with("4.57.6", monkeypatch).returns_dict(Config) is not torchscript
    assert module_with("5.0.0", monkeypatch).returns_dict(Config)


@pytest.mark.parametrize("version", ["4.57.6", "5.23.0", "5.24.0"])
def test_where_generate_keeps_the_memory(version, monkeypatch):
    memory_of = module_with(version, monkeypatch).generated_memory
    grown, begun = (torch.ones(1),), (torch.zeros(1),)
    name = "mems" if version == "5.24.0" else "past_key_values"
    assert memory_of((), {name: grown}) is grown
    assert memory_of((), {"mems": begun}) is begun
    assert memory_of((), {}) is None
    if name != "mems":
        assert memory_of((grown,), {"mems": begun}) is grown
        assert memory_of((), {name: None, "mems": begun}) is begun


@pytest.mark.parametrize(("version", "takes"), [("5.3.0", False), ("5.4.0", True)])
def test_the_table_of_positions_takes_a_device(version, takes, monkeypatch):
    options = module_with(version, monkeypatch).TABLE_OPTIONS(torch.device("cpu"))
    assert options == ({"device": torch.device("cpu")} if takes else {})


@while_there_was_a_head_mask
@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_head_mask_is_hugging_faces(cls):
    model = tiny_model(cls, F64)
    ids = random_ids(BATCH, LENGTH)
    inputs = {"input_ids": ids[:, None] if cls is XLNetForMultipleChoice else ids}
    inputs |= {"head_mask": HEAD_MASK, "output_attentions": True}
    assert_tight(run(accelerated(model), inputs), run(hf_in(model, F64), inputs))


@while_there_was_a_head_mask
@pytest.mark.parametrize("embeds", ["by name", "by position"])
def test_question_answering_with_embeddings(embeds):
    """Of fewer tokens than the beam has, which is looked up among the arguments."""
    model = tiny_model(XLNetForQuestionAnswering, F64, start_n_top=4, end_n_top=4)
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(BATCH, LENGTH, model.config.d_model, generator=generator, dtype=F64)
    for length in (LENGTH, 3):
        given = inputs[:, :length]
        named = embeds == "by name"
        args = () if named else (*[None] * 7, HEAD_MASK, given)
        kwargs = {"head_mask": HEAD_MASK, "inputs_embeds": given} if named else {}
        actual = accelerated(model)(*args, **kwargs)
        assert actual.start_top_index.shape == (BATCH, min(length, 4))
        if length > 4:
            expected = hf_in(model, F64)(*args, **kwargs)
            assert_tight({"end": actual.end_top_log_probs}, {"end": expected.end_top_log_probs})


@while_there_was_a_head_mask
def test_torchscript_gives_hugging_faces_tuples():
    model = tiny_model(XLNetLMHeadModel, F64, torchscript=True)
    outputs = [m(random_ids(BATCH, LENGTH)) for m in (accelerated(model), model)]
    assert all(type(output) is tuple for output in outputs)
    assert_tight(*({"logits": output[0].detach()} for output in outputs))


def test_an_attention_layer_alone_takes_what_hugging_faces_takes():
    """By position too, where `head_mask` comes before `output_attentions`."""
    model = tiny_model(dtype=F64)
    ours, theirs = (m.layer[0].rel_attn for m in (accelerated(model), model))
    h = random_mems(BATCH, LENGTH)[0].double()
    r = random_mems(BATCH, 2 * LENGTH, 1)[0].double()
    mask = torch.zeros(LENGTH, LENGTH, BATCH, 1, dtype=F64)
    weights = [torch.full((LENGTH, LENGTH, BATCH, 2), 0.5, dtype=F64)]
    further = weights if versions.HAS_HEAD_MASK else []
    arguments = (h, None, mask, None, r, None, None, None, *further, True)
    expected = theirs(*arguments)
    actual = ours(*arguments)
    torch.testing.assert_close(actual[0], expected[0])
    torch.testing.assert_close(actual[2], expected[2])
