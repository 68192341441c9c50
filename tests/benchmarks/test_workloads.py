"""What is measured: text batches, attention inputs and providers, and the floor."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import bench_concat_memory, bench_two_stream
from benchmarks.cases.corpus import Corpus, load_corpus, make_batch
from benchmarks.cases.model import ModelCase, flops, load_model, random_model, share
from benchmarks.cases.pretraining import PretrainingCase
from benchmarks.cases.rel_attention import PASSES, RelAttentionCase, make_inputs
from benchmarks.cases.two_stream import TwoStreamCase, leaf_names
from benchmarks.cases.two_stream import make_inputs as two_stream_inputs
from benchmarks.harness import presets
from benchmarks.providers import rel_attention as providers
from benchmarks.providers.floor import GemmFloor
from benchmarks.providers.rel_attention import (
    FLEX,
    HF_EAGER,
    OURS,
    SDPA_BIAS,
    SDPA_FLASH,
    all_providers,
    prepare,
)
from benchmarks.providers.rel_attention_exact import hf_result
from xlnet_fast.errors import ArgumentError

TINY = presets.Geometry("tiny", 2, 64, 4, 96, 600)


def test_batches_are_pairs_of_text_padded_on_the_left():
    lines, starts = torch.tensor([0]), torch.ones(150, dtype=torch.bool)
    corpus = Corpus(torch.arange(100, 150), 4, 3, 5, "numbers", lines, starts)
    batch = make_batch(corpus, 3, 40)
    ids, mask, kinds = batch["input_ids"], batch["attention_mask"], batch["token_type_ids"]
    assert mask.sum(1).tolist() == [38, 36, 34]
    assert (ids[mask == 0] == 5).all()
    assert (kinds[mask == 0] == 3).all()
    assert (mask[:, 1:] >= mask[:, :-1]).all()
    assert ids[:, -1].tolist() == [3, 3, 3]
    assert kinds[0].tolist() == [3] * 2 + [0] * 18 + [1] * 19 + [2]
    text = ids[0][(ids[0] >= 100)].tolist()
    assert text == list(range(100, 135))
    following = ids[1][(ids[1] >= 100)].tolist()
    assert following[:16] == [*range(135, 150), 100]  # starts again at the end of the corpus


def test_the_built_in_corpus_is_real_text(one_cache):
    corpus = load_corpus(vocab_size=600)
    assert len(corpus.ids) > 50_000
    assert int(corpus.ids.min()) >= 0
    assert int(corpus.ids.max()) < 600
    assert "SentencePiece unigram with 600 pieces" in corpus.description
    assert len(corpus.word_starts) == 600
    assert 0 < int(corpus.word_starts.sum()) < 600
    # A line begins with a word, and the text has hundreds of them.
    assert corpus.lines[0] == 0
    assert len(corpus.lines) > 500
    assert corpus.word_starts[corpus.ids[corpus.lines]].float().mean() > 0.9


def test_without_sentencepiece_the_ids_are_bytes_and_the_record_says_so(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sentencepiece", None)
    corpus = load_corpus(vocab_size=600)
    assert int(corpus.ids.max()) < 265
    assert bytes((corpus.ids[:10] - 9).tolist()).decode().isascii()
    assert "bytes" in corpus.description
    newline, letter, space = (9 + ord(c) for c in "\na ")
    assert (corpus.ids[corpus.lines[1:] - 1] == newline).all()
    assert corpus.word_starts[[letter, space]].tolist() == [False, True]
    with pytest.raises(ArgumentError, match="at least 265"):
        load_corpus(vocab_size=100)


def test_inputs_are_the_same_numbers_in_every_dtype():
    case = RelAttentionCase(2, 20, 7, heads=3, head_dim=8)
    double, single = make_inputs(case, torch.float64), make_inputs(case)
    half = make_inputs(RelAttentionCase(2, 20, 7, heads=3, head_dim=8, dtype="bf16"))
    for name in ("q", "k", "v", "r", "r_w_bias", "seg_embed"):
        assert torch.equal(getattr(double, name), getattr(single, name).double())
        assert torch.equal(getattr(double, name), getattr(half, name).double())
    assert double.r.shape == (1, 47, 3, 8)
    assert not double.key_padding[:, :7].any()  # memory is never padded
    assert double.key_padding.any()


@pytest.mark.parametrize(
    ("padding", "segments"), [(True, True), (False, False), (True, False), (False, True)]
)
@pytest.mark.parametrize("pass_name", PASSES)
@pytest.mark.parametrize("provider", [SDPA_BIAS, OURS], ids=lambda p: p.name)
def test_providers_compute_what_hugging_face_computes(provider, pass_name, padding, segments):
    case = RelAttentionCase(
        3, 21, 5, heads=2, head_dim=16, pass_name=pass_name, padding=padding, segments=segments
    )
    results = []
    for each in (HF_EAGER, provider):
        prepared = prepare(each, case, make_inputs(case, torch.float64))
        results.append(prepared.standard(prepared.run()))
    wanted = 1 if pass_name == "forward" else 9 if segments else 7
    assert len(results[0]) == len(results[1]) == wanted
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("pass_name", ["forward", "forward_backward"])
@pytest.mark.parametrize("max_scores", [1, 3 * 21 * 26, 2 * 2 * 21 * 26, 10**9])
def test_the_exact_result_in_parts_is_the_whole(pass_name, max_scores):
    case = RelAttentionCase(3, 21, 5, heads=4, head_dim=16, pass_name=pass_name, dropout=0.1)
    prepared = prepare(HF_EAGER, replace(case, dropout=0.0), make_inputs(case, torch.float64))
    parts = hf_result(case, torch.float64, max_scores)
    for expected, actual in zip(prepared.standard(prepared.run()), parts, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)
    assert hf_result(case)[0].dtype == torch.float32


def test_a_backward_alone_leaves_the_forward_out():
    case = RelAttentionCase(1, 16, heads=1, head_dim=8, pass_name="backward")
    calls = []

    def build(case, inputs):
        attention = OURS.build(case, inputs)
        return replace(attention, run=lambda: calls.append(1) or attention.run())

    run = prepare(replace(OURS, build=build), case, make_inputs(case)).run
    first, second = run(), run()
    assert len(calls) == 1
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("provider", [HF_EAGER, OURS, SDPA_BIAS, SDPA_FLASH], ids=lambda p: p.name)
def test_dropout_changes_what_is_timed(provider):
    outs = []
    for dropout in (0.0, 0.5):
        case = RelAttentionCase(1, 30, heads=2, head_dim=8, dropout=dropout)
        outs.append(prepare(provider, case, make_inputs(case)).run()[0])
    assert not torch.allclose(*outs)


def test_what_cannot_run_says_why():
    assert "GPUs only" in FLEX.why_not(RelAttentionCase(1, 8))
    assert "no dropout" in FLEX.why_not(RelAttentionCase(1, 8, device="cuda", dropout=0.1))
    assert FLEX.why_not(RelAttentionCase(1, 8, device="cuda")) is None
    names = [provider.name for provider in all_providers()]
    assert names[0] == "hf_eager"
    assert names[-2:] == ["hf_compile", "flex"]  # they take long, and time may run out
    assert {"ours", "ours_triton", "ours_sdpa", "sdpa_flash", "sdpa_bias"} < set(names)


def test_features_and_their_names():
    assert RelAttentionCase(1, 8).features == "padding+segments"
    assert RelAttentionCase(1, 8, padding=False, segments=False).features == "plain"
    assert RelAttentionCase(1, 8, padding=False, dropout=0.1).features == "segments+dropout 0.1"
    inputs = make_inputs(RelAttentionCase(2, 20, padding=False))
    assert inputs.key_padding is None
    assert inputs.hf_mask is None
    assert inputs.segments_q.any()
    with pytest.raises(ValueError, match=r"dropout must be in \[0, 1\), got 1"):
        RelAttentionCase(1, 8, dropout=1.0)
    with pytest.raises(ValueError, match="pass must be one of forward, backward"):
        RelAttentionCase(1, 8, pass_name="training_step")


@pytest.mark.parametrize("pass_name", PASSES)
def test_the_two_stream_layer_is_hugging_faces(pass_name):
    case = TwoStreamCase(2, 14, 5, 6, heads=2, pass_name=pass_name)
    results = [
        bench_two_stream.prepare(name, case, two_stream_inputs(case, torch.float64)).run()
        for name in ("hf_eager", "ours")
    ]
    inputs = two_stream_inputs(case)
    assert len(results[0]) == 2 + (0 if pass_name == "forward" else len(leaf_names(inputs)))
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-10)
    positions = inputs.positions
    assert torch.equal(positions, positions.sort(dim=1).values)
    # A target sees itself in neither stream's ranks; context and memory are seen by every row.
    assert (inputs.rank_q.gather(1, positions) == inputs.rank_k[:, 6:].gather(1, positions)).all()
    assert (inputs.rank_q > inputs.rank_k[:, :6].max()).all()


def test_two_stream_flops_and_bad_sizes():
    case = TwoStreamCase(2, 10, 3, 5, heads=1)
    linear = 2 * 64 * 64 * (2 * 2 * 13 + 2 * 2 * 15 + 2 * 25)
    t = 2 * 1 * 13 * 15 * 64
    assert case.flops() == linear + 6 * t
    assert replace(case, pass_name="backward").flops() == 2 * linear + 16 * t
    assert replace(case, pass_name="forward_backward").flops() == 3 * linear + 22 * t
    with pytest.raises(ValueError, match="even batch, got 3"):
        TwoStreamCase(3)


def test_bandwidths_count_what_must_move():
    shape = bench_concat_memory.Shape(3, 2, 40, 30, 20, heads=2)
    hidden, mems = bench_concat_memory.draw(shape, "fp32", torch.device("cpu"))
    for name in ("hf_eager", "ours"):
        memories = bench_concat_memory.make_run(name, shape, hidden, mems)()
        assert [tuple(m.shape) for m in memories] == [(shape.kept, 2, 128)] * 3


def test_the_content_only_floor_is_plain_attention():
    case = RelAttentionCase(2, 20, heads=2, head_dim=8, padding=False, segments=False)
    inputs = make_inputs(case)
    prepared = prepare(SDPA_FLASH, case, inputs)
    (out,) = prepared.standard(prepared.run())
    scores = torch.einsum("bind,bjnd->bnij", inputs.q, inputs.k) * 8**-0.5
    expected = torch.einsum("bnij,bjnd->bind", scores.softmax(-1), inputs.v)
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize(("batch", "length"), [(1, 64), (3, 64), (2, 150), (1, 17)])
def test_the_floor_does_exactly_the_necessary_arithmetic(batch, length):
    floor = GemmFloor(random_model(TINY), TINY, batch, length)
    with FlopCounterMode(display=False) as counter:
        floor()
    assert counter.get_total_flops() == flops(ModelCase(batch, length, "fp32"), TINY)
    assert torch.isfinite(floor()).all()


def test_flops_follow_the_formulas():
    case = RelAttentionCase(2, 10, 5, heads=3, head_dim=4)
    t = 2 * 3 * 10 * 15 * 4
    assert case.flops() == 6 * t
    assert case.flops(content_only=True) == 4 * t
    back = RelAttentionCase(2, 10, 5, heads=3, head_dim=4, pass_name="backward")
    assert back.flops() == 16 * t
    assert back.flops(content_only=True) == 10 * t
    both = RelAttentionCase(2, 10, 5, heads=3, head_dim=4, pass_name="forward_backward")
    assert both.flops() == 22 * t
    assert both.flops(content_only=True) == 14 * t
    t = 2 * 10 * 10 * 64
    linear = 2 * 20 * (4 * 64 * 64 + 2 * 64 * 96) + 2 * 20 * 64 * 64
    assert flops(ModelCase(2, 10, "fp32"), TINY) == 2 * (linear + 6 * t)
    assert flops(ModelCase(2, 10, "fp32", "training_step"), TINY) == 2 * (3 * linear + 22 * t)


def test_weights_are_exact_in_bf16_and_shared():
    model = random_model(TINY)
    assert all(torch.equal(p, p.bfloat16().float()) for p in model.parameters())
    torch.manual_seed(5)
    assert torch.equal(model.mask_emb, random_model(TINY).mask_emb)
    twin = share(model)
    assert twin is not model
    assert twin.layer[0] is not model.layer[0]
    own, shared = dict(model.named_parameters()), dict(twin.named_parameters())
    assert own.keys() == shared.keys()
    assert all(shared[name] is parameter for name, parameter in own.items())


def test_models_that_cannot_be_used_give_one_sentence(tmp_path):
    with pytest.raises(ArgumentError, match="holds no config"):
        load_model(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ArgumentError, match="is a bert model; only XLNet"):
        load_model(str(tmp_path))
    random_model(TINY).save_pretrained(tmp_path / "model")
    assert load_model(str(tmp_path / "model")).config.n_layer == 2
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ArgumentError, match="cannot load a model") as caught:
        load_model(str(tmp_path / "model"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("name", presets.PRESETS)
def test_presets_name_only_what_exists(name, device):
    preset = presets.preset(name, device)
    for shape, dtype, pass_name in presets.ordered(preset.model_shapes, preset):
        ModelCase(shape.batch, shape.length, dtype, pass_name)
    for shape, dtype, pass_name in presets.ordered(preset.attention_shapes, preset):
        RelAttentionCase(shape.batch, shape.queries, dtype=dtype, pass_name=pass_name)
    for shape in preset.pretraining_shapes:
        PretrainingCase(shape.batch, memory=shape.memory)
    assert presets.preset(name, device, "bf16").dtypes == ("bf16",)


def test_the_cpu_presets_hold_the_promised_shapes():
    promised = {(1, 128), (8, 128), (1, 512), (4, 512), (1, 2048)}
    for name in ("full", "headline"):
        preset = presets.preset(name, "cpu")
        assert {(s.batch, s.length) for s in preset.model_shapes} == promised
        assert set(preset.dtypes) == {"fp32", "bf16"}
        assert preset.geometry.n_layer == 12


def test_the_cpu_targets_are_the_designs_table_and_a_scaling():
    targets = presets.preset("targets", "cpu")
    shapes = {(s.batch, s.length): s.passes for s in targets.model_shapes}
    assert set(shapes) == {(1, 128), (8, 128), (4, 512), (1, 2048)}
    assert presets.TRAINING_STEP in shapes[4, 512]
    assert targets.geometry == replace(presets.BASE, name=targets.geometry.name, n_layer=4)
    assert targets.compile_budget_s == float("inf")
    alone = {s.queries for s in targets.attention_shapes if s.batch == 1}
    assert alone == {128, 256, 512, 1024, 2048, 4096, 8192}


def test_what_memory_cannot_hold_is_not_begun(monkeypatch):
    case = RelAttentionCase(1, 4096, dtype="fp32", device="cpu")
    needed = 6 * 12 * 4096**2 * 4
    dense = [
        p for p in providers.all_providers() if p.name in ("hf_eager", "hf_compile", "sdpa_bias")
    ]
    assert len(dense) == 3
    for free, fits in ((needed / 0.6 + 1, True), (needed / 0.6 - 1, False)):
        monkeypatch.setattr(providers, "_available_memory", lambda free=free: free)
        for provider in providers.all_providers():
            reason = provider.why_not(case)
            assert fits or provider not in dense or "GiB" in reason
            assert not fits or provider.name == "flex" or reason is None


def test_the_gpu_headline_is_the_designs_goals_without_compiling():
    headline, full = presets.preset("headline", "cuda"), presets.preset("full", "cuda")
    assert headline.compile_budget_s == 0
    assert headline.dtypes == ("bf16",)
    assert {s.queries for s in headline.attention_shapes} == {512, 1024, 2048, 4096, 8192}
    for shape in headline.attention_shapes:
        assert shape.head_dim == 64
        assert shape.passes == ("forward", "forward_backward")
        assert not shape.padding
        assert not shape.segments  # content-only attention has neither
    assert [(s.batch, s.length) for s in headline.model_shapes] == [(32, 512)]
    lengths = {s.queries for s in full.attention_shapes}
    assert lengths == {128, 256, 512, 1024, 2048, 4096, 8192}
    assert any(s.memory for s in full.attention_shapes)
    assert any(s.dropout for s in full.attention_shapes)
    alone = [s.queries for s in full.attention_shapes if "backward" in s.passes]
    assert max(alone) <= 2048


def test_unknown_presets_and_dtypes():
    with pytest.raises(ValueError, match="preset must be one of quick, full, headline"):
        presets.preset("huge", "cpu")
    with pytest.raises(ValueError, match="dtype must be one of"):
        presets.preset("quick", "cpu", "int8")
    with pytest.raises(ValueError, match="dtype must be one of"):
        RelAttentionCase(1, 8, dtype="int8")
    with pytest.raises(ValueError, match="pass must be"):
        ModelCase(1, 8, "fp32", "backward")
