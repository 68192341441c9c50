"""The benchmark of a pretraining step: its data, its check, its failures, and a whole run."""

import copy
import json
from dataclasses import asdict, replace

import pytest
import torch

import xlnet_fast
from benchmarks import bench_pretraining, cases, run
from benchmarks.cases import pretraining as pretraining_case
from benchmarks.cases.corpus import Corpus, load_corpus
from benchmarks.cases.model import random_model
from benchmarks.cases.pretraining import PretrainingCase, double, make_batches, results
from benchmarks.harness import presets
from benchmarks.harness.record import read_results
from benchmarks.harness.timing import Plan
from xlnet_fast.errors import ArgumentError
from xlnet_fast.train.pretraining.permutation import dense_masks

# Of eight heads: the gradient of r_s_bias is one number a head; of two the largest error is luck.
GEOMETRY = presets.Geometry("tiny", 3, 32, 8, 48, 600)
SHAPE = presets.PretrainingShape(GEOMETRY, 4, 32, 16, 5, 24)
CASE = PretrainingCase(4, 32, 16, 5, 24)
PLAN = Plan(min_rounds=1, max_rounds=2, budget_s=0.1, min_sample_us=1.0)
TINY = presets.Preset(
    name="tiny",
    plan=PLAN,
    attention_plan=PLAN,
    dtypes=("fp32",),
    model_shapes=(presets.ModelShape(1, 24),),
    attention_shapes=(),
    pretraining_shapes=(SHAPE,),
    geometry=GEOMETRY,
    compile_budget_s=0.0,
    compiled_memory=False,
    small_ops=False,
)
ONLY = ("pretraining",)
CPU = torch.device("cpu")
SEP = 4


@pytest.fixture(scope="module")
def corpus(one_cache):
    return load_corpus(vocab_size=GEOMETRY.vocab_size)


@pytest.fixture(autouse=True)
def one_text_and_no_child(corpus, monkeypatch):
    """The text is tokenised once, and no child process measures memory."""
    monkeypatch.setattr(cases.model, "load_corpus", lambda *_, **__: corpus)
    monkeypatch.setattr(run.MemoryWorker, "peak_mib", lambda *_: 1.0)


@pytest.fixture
def batch():
    return bench_pretraining.Batch(bench_pretraining.load(GEOMETRY), SHAPE, CPU)


def rows_of(folder):
    return {(row.dtype, row.provider): row for row in read_results(folder / "results.csv")}


def test_both_forms_are_the_same_batch_and_rows_go_on(corpus):
    batches = make_batches(corpus, CASE)
    assert len(batches) == 3  # two steps of 16 tokens fill a memory of 24
    for compact, dense in batches:
        for name in ("input_ids", "token_type_ids", "labels"):
            assert torch.equal(compact[name], dense[name])
        masks = dense_masks(compact["permutation_ranks"], compact["target_positions"])
        assert torch.equal(masks[0], dense["perm_mask"])
        assert torch.equal(masks[1], dense["target_mapping"])
        assert compact["labels"].shape == (4, 5)
        assert (compact["labels"] >= 0).any(1).all()
    first, second = (compact["input_ids"] for compact, _ in batches[:2])
    for row in range(4):
        running = first[row, 16:].tolist()
        running = running[: running.index(SEP)]
        assert running
        assert second[row, : len(running)].tolist() == running[:16]
    assert not torch.equal(first[0], first[2])  # the second half runs backwards


def test_a_short_text_is_repeated():
    ids = torch.arange(100, 140)
    words = torch.ones(150, dtype=torch.bool)
    short = Corpus(ids, 4, 3, 5, "numbers", torch.tensor([0, 7, 20]), words)
    (*_, (compact, _)) = make_batches(short, CASE)
    # Step 2 of the first stream begins 32 tokens behind its start, and goes on from the start.
    assert compact["input_ids"][0, :16].tolist() == [*range(132, 140), *range(100, 108)]


def test_sizes_that_do_not_fit_are_refused(corpus):
    with pytest.raises(ValueError, match="even batch, got 3"):
        replace(CASE, batch=3)
    with pytest.raises(ValueError, match="at least 1 token, got 0"):
        replace(CASE, memory=0)
    with pytest.raises(ValueError, match="dtype must be one of"):
        replace(CASE, dtype="int8")
    with pytest.raises(ArgumentError, match="reuse_len is 30"):
        make_batches(corpus, replace(CASE, reuse_len=30))


def test_the_memory_is_full_and_exact_in_bf16(batch):
    memory = batch.inputs.memory
    assert [tuple(x.shape) for x in memory] == [(24, 4, 32)] * 3
    assert all(torch.equal(x, x.bfloat16().float()) for x in memory)
    assert not any(x.requires_grad for x in memory)
    assert all((x.std(0) > 0).any() for x in memory)
    # The embeddings of the memory of layer 0 are those of the text before the batch.
    (_, (before, _), _) = make_batches(batch.source.corpus, CASE)
    table = batch.source.model.transformer.word_embedding.weight
    assert torch.equal(memory[0][-16:], table[before["input_ids"][:, :16].t()])


