"""AOTInductor's packages in processes of their own: ``make exports``. Compiling takes a minute."""

from __future__ import annotations

import pytest
import torch
from tiny_export import classifier, expected_of, exported, numbers_in, run_as_told

from xlnet_fast.export import source


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return classifier(tmp_path_factory.mktemp("classifier"))


def test_a_package_with_our_ops(model, tmp_path):
    record = exported(model, tmp_path / "out", "aoti")
    assert "xlnet_fast" in record["needs"]
    assert {(one["rows"], one["length"]) for one in record["checked"]} >= {(1, 1), (4, 5), (1, 40)}
    found = numbers_in(run_as_told(record, tmp_path / "out"))
    torch.testing.assert_close(found, expected_of(model), atol=1e-4, rtol=0)


@pytest.mark.parametrize("format", ["torch", "aoti"])
def test_a_portable_one_runs_without_the_package(model, tmp_path, format):
    record = exported(model, tmp_path / "a.pt2", format, portable=True)
    assert record["needs"] == ["torch"]
    (tmp_path / "xlnet_fast.py").write_text("raise ImportError")  # in the place of the package
    found = numbers_in(run_as_told(record, tmp_path))
    ids = torch.tensor([[17, 22, 4, 3]])  # those of the command
    plain = source.read(str(model)).plain
    expected = plain(ids, torch.ones_like(ids), torch.tensor([[0, 0, 0, 2]]))[0]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
