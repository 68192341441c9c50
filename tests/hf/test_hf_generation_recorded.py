"""Steps as one CUDA graph, on a CPU: what is recorded is done again on the same tensors."""

from __future__ import annotations

import contextlib
import gc
import weakref
from itertools import pairwise
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from generation_oracle import drive, in_float64, wide_model
from hf_parity import VOCABULARY, accelerated, random_ids, tiny_config
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import XLNetLMHeadModel

import xlnet_fast
from xlnet_fast.errors import PerformanceWarning
from xlnet_fast.hf.families.xlnet.generation import recorded, slots
from xlnet_fast.hf.families.xlnet.generation.parts import Parts
from xlnet_fast.hf.families.xlnet.generation.recorded import RecordedStep
from xlnet_fast.hf.families.xlnet.generation.state import first_step
from xlnet_fast.hf.families.xlnet.generation.step import Ran
from xlnet_fast.ops import cached_attention

STEPS = 14


class Log(TorchDispatchMode):
    """Every operator with its tensors, as a CUDA graph keeps kernels with their addresses."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = str(function)
        assert "_local_scalar_dense" not in name, "the device is waited for"
        out = function(*args, **(kwargs or {}))
        self.calls.append((function, args, kwargs or {}, out))
        return out


class Replayed:
    """A recorder whose replay does the same operators on the same tensors, and nothing else."""

    made: ClassVar[list[Replayed]] = []

    def __init__(self):
        self.replays = 0
        self.made.append(self)

    def record(self, function):
        with Log() as log:
            function()
        self.calls = log.calls

    def replay(self):
        self.replays += 1
        for function, args, kwargs, out in self.calls:
            inputs = {x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs))
                      if isinstance(x, torch.Tensor)}  # fmt: skip
            for old, new in zip(
                tree_leaves(out), tree_leaves(function(*args, **kwargs)), strict=True
            ):
                if old.untyped_storage().data_ptr() not in inputs:  # no view, and not in place
                    old.copy_(new)


@pytest.fixture
def replayed(monkeypatch):
    """As if the CPU were a GPU, whose allocations hold a few steps."""
    Replayed.made.clear()
    monkeypatch.setattr(recorded, "recorder_for", lambda device: Replayed)
    monkeypatch.setattr(cached_attention, "can_look", lambda x: False)
    monkeypatch.setattr(slots, "_LEAST_SPARE", 7)
    monkeypatch.setattr(recorded, "_GIVES_THE_SAME", {})
    return Replayed.made


CONFIGS = {"plain": {}, "mem_len 1": {"mem_len": 1}, "mem_len 9": {"mem_len": 9},
           "reuse_len 1": {"reuse_len": 1}, "clamp_len": {"clamp_len": 3}}  # fmt: skip


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize(("attn_type", "use_mems"), [("bi", True), ("uni", True), ("uni", False)])
def test_replayed_steps_are_hugging_faces(replayed, config, attn_type, use_mems):
    theirs = in_float64(wide_model(attn_type=attn_type, **CONFIGS[config]))
    ours = accelerated(wide_model(attn_type=attn_type, **CONFIGS[config]).double())
    ids = random_ids(1, 5)
    expected, tokens, mems = drive(theirs, ids, STEPS, use_mems)
    logits, _, state = drive(ours, ids, tokens[:, 5:], use_mems)
    for a, b in zip(logits, expected, strict=True):
        assert float((a - b).abs().max() / b.abs().max()) < 1e-12
    if use_mems:
        assert all(
            float((a - b).abs().max()) < 1e-11
            for a, b in zip(state, mems, strict=True)
            if a.numel()
        )
    if config != "reuse_len 1":  # forgets a row at each step, which takes other slots
        assert len(replayed) + sum(each.replays for each in replayed) == STEPS - 1
        assert len(replayed) < STEPS / 2


def test_padded_texts(replayed):
    ours, ids = accelerated(wide_model().double()), random_ids(2, 6)
    mask = torch.ones(2, 6, dtype=torch.long)
    mask[1, :3] = 0
    theirs = in_float64(wide_model())
    alone = [drive(theirs, ids[b : b + 1, mask[b] > 0], STEPS, True) for b in range(2)]
    tokens = torch.cat([text[:, -STEPS:] for _, text, _ in alone])
    logits, _, _ = drive(ours, ids, tokens, True, attention_mask=mask)
    for b, (expected, _, _) in enumerate(alone):
        for a, right in zip(logits, expected, strict=True):
            assert float((a[b] - right[0]).abs().max() / right.abs().max()) < 1e-12
    assert replayed


def test_beams_move_in_the_slots_that_were_recorded(replayed):
    theirs = wide_model()
    given = {"num_beams": 4, "do_sample": False, "max_new_tokens": 20}
    expected = theirs.generate(random_ids(2, 5), **given)
    assert torch.equal(accelerated(theirs).generate(random_ids(2, 5), **given), expected)
    assert sum(each.replays for each in replayed) > 10


def test_logits_of_one_step_outlive_the_next(replayed):
    ours = accelerated(wide_model())
    logits, _, _ = drive(ours, random_ids(1, 5), 6, True)
    assert all(not torch.equal(a, b) for a, b in pairwise(logits))


def test_all_of_it_is_on_the_device(monkeypatch):
    """On a device without values nothing can be looked at, and no tensor of a CPU mixes."""
    monkeypatch.setattr(Replayed, "record", lambda self, function: function())
    ours = xlnet_fast.accelerate(XLNetLMHeadModel(tiny_config()).eval().to("meta"))
    parts = Parts(ours)
    ids = torch.zeros(2, 2, dtype=torch.long, device="meta")
    room = slots.Slots(parts, 2, 10, with_inputs=True)
    step = first_step(parts, ids, ids > 0, remembers=True)
    with torch.no_grad():
        once = RecordedStep(step, room, ours.lm_loss, Replayed())
        logits = once.run(step, Ran(room, 0, 0, object()))
    assert logits.device.type == "meta"
    assert logits.shape == (2, 1, VOCABULARY)


class Wrong(Replayed):
    """Its replays are not what was recorded."""

    def record(self, function):
        super().record(function)
        self.calls[-1][0](*self.calls[-1][1])
        self.calls[-1][1][0].mul_(1.1)


class Failing(Replayed):
    def record(self, function):
        raise RuntimeError("operation not permitted when stream is capturing\nand more")


@pytest.mark.parametrize(
    ("recorder", "words"),
    [(Wrong, r"off by 1\.0e-01"), (Failing, "recording failed: operation not permitted")],
)
def test_what_records_wrongly_is_not_used(replayed, monkeypatch, recorder, words):
    monkeypatch.setattr(recorded, "recorder_for", lambda device: recorder)
    theirs, ids = wide_model(), random_ids(1, 5)
    expected = theirs.generate(ids, max_new_tokens=9, do_sample=False)
    with pytest.warns(PerformanceWarning, match=words) as warned:
        found = accelerated(theirs).generate(ids, max_new_tokens=9, do_sample=False)
    assert torch.equal(found, expected)
    assert len(warned) == 1
    assert len(replayed) == 1
    assert not replayed[0].replays


def test_slots_are_freed_when_the_state_is(replayed):
    """At once: a GPU's memory must not wait for the garbage collector."""
    ours = accelerated(wide_model())
    _, _, state = drive(ours, random_ids(1, 5), 6, True)
    freed = []
    weakref.finalize(state._ran.slots, freed.append, True)
    replayed.clear()
    gc.disable()
    try:
        del state
        assert freed
    finally:
        gc.enable()