def test_our_step_is_hugging_faces(batch):
    inputs = batch.inputs
    own = double(batch.source.model, CPU)
    expected = results(own, inputs, torch.float64, dense=True)
    ours = xlnet_fast.accelerate(double(batch.source.model, CPU))
    actual = results(ours, inputs, torch.float64, dense=False)
    names = pretraining_case.result_names(own)
    assert len(names) == len(expected) == len(actual)
    assert names[:2] == ["loss of each target", "loss"]
    assert {"grad of transformer.mask_emb", "grad of lm_loss.bias"} < set(names)
    for name, e, a in zip(names, expected, actual, strict=True):
        assert e.abs().max() > 0, name
        torch.testing.assert_close(a, e, rtol=1e-8, atol=1e-10, msg=name)
    assert expected[0].shape == (4, 5)
    counted = expected[0][inputs.labels != -100]
    torch.testing.assert_close(expected[1], counted.mean())


@pytest.mark.parametrize("max_scores", [1, 10**9])
def test_the_exact_result_in_parts_is_the_whole(batch, monkeypatch, max_scores):
    whole = results(double(batch.source.model, CPU), batch.inputs, torch.float64, dense=True)
    monkeypatch.setattr(pretraining_case, "_MAX_SCORES", max_scores)
    rows = pretraining_case.parts(CASE)
    assert [part.tolist() for part in rows] == (
        [[0, 2], [1, 3]] if max_scores == 1 else [[0, 1, 2, 3]]
    )
    for expected, actual in zip(whole, batch.exact, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)


def test_flops_follow_the_formula():
    linear = 2 * 32 * 32 * (2 * 4 * 37 + 2 * 4 * 56 + 2 * 88) + 2 * 4 * 37 * 2 * 32 * 48
    attention = 22 * 4 * 37 * 56 * 32
    head = 2 * 4 * 5 * 32 * 600
    assert CASE.flops(GEOMETRY) == 3 * (3 * linear + attention) + 3 * head


@pytest.mark.parametrize("name", ["hf_eager", "ours"])
def test_a_step_drops_out_and_leaves_no_gradients(batch, monkeypatch, name):
    seen = []

    def losses(logits, labels):
        seen.append(logits.detach().clone())
        return pretraining_case.target_losses(logits, labels)

    monkeypatch.setattr(bench_pretraining, "target_losses", losses)
    work = bench_pretraining.make_work(name, batch, replace(CASE, dtype="bf16"))
    work.run()
    work.run()
    assert not torch.equal(*seen)
    assert seen[0].dtype == torch.bfloat16
    assert all(p.grad is None for p in batch.model.parameters())
    first, second = work.result(), work.result()
    assert {x.dtype for x in first} == {torch.bfloat16}
    assert all(map(torch.equal, first, second))


def test_a_step_that_fails_leaves_no_gradients_to_the_next(batch, monkeypatch):
    def fails(losses, labels):
        losses.sum().backward()
        raise torch.OutOfMemoryError("full")

    work = bench_pretraining.make_work("hf_eager", batch, CASE)
    with monkeypatch.context() as patch:
        patch.setattr(bench_pretraining, "mean_loss", fails)
        with pytest.raises(torch.OutOfMemoryError):
            work.run()
    assert all(p.grad is None for p in batch.model.parameters())
    # Nor does a check count what another one left behind.
    expected = copy.deepcopy(work.result())
    batch.model.lm_loss.bias.grad = torch.ones_like(batch.model.lm_loss.bias)
    assert all(map(torch.equal, work.result(), expected))


def test_a_run_leaves_rows_with_time_memory_and_rate(tmp_path, capsys):
    preset = replace(TINY, dtypes=("fp32", "bf16"))
    assert run.run_bench(preset, device="cpu", out=tmp_path, only=ONLY) == 0
    rows = rows_of(tmp_path)
    for dtype in ("fp32", "bf16"):
        ours = rows[dtype, "ours"]
        assert (ours.kernel, ours.pass_name, ours.status) == ("pretraining", "training_step", "ok")
        assert (ours.batch, ours.length, ours.memory_length, ours.layers) == (4, 32, 24, 3)
        assert ours.features == "5 targets+permutation+segments+bi_data+dropout 0.1"
        assert ours.tokens_per_s == pytest.approx(4 * 32 / ours.p50_us * 1e6)
        assert ours.peak_memory_mib == 1.0
        assert ours.speedup_over_hf_eager > 0
        assert rows[dtype, "hf_eager"].status == "ok"
        assert rows[dtype, "hf_compile"].status == rows[dtype, "ours_compile"].status == "not_run"
        assert rows[dtype, "hf_compile"].tokens_per_s is None
    info = json.loads((tmp_path / "environment.json").read_text())
    assert info["model"] == "tiny geometry, random weights"
    assert "SentencePiece" in info["text"]
    assert "tokens/s" in capsys.readouterr().out


