"""The command line: what it prints, how it fails, and that it fails in one sentence."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from transformers import BertConfig, XLNetConfig, XLNetForSequenceClassification, XLNetModel
from typer.testing import CliRunner

import xlnet_fast
from xlnet_fast import _extension, check, checkpoint, cli, info
from xlnet_fast.builder import build
from xlnet_fast.errors import ArgumentError, BackendUnavailable, BuildError
from xlnet_fast.kernels import report
from xlnet_fast.kernels.triton import report as triton_report
from xlnet_fast.ops import _dispatch

ROOT = Path(__file__).resolve().parents[2]
TINY = {"vocab_size": 60, "d_model": 128, "n_layer": 1, "n_head": 8, "d_inner": 32}


def run(*arguments: str | Path):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def refused(result) -> str:
    """The sentence of a command that refused its input."""
    assert result.exit_code == cli.BAD_INPUT, result.output
    assert "Traceback" not in result.output
    assert isinstance(result.exception, SystemExit)
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.fixture
def folder(tmp_path):
    """A checkpoint of a tiny XLNet."""
    path = tmp_path / "checkpoint"
    XLNetForSequenceClassification(XLNetConfig(**TINY)).save_pretrained(path)
    return path


# --- the whole -----------------------------------------------------------------------------------


def test_the_commands_are_these_seven():
    names = [command.name or command.callback.__name__ for command in cli.app.registered_commands]
    assert names == ["info", "build", "check", "bench", "kernels-report", "pretrain", "finetune"]


def test_no_command_prints_the_help():
    result = run()
    assert result.exit_code == 0
    for name in ("info", "build", "check", "bench", "kernels-report", "pretrain", "finetune"):
        assert name in result.stdout


def test_help_and_version_need_no_torch():
    code = (
        "import sys\n"
        "from xlnet_fast import cli\n"
        "for word in ('--help', '--version'):\n"
        "    assert cli.app([word], standalone_mode=False) == 0\n"
        "heavy = {'torch', 'transformers', 'numpy', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith(f"xlnet-fast {xlnet_fast.__version__}")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nonsense"], "no such command 'nonsense'"),
        (["--nonsense"], "no such option: --nonsense"),
        (["info", "--nonsense"], "no such option: --nonsense"),
        (["info", "more"], "unexpected extra argument"),
        (["check", "a", "b"], "unexpected extra argument"),
        (["bench", "--preset", "fast"], "'fast' is not one of 'quick', 'full'"),
        (["bench", "--preset"], "requires an argument"),
        (["build", "--timeout", "soon"], "invalid value for '--timeout'"),
        (["build", "--timeout", "0"], "the time-out must be more than 0 seconds, got 0"),
        (["build", "--timeout=-3"], "the time-out must be more than 0 seconds, got -3"),
        (["kernels-report", "--arch", "new"], "invalid value for '--arch'"),
    ],
)
def test_wrong_arguments(arguments, words):
    assert words in refused(run(*arguments))


def test_a_subprocess_ends_with_the_same_code_and_no_traceback():
    command = [sys.executable, "-m", "xlnet_fast", "kernels-report", "--json", "/no/such/folder/x"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == cli.BAD_INPUT
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_a_fault_of_the_package_is_not_dressed_up(monkeypatch):
    monkeypatch.setattr(info, "gather", lambda: 1 / 0)
    result = run("info")
    assert isinstance(result.exception, ZeroDivisionError)
    assert result.exit_code == 1


def test_an_interrupt_gives_130(monkeypatch):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(info, "gather", interrupted)
    assert run("info").exit_code == 130


# --- info ----------------------------------------------------------------------------------------


def test_info_json_has_the_schema():
    result = run("info", "--json")
    assert result.exit_code == 0
    facts = json.loads(result.stdout)
    assert list(facts) == [
        "schema", "versions", "devices", "extension", "kernels", "missing", "backends",
    ]  # fmt: skip
    assert facts["schema"] == 1
    assert facts["versions"]["xlnet_fast"] == xlnet_fast.__version__
    assert facts["versions"]["torch"] == torch.__version__
    assert facts["versions"].keys() >= {"python", "triton", "transformers"}
    assert facts["devices"][0].keys() == {"device", "name", "cores", "threads", "features"}
    assert facts["devices"][0]["threads"] == torch.get_num_threads()
    for row in facts["missing"]:
        assert row.keys() == {"what", "effect", "remedy"}
        assert all(row.values())
    for row in facts["backends"]:
        assert row.keys() == {"op", "device", "dtype", "mode", "backend", "reason"}
    ops = {(row["op"], row["mode"]) for row in facts["backends"]}
    assert ops == {(op, m) for op in _dispatch.OPS for m in ("inference", "training")} - {
        ("concat_memory", "training")
    }


def test_info_tells_what_the_dispatcher_would_do():
    for row in info.gather()["backends"]:
        if row["device"] != "cpu":
            continue
        dtype = getattr(torch, row["dtype"])
        request = _dispatch.Request(row["op"], "cpu", dtype, needs_grad=row["mode"] == "training")
        choice = _dispatch.choose(request)
        assert (row["backend"], row["reason"]) == (choice.backend, choice.reason)


def test_info_never_claims_a_gpu_run_that_is_not_recorded(monkeypatch):
    def row_of(kernel):
        (row,) = (row for row in info.gather()["kernels"] if row["kernel"] == kernel)
        return row

    row = row_of("triton rel_attention")
    assert row["architectures"] == [f"sm_{arch}" for arch in triton_report.ARCHS]
    never = {"triton": "compiled and interpreted", "cuda": "emulated on the CPU"}
    for backend, instead in never.items():
        monkeypatch.setitem(_dispatch.MEASURED_GPUS, backend, ())
        kernel = f"{backend} rel_attention"
        assert row_of(kernel)["status"] == f"{instead}, never run on a GPU"
        monkeypatch.setitem(_dispatch.MEASURED_GPUS, backend, ("9.0",))
        assert row_of(kernel)["status"] == "run and measured on compute capability 9.0"


def test_info_tells_what_the_cuda_kernels_were_compiled_for(monkeypatch):
    facts = {name: [] for name in _extension.BuildInfo.__annotations__}
    facts |= {"cuda_archs": ["80", "90a"], "cuda_compiler": "12.4.131"}
    monkeypatch.setattr(_extension, "build_info", lambda: facts)
    (row,) = (row for row in info.gather()["kernels"] if row["kernel"] == "cuda rel_attention")
    assert row["architectures"] == ["sm_80", "sm_90a"]
    assert row["measured_on"] == [] or "cuda" in _dispatch.MEASURED_GPUS
    text = info._kernel_text(row)
    assert text.startswith("emulated on the CPU, never run on a GPU; compiles for sm_80, sm_90a")
    text = info._extension_text(info.gather()["extension"])["CUDA archs"]
    assert text == "sm_80, sm_90a, by nvcc 12.4.131"
    facts["cuda_archs"] = []
    (row,) = (row for row in info.gather()["kernels"] if row["kernel"] == "cuda rel_attention")
    assert "never run on a GPU; not compiled here" in info._kernel_text(row)
    text = info._extension_text(info.gather()["extension"])["CUDA archs"]
    assert text.startswith("none: built without CUDA C++ kernels; `xlnet-fast build`")


def test_info_says_how_to_get_a_missing_extension(monkeypatch):
    monkeypatch.setattr(_extension, "build_info", lambda: None)
    monkeypatch.setattr(_extension, "why_missing", lambda: "it was not built; run `make ext`")
    result = run("info")
    assert "run `make ext`" in result.stdout
    facts = info.gather()
    assert facts["extension"] == {"built": False, "reason": "it was not built; run `make ext`"}
    assert "C++ extension" in [row["what"] for row in facts["missing"]]


def test_info_says_where_the_extension_is_from(monkeypatch):
    info_of_build = {name: [] for name in _extension.BuildInfo.__annotations__}
    monkeypatch.setattr(_extension, "build_info", lambda: info_of_build)
    monkeypatch.setattr(_extension, "path", lambda: "/cache/_C.so")
    facts = info.gather()["extension"]
    assert facts["path"] == "/cache/_C.so"
    assert info._extension_text(facts)["loaded from"] == "/cache/_C.so"


def test_info_for_people():
    result = run("info")
    assert result.exit_code == 0
    wanted = ("Versions", "Devices", "C++ extension", "GPU kernels", "Missing", "sdpa")
    for word in (*wanted, torch.__version__):
        assert word in result.stdout


def test_alike_rows_become_one_line_and_others_do_not():
    def row(dtype, mode, backend):
        return {
            "op": "x", "device": "cpu", "dtype": dtype, "mode": mode, "backend": backend,
            "reason": "r",
        }  # fmt: skip

    rows = [row("a", "inference", "p"), row("a", "training", "q"), row("b", "training", "q")]
    table = info._backend_table([*rows, row("b", "inference", "q")])
    console = Console(file=io.StringIO(), width=120)
    console.print(table)
    assert table.row_count == 2
    assert "a training, b training, b inference" in console.file.getvalue()


# --- build ---------------------------------------------------------------------------------------


BUILD_INFO = {
    "compiler": "gcc 1",
    "flags": ["-a", "-b"],
    "isa_compiled": ["x", "y"],
    "isa_used": "y",
    "attention_isa": ["baseline"],
    "thread_runtime": "openmp",
    "cuda_archs": ["80", "90a"],
}


@pytest.fixture
def handler():
    """The handler of SIGTERM that was there before is there again afterwards."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("compiled", [True, False])
