"""One graph under ``torch.compile``, and ``torch.export`` for any number of frames."""

from __future__ import annotations

import pytest
import torch
from family_parity import LENGTH, accelerated, cast, outputs_of
from hf_parity import F64, assert_tight
from tiny_speech import CASES

TRACED = "eager"  # a backend for what Dynamo alone decides
FEW = {
    "bert relative": {"num_hidden_layers": 1},
    "seamless v2": {"speech_encoder_layers": 1, "add_adapter": False},
    "fastspeech2": {"encoder_layers": 1},
    "speecht5": {"encoder_layers": 1},
    "granite": {"num_layers": 1},
    "granite 5": {"num_hidden_layers": 1},
}


@pytest.fixture
def poisoned_memory():
    """Not here: a traced program would contain the poison."""


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("name", "implementation"), [("bert relative", "eager"), ("speecht5", "eager")]
)
def test_one_graph(name, implementation):
    """With an additive mask, which must not be looked at: SpeechT5's is known to be padding."""
    case = CASES[name]
    model = accelerated(case.model(implementation, **FEW[name]).double())
    compiled = torch.compile(model, fullgraph=True, backend=TRACED)
    inputs = cast(case.inputs(2, LENGTH, True, 0), F64)
    with torch.no_grad():
        assert_tight(outputs_of(compiled, inputs), outputs_of(model, inputs))


@pytest.mark.parametrize("name", ["seamless v2", "fastspeech2", "granite", "granite 5"])
def test_export(name):
    case = CASES[name]
    model = accelerated(case.model(**FEW[name]).double())
    inputs = cast(case.inputs(2, LENGTH, True, 0), F64)
    with torch.no_grad():
        program = torch.export.export(model, (), inputs, strict=False)
        assert_tight(outputs_of(program.module(), inputs), outputs_of(model, inputs))
