"""Whether a run may go on, by its record, and what is said where it may not."""

from __future__ import annotations

import pytest

from xlnet_fast.errors import ArgumentError
from xlnet_fast.train.shared.run_folder import check_folder, check_same_run, write_json

PLANNED = {"steps": None, "epochs": 3.0, "schedule": "linear", "warmup": 0.1, "seed": 0}
STEADY = {**PLANNED, "schedule": "constant_with_warmup", "warmup": 100}


@pytest.fixture
def resumed(tmp_path):
    """Resume a run of one record with another."""

    def check(before, now):
        write_json(tmp_path / "run.json", before)
        check_same_run(tmp_path / "run.json", now)

    return check


def test_nothing_is_compared_where_nothing_is(tmp_path):
    check_same_run(tmp_path / "run.json", PLANNED)


@pytest.mark.parametrize(
    ("before", "changes"),
    [
        (PLANNED, {}),
        (STEADY, {"epochs": 4.0}),
        ({**STEADY, "steps": 10}, {"steps": 12}),
    ],
)
def test_the_same_run_and_a_longer_one_of_a_constant_rate_go_on(resumed, before, changes):
    resumed(before, {**before, **changes})


@pytest.mark.parametrize(
    ("before", "changes"),
    [
        (PLANNED, {"seed": 1}),
        (PLANNED, {"epochs": 2.0}),  # shorter
        (PLANNED, {"epochs": 4.0, "seed": 1}),
        (PLANNED, {"steps": 10}),  # the run had no number of steps
        (STEADY, {"epochs": 2.0}),
        (STEADY, {"epochs": 4.0, "seed": 1}),
        (STEADY, {"new_option": 1}),
    ],
)
def test_another_run_is_refused(resumed, before, changes):
    with pytest.raises(ArgumentError, match="; give its own options, or start anew with --over"):
        resumed(before, {**before, **changes})


@pytest.mark.parametrize(
    "changes", [{}, {"warmup": 100}, {"schedule": "constant_with_warmup"}], ids=str
)
def test_a_rate_that_was_planned_for_the_length_is_told_the_way(tmp_path, resumed, changes):
    before = {**PLANNED, **changes, "from_scratch": True}
    ended = f"start a new run from its model: --model {tmp_path / 'model'} "
    ended += f"--output {tmp_path}-longer --epochs 1.5, the other options as they were, without "
    ended += "--resume --from-scratch"
    with pytest.raises(ArgumentError) as refusal:
        resumed(before, {**before, "epochs": 4.5})
    assert str(refusal.value).endswith(f"let it end with its own options, then {ended}")
    (tmp_path / "model").mkdir()
    with pytest.raises(ArgumentError) as refusal:
        resumed(before, {**before, "epochs": 4.5})
    assert str(refusal.value).endswith(f"planned for that length. To train on, {ended}")


def test_a_folder_is_looked_at_and_not_made(tmp_path):
    check_folder(tmp_path / "a" / "b", resume=False)
    assert not (tmp_path / "a").exists()
    (tmp_path / "file").write_text("")
    for path, words in (
        (tmp_path / "file", "is a file, expected a folder"),
        (tmp_path / "file" / "b", "cannot make the folder .*file is a file"),
        (tmp_path, "is not empty: --resume goes on"),
    ):
        with pytest.raises(ArgumentError, match=words):
            check_folder(path, resume=False)
    check_folder(tmp_path, resume=True)