def test_build_passes_its_options_on_and_tells_what_it_found(monkeypatch, handler, compiled):
    seen = []

    def fake(force, timeout_s, say):
        seen.append((force, timeout_s))
        say("working")
        return build.Built(Path("/place/_C.so"), BUILD_INFO, compiled, 12.3)

    monkeypatch.setattr(build, "build_extension", fake)
    result = run("build", "--force", "--timeout", "7.5")
    assert result.exit_code == 0
    assert run("build").exit_code == 0
    assert seen == [(True, 7.5), (False, 1800.0)]
    how = "built in 12 s" if compiled else "there already; --force builds it anew"
    assert result.stdout.splitlines() == [
        "working",
        f"/place/_C.so: {how}",
        "compiler: gcc 1, flags: -a -b",
        "CPU variants: x, y; this CPU runs y",
        "CUDA kernels: sm_80, sm_90a",
    ]


def test_a_failed_build_gives_1_and_keeps_its_lines(monkeypatch, handler):
    def fake(*arguments, **options):
        raise BuildError("the compiler failed; it ended with\n    a.cpp:1: error")

    monkeypatch.setattr(build, "build_extension", fake)
    result = run("build")
    assert result.exit_code == 1
    assert result.stderr == "error: the compiler failed; it ended with\n    a.cpp:1: error\n"


