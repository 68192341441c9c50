"""What the README says Hugging Face refuses, it refuses, and ours does."""

import pytest

from benchmarks.micro import beyond_hugging_face

TINY = {"d_model": 64, "n_head": 1, "d_inner": 128, "n_layer": 2, "length": 32}


@pytest.mark.parametrize("attempt", [attempt for _, attempt in beyond_hugging_face.ATTEMPTS])
def test_hugging_face_refuses_and_ours_does(attempt):
    theirs_well, theirs = beyond_hugging_face.tried(attempt, False)
    ours_well, ours = beyond_hugging_face.tried(attempt, True)
    assert (theirs_well, ours_well) == (False, True), f"theirs: {theirs}; ours: {ours}"
    if ours.startswith("error"):
        assert float(ours.split()[1]) < 0.05


def test_the_step_whose_memory_is_measured():
    """Without the child process that measures it: that is the harness's."""
    for accelerate, checkpoint in ((False, False), (True, False), (True, True)):
        request = {"accelerate": accelerate, "checkpoint": checkpoint, **TINY}
        beyond_hugging_face.memory_request(request)()
    with pytest.raises(ValueError, match="does not support activation checkpointing"):
        beyond_hugging_face.memory_request({"accelerate": False, "checkpoint": True, **TINY})


def test_the_exit_code_tells_of_a_failure_of_ours(monkeypatch, capsys):
    def fails(accelerate):
        raise ValueError(f"no\nmore for {accelerate}")

    monkeypatch.setattr(beyond_hugging_face, "ATTEMPTS", (("it", fails),))
    monkeypatch.setattr(beyond_hugging_face, "checkpointing", lambda accelerate, sizes: "fine")
    assert beyond_hugging_face.main([]) == 1
    assert "| it | ValueError: no | ValueError: no |" in capsys.readouterr().out
