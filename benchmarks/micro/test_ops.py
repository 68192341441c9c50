"""One call of each op beside HF's own lines, small enough to see the overhead of a call."""

import pytest
import torch

from ..cases.masked_softmax import Scores
from ..cases.rel_attention import FORWARD, FORWARD_BACKWARD, RelAttentionCase, make_inputs
from ..providers.masked_softmax import hf_run, our_run
from ..providers.rel_attention import HF_EAGER, OURS, SDPA_BIAS, prepare


@pytest.mark.parametrize("provider", [HF_EAGER, SDPA_BIAS, OURS], ids=lambda p: p.name)
@pytest.mark.parametrize("pass_name", [FORWARD, FORWARD_BACKWARD])
@pytest.mark.parametrize("length", [16, 128, 512])
def test_rel_attention(benchmark, provider, pass_name, length):
    benchmark.group = f"rel_attention {length} {pass_name}"
    case = RelAttentionCase(1, length, pass_name=pass_name)
    result = benchmark(prepare(provider, case, make_inputs(case)).run)
    assert all(bool(torch.isfinite(x).all()) for x in result)


@pytest.mark.parametrize("make", [hf_run, our_run], ids=["hf_eager", "ours"])
@pytest.mark.parametrize("length", [16, 256])
def test_masked_softmax(benchmark, make, length):
    benchmark.group = f"masked_softmax {length}"
    scores = Scores(1, length, 12, torch.float32, torch.device("cpu"))
    probabilities = benchmark(make(scores))
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(1, 12, length))


@pytest.mark.parametrize("provider", ["hf_eager", "ours"])
def test_concat_memory(benchmark, provider):
    from types import SimpleNamespace

    from transformers import XLNetModel

    from xlnet_fast.ops import concat_memory

    benchmark.group = "concat_memory"
    hidden, memory = torch.randn(512, 1, 768), torch.randn(384, 1, 768)
    if provider == "ours":
        result = benchmark(lambda: concat_memory(hidden, memory, mem_len=384, reuse_len=256))
    else:
        settings = SimpleNamespace(mem_len=384, reuse_len=256)
        result = benchmark(lambda: XLNetModel.cache_mem(settings, hidden, memory))
    assert torch.equal(result, torch.cat([memory, hidden[:256]])[-384:])


def test_choosing_a_backend(benchmark):
    from xlnet_fast.ops._dispatch import Request, choose

    benchmark.group = "dispatch"
    choice = benchmark(choose, Request("rel_attention", "cpu", torch.float32))
    assert choice.backend != "reference"