# --- check ---------------------------------------------------------------------------------------


@pytest.fixture
def one_computation(monkeypatch):
    """Only the quickest computation, in fp32."""
    monkeypatch.setattr(check, "COMPUTATIONS", {"memory and padding": check._inference})
    monkeypatch.setattr(check, "DTYPES", {"fp32": torch.float32})


def backends_here() -> list[str]:
    """The backends that can run on this machine's CPU; `cpu` where the extension is built."""
    names = []
    for name in _dispatch.BACKENDS:
        with suppress(BackendUnavailable):
            request = _dispatch.Request("rel_attention", "cpu", torch.float32)
            names.append(_dispatch.choose(request, name).backend)
    assert {"sdpa", "reference"} <= set(names)
    return names


def test_check_passes_on_a_checkpoint(folder):
    result = run("check", folder)
    assert result.exit_code == 0, result.output
    assert "XLNetForSequenceClassification" in result.stdout
    for word in ("memory and padding", "two streams", "training step", "bf16", "sdpa"):
        assert word in result.stdout
    # Three computations in two dtypes.
    assert f"{6 * len(backends_here())} passed, 0 failed" in result.stdout
    assert "triton on cpu was not run: it runs on cuda" in result.stdout


def test_check_fails_on_a_wrong_backend(folder, monkeypatch, one_computation):
    """A bias that is off in one backend is seen, told and answered with 1."""
    right = check.accelerate

    def wrong(model, backend):
        if backend == "sdpa":
            with torch.no_grad():
                check._trunk(model).layer[0].rel_attn.r_r_bias.add_(0.3)
        return right(model, backend)

    monkeypatch.setattr(check, "accelerate", wrong)
    result = run("check", folder)
    assert result.exit_code == 1
    assert "FAILED: memory and padding, cpu, fp32, sdpa" in result.stdout
    assert f"{len(backends_here()) - 1} passed, 1 failed" in result.stdout