def test_what_runs_out_of_memory_is_reported_and_ours_still_timed(tmp_path, monkeypatch):
    genuine = bench_pretraining.make_work

    def full(name, batch, case):
        if name != "hf_eager":
            return genuine(name, batch, case)

        def fails():
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

        return bench_pretraining.Work(fails, fails)

    monkeypatch.setattr(bench_pretraining, "make_work", full)
    assert run.run_bench(TINY, device="cpu", out=tmp_path, only=ONLY, pages=False) == 0
    rows = rows_of(tmp_path)
    assert rows["fp32", "hf_eager"].status == "failed"
    assert "out of memory" in rows["fp32", "hf_eager"].reason
    assert rows["fp32", "ours"].status == "ok"  # held to the yardstick, got in parts
    assert rows["fp32", "ours"].speedup_over_hf_eager is None
    assert rows["fp32", "ours"].error_hf_eager > 0


def test_a_wrong_step_turns_the_run_red(tmp_path, monkeypatch):
    genuine = xlnet_fast.accelerate

    def wrong(model, backend):
        genuine(model, backend=backend)
        model.register_forward_hook(lambda *a: setattr(a[2], "logits", a[2].logits * 1.01))
        return model

    monkeypatch.setattr(xlnet_fast, "accelerate", wrong)
    assert run.run_bench(TINY, device="cpu", out=tmp_path, only=ONLY, pages=False) == 1
    row = rows_of(tmp_path)["fp32", "ours"]
    assert (row.status, row.p50_us) == ("red", None)
    assert row.reason.startswith("loss of each target")


def test_a_users_model_is_run_once_for_each_shape(tmp_path):
    smaller = replace(GEOMETRY, n_layer=2)
    random_model(smaller, bench_pretraining.ARCHITECTURE).save_pretrained(tmp_path / "model")
    other = replace(SHAPE, geometry=replace(GEOMETRY, name="other"))
    preset = replace(TINY, pretraining_shapes=(SHAPE, other, replace(SHAPE, batch=2)))
    model, out = str(tmp_path / "model"), tmp_path / "out"
    code = run.run_bench(preset, model, device="cpu", out=out, only=ONLY, pages=False)
    assert code == 0
    ours = [row for row in read_results(out / "results.csv") if row.provider == "ours"]
    assert [(row.batch, row.layers) for row in ours] == [(4, 2), (2, 2)]


def test_the_child_of_the_memory_measurement_runs_the_step():
    request = {"provider": "ours", "case": asdict(CASE), "geometry": asdict(GEOMETRY)}
    step = bench_pretraining.memory_request(json.loads(json.dumps(request)))
    assert step() is None


def test_it_is_run_with_the_small_ops_or_when_asked_for():
    assert run._chosen(TINY, run.KERNELS) == ("ceiling", "rel_attention", "model")
    assert run._chosen(replace(TINY, small_ops=True), run.KERNELS) == run.KERNELS
    assert run._chosen(TINY, ["pretraining", "model"]) == ("model", "pretraining")


def test_the_presets_hold_the_promised_steps():
    paper = {"length": 512, "reuse_len": 256, "targets": 85, "memory": 384}
    for name in ("headline", "full", "quick"):
        shapes = presets.preset(name, "cuda").pretraining_shapes
        assert {(s.geometry.name, s.batch) for s in shapes} == {
            (model, batch) for model in ("xlnet-base", "xlnet-large") for batch in (8, 32)
        }
        assert all(asdict(s).items() > paper.items() for s in shapes)
        assert shapes[-1] == presets.PretrainingShape(presets.LARGE, 32)
    for name in presets.PRESETS:
        shapes = presets.preset(name, "cpu").pretraining_shapes
        assert [(s.batch, s.length, s.targets, s.memory) for s in shapes] == [
            (4, 128, 22, 96), (2, 512, 85, 384),
        ]  # fmt: skip
        assert {s.geometry.n_layer for s in shapes} == {4}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_the_first_dtype_is_run(tmp_path):
    preset = replace(TINY, dtypes=("bf16", "fp32"), large_ops=True)
    assert run.run_bench(preset, device="cuda", out=tmp_path, only=ONLY, pages=False) == 0
    rows = rows_of(tmp_path)
    assert {dtype for dtype, _ in rows} == {"bf16"}
    assert rows["bf16", "hf_eager"].status == rows["bf16", "ours"].status == "ok"
    assert rows["bf16", "ours"].peak_memory_mib > 0
