"""Which library multiplies the linear layers of a machine."""

from __future__ import annotations

import builtins
import sys

import pytest
import torch
from cpu_kernels import needs_kernels

from xlnet_fast.errors import ArgumentError, BackendUnavailable
from xlnet_fast.kernels.cpu import linear as cpu_linear
from xlnet_fast.ops._dispatch import Choice
from xlnet_fast.ops.linear import choose_library, cpu_vendor, library_for, library_of

module = sys.modules["xlnet_fast.ops.linear"]
pytestmark = needs_kernels


@pytest.fixture(autouse=True)
def chosen(monkeypatch):
    """Our kernels are chosen on any machine, for layers of any size."""
    monkeypatch.setattr(module, "_chosen", Choice("cpu", "by the test"))
    monkeypatch.setattr(module, "LEAST_PACKED_WEIGHT", 0)
    monkeypatch.setattr(module, "LEAST_WEIGHT", 0)


@pytest.mark.parametrize(
    ("vendor", "avx512", "mkl", "library"),
    [
        ("AuthenticAMD", True, True, "cpu"),
        ("HygonGenuine", True, True, "cpu"),
        ("AuthenticAMD", True, False, "aten"),
        ("AuthenticAMD", False, True, "aten"),
        ("GenuineIntel", True, True, "aten"),
        ("", True, True, "aten"),
    ],
)
def test_library_of_a_machine(vendor, avx512, mkl, library, monkeypatch):
    monkeypatch.setattr(module, "_atens_is_mkl", lambda: mkl)
    monkeypatch.setattr(module, "_has_avx512", lambda: avx512)
    assert choose_library({}, vendor, None).backend == library
    reason = "the extension was not built"
    assert choose_library({}, vendor, reason) == Choice("aten", reason)
    for wanted in ("cpu", "aten"):
        assert choose_library({module.VARIABLE: wanted}, vendor, None).backend == wanted


@pytest.mark.parametrize(
    ("vendor", "right", "speed", "library"),
    [
        ("GenuineIntel", True, 1.3, "cpu"),
        ("GenuineIntel", True, 0.9, "aten"),
        ("GenuineIntel", True, None, "aten"),
        ("AuthenticAMD", True, 0.9, "cpu"),  # the fixed rule, measured with more care
        ("AuthenticAMD", False, None, "aten"),
    ],
)
def test_a_record_decides_where_no_fixed_rule_does(vendor, right, speed, library, monkeypatch):
    monkeypatch.setattr(module, "_atens_is_mkl", lambda: True)
    monkeypatch.setattr(module, "_has_avx512", lambda: True)
    proved = ("cpu", right, speed, "as measured")
    assert choose_library({}, vendor, None, proved).backend == library
    for wanted in ("cpu", "aten"):
        assert choose_library({module.VARIABLE: wanted}, vendor, None, proved).backend == wanted


def test_the_record_of_this_cpu_is_asked(monkeypatch):
    verdict = ("cpu", False, None, "failed its qualification here: out is wrong")
    asked = []

    def verdicts(*key):
        asked.append(key)
        return (("aten", True, 1.0, ""), verdict if key[5] else ("cpu", True, 2.0, ""))

    monkeypatch.setattr(module, "_chosen", None)
    monkeypatch.setattr(module.proof, "verdicts", verdicts)
    monkeypatch.delenv(module.VARIABLE, raising=False)
    chosen = module.machine_library()
    assert (chosen.backend, chosen.reason) == ("aten", f"cpu: {verdict[3]}")
    assert asked == [("cpu", None, "linear", "float32", "", back, ()) for back in (False, True)]
    assert module.machine_library().backend == "aten"
    assert len(asked) == 2
    module.proof.forget()  # a new record may have been made
    module.machine_library()
    assert len(asked) == 4


def test_both_passes_must_be_worth_it(monkeypatch):
    speeds = {False: 2.0, True: 0.7}
    monkeypatch.setattr(module.proof, "verdicts", lambda *key: (("cpu", True, speeds[key[5]], ""),))
    assert module._proved("float32")[2] == 0.7
    speeds[True] = None
    assert module._proved("float32")[2] == 2.0


def test_a_dtype_that_failed_is_not_taken(monkeypatch):
    monkeypatch.setattr(module, "_proved", lambda dtype: ("cpu", dtype != "float32", None, ""))
    x, weight = torch.zeros(64, 64), torch.zeros(64, 64)
    assert library_for(x, weight) == "aten"
    monkeypatch.setattr(module, "_proved", lambda dtype: None)
    assert library_for(x, weight) == "cpu"


def test_a_variable_that_names_nothing_or_what_is_missing():
    with pytest.raises(ArgumentError, match="is 'mkl', expected one of: cpu, aten"):
        choose_library({module.VARIABLE: "mkl"}, "AuthenticAMD", None)
    with pytest.raises(BackendUnavailable, match="is 'cpu', but it was not built"):
        choose_library({module.VARIABLE: "cpu"}, "AuthenticAMD", "it was not built")


def test_library_in_words(monkeypatch):
    assert library_of(torch.float32) == Choice("cpu", "by the test")
    assert library_of(torch.float16) == Choice("aten", "no kernel here multiplies float16")
    bf16 = library_of(torch.bfloat16)
    assert (bf16.backend == "cpu") == cpu_linear.takes(torch.bfloat16, 2)
    monkeypatch.setattr(module, "_chosen", Choice("aten", "no AMD"))
    assert library_of(torch.bfloat16) == Choice("aten", "no AMD")


def test_vendor(monkeypatch, tmp_path):
    def opens(text):
        (tmp_path / "cpuinfo").write_text(text)
        real = builtins.open
        monkeypatch.setattr(builtins, "open", lambda p, **k: real(tmp_path / "cpuinfo", **k))

    opens("processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 25\n")
    assert cpu_vendor() == "AuthenticAMD"

    def refuse(*args, **kwargs):
        raise FileNotFoundError

    monkeypatch.setattr(builtins, "open", refuse)
    name = "AMD64 Family 25 Model 17 Stepping 1, AuthenticAMD"
    monkeypatch.setattr(module.platform, "processor", lambda: name)
    assert cpu_vendor() == "AuthenticAMD"