def test_check_fails_on_a_backend_that_raises(folder, monkeypatch, one_computation):
    def raising(model, backend):
        raise RuntimeError("out of luck")

    monkeypatch.setattr(check, "accelerate", raising)
    result = run("check", folder)
    assert result.exit_code == 1
    assert "raised RuntimeError: out of luck" in result.stdout


def test_check_fails_on_missing_tensors(monkeypatch):
    model = XLNetModel(XLNetConfig(**TINY))
    trial = check._Trial("memory and padding", "cpu", "fp32", "sdpa", model)
    one = torch.ones(2)
    trial.run(lambda *_: {}, model, 0, {"x": one}, {"x": one.double()})
    assert trial.verdict().status == "FAILED"
    assert "['x']" in trial.verdict().reason


def test_check_keeps_the_worst_batch():
    model = XLNetModel(XLNetConfig(**TINY))
    trial = check._Trial("memory and padding", "cpu", "fp32", "sdpa", model)
    exact = torch.ones(2, dtype=torch.float64)
    for error in (0.0, 0.5, 0.0):
        eager, actual = {"x": exact.float()}, {"x": exact.float() + error}
        trial.run(lambda *_, given=actual: given, model, 0, eager, {"x": exact})
    verdict = trial.verdict()
    assert (verdict.status, verdict.worst, verdict.error) == ("FAILED", "x", 0.5)


@pytest.mark.parametrize("name", checkpoint.CLASSES)
def test_every_class_has_a_loss_to_train_on(name):
    model = getattr(__import__("transformers"), name)(XLNetConfig(**TINY, dropout=0.0))
    results = check._training(model, 0)
    assert "d layer.0.rel_attn.r" in results
    assert all(bool(torch.isfinite(x).all()) for x in results.values())
    assert float(results["d layer.0.rel_attn.r"].abs().max()) > 0


@pytest.mark.parametrize(
    "options",
    [
        {"attn_type": "uni"},
        {"bi_data": True},
        {"mem_len": 8, "reuse_len": 16, "clamp_len": 5},
        {"num_labels": 1},
        {"num_labels": 3, "problem_type": "multi_label_classification"},
    ],
    ids=str,
)
def test_check_takes_every_kind_of_model(options, monkeypatch):
    monkeypatch.setattr(check, "DTYPES", {"fp32": torch.float32})
    monkeypatch.setattr(check, "BACKENDS", ("sdpa",))
    model = XLNetForSequenceClassification(
        XLNetConfig(**TINY, **options, initializer_range=0.1, dropout=0.1)
    )
    verdicts = list(check.check_model(model))
    assert [v.status for v in verdicts] == ["ok"] * 3, verdicts


# --- models that cannot be used ------------------------------------------------------------------