def test_a_graph_is_captured_and_replayed_on_the_model_s_device(monkeypatch):
    """With PyTorch's own calls noted, in the order that its documents ask for."""
    noted = []

    def note(name):
        @contextlib.contextmanager
        def within(*args, **kwargs):
            noted.append((name, *map(str, args[-1:]), *map(str, kwargs.values())))
            yield

        return within

    for name in ("device", "stream", "graph"):
        monkeypatch.setattr(torch.cuda, name, note(name))
    stream = SimpleNamespace(wait_stream=lambda other: noted.append(("wait",)))
    monkeypatch.setattr(torch.cuda, "Stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    graph = SimpleNamespace(replay=lambda: noted.append(("replay",)))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: graph)
    recorder = recorded.recorder_for(torch.device("cuda", 1))()
    recorder.record(lambda: noted.append(("work",)))
    recorder.replay()
    names = [entry[0] for entry in noted]
    assert names == [
        "device", "device", "wait", "stream", "work", "work", "work", "wait", "graph", "work",
        "device", "replay", "device", "replay",
    ]  # fmt: skip
    assert {entry for entry in noted if entry[0] == "device"} == {("device", "cuda:1")}
    assert noted[8][-1] == "thread_local"


def test_a_cpu_records_nothing():
    assert recorded.recorder_for(torch.device("cpu")) is None