def damage_weights(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def damage_header(folder):
    (folder / "model.safetensors").write_bytes(b"not weights")


def remove_weights(folder):
    (folder / "model.safetensors").unlink()


def remove_config(folder):
    (folder / "config.json").unlink()


def damage_config(folder):
    (folder / "config.json").write_text("{")


def empty_config(folder):
    (folder / "config.json").write_text("{}")


def other_model(folder):
    BertConfig(hidden_size=8, num_attention_heads=2).save_pretrained(folder)


def more_layers(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"n_layer": 2}))


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (damage_weights, "damaged or cut short"),
        (damage_header, "damaged or cut short"),
        (remove_weights, "no file named model.safetensors"),
        (remove_config, "holds no config.json"),
        (damage_config, "not a valid JSON"),
        (empty_config, "model_type"),
        (other_model, "is a bert model, expected an XLNet"),
        (more_layers, "lacks 17 of the"),
    ],
)
def test_unreadable_checkpoints(folder, harm, words):
    harm(folder)
    assert words in refused(run("check", folder))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("./no-such-folder", "does not exist"),
        ("/no/such/folder", "does not exist"),
        (__file__, "is a file; give the checkpoint folder"),
        ("XLNetForEverything", "is no class of XLNet; they are XLNetModel"),
        ("nobody/no-such-xlnet", "HF_HUB_OFFLINE forbids to fetch it"),
    ],
)
@pytest.mark.parametrize("command", [["check"], ["bench", "--model"]], ids=["check", "bench"])
def test_models_that_are_not_there(command, name, words, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert words in refused(run(*command, name))


def test_a_hub_id_without_network(monkeypatch):
    """The address is one that nobody listens at; the client's own retries are not waited for."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("urllib.request.getproxies", dict)
    with pytest.raises(ArgumentError, match=r"the Hub cannot be reached \(.+\)"):
        checkpoint._check_network("nobody/no-such-xlnet")


# --- bench and kernels-report --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--text", "/no/such/text"], "does not exist"),
        (["--text", ROOT], "is a directory"),
        (["--device", "toaster"], "device must be cpu, cuda or cuda:N, got 'toaster'"),
        (["--dtype", "fp8"], "dtype must be one of"),
        (["--out", Path(__file__) / "out"], "cannot make the folder"),
    ],
)
def test_bench_refuses_bad_input(arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert words in refused(run("bench", *arguments))


@pytest.mark.parametrize("code", [0, 1, 130])
def test_bench_passes_arguments_and_the_exit_code_on(code, monkeypatch):
    seen = []
    fake = SimpleNamespace(run_bench=lambda *given: seen.append(given) or code)
    monkeypatch.setattr(cli, "_benchmarks", lambda: fake)
    options = ["--preset", "full", "--text", "t", "--device", "cpu", "--dtype", "bf16"]
    assert run("bench", *options, "--out", "o").exit_code == code
    assert seen == [("full", None, "t", "cpu", "bf16", "o")]


def test_bench_without_the_benchmarks(monkeypatch, tmp_path):
    monkeypatch.setattr(cli.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(cli, "__file__", str(tmp_path / "xlnet_fast" / "cli" / "__init__.py"))
    assert "benchmarks are not part of this installation" in refused(run("bench"))


def test_kernels_report_passes_arguments_and_the_exit_code_on(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(report, "run_report", lambda *given: seen.append(given) or 1)
    file = tmp_path / "rows.json"
    result = run("kernels-report", "--json", file, "--arch", "90", "--arch", "80", "--arch", "90")
    assert result.exit_code == 1
    assert run("kernels-report", "--backend", "triton").exit_code == 1
    assert seen == [(file, (90, 80), ()), (None, (), ("triton",))]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--arch", "42"], "--arch 42 is unknown here, expected one of: 80"),
        (["--backend", "cpu"], "invalid value for '--backend'"),
        (["--json", "/no/such/folder/rows.json"], "the folder /no/such/folder does not exist"),
        (["--json", ROOT], "is a folder; give the name of a file"),
    ],
)
def test_kernels_report_refuses_bad_input(arguments, words):
    assert words in refused(run("kernels-report", *arguments))
