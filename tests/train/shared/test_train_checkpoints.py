"""Checkpoints: what counts as complete, kills in the middle of a save, full disks, rotation."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import _tiny_trainer as tiny
import pytest
import torch
from transformers import TrainerCallback, XLNetLMHeadModel

from xlnet_fast.errors import ArgumentError, XLNetFastError
from xlnet_fast.train.shared import checkpoints
from xlnet_fast.train.shared.checkpoints import (
    check_checkpoint,
    newest_checkpoint,
    remove_leftovers,
)
from xlnet_fast.train.shared.trainer import XLNetTrainer


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of eight steps that nothing disturbed, with checkpoints 2, 4, 6 and 8."""
    run = tmp_path_factory.mktemp("finished")
    tiny.trainer(run).train()
    return run


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may damage."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "lacks model.safetensors"),
    "cut weights": (lambda f: cut(f / "model.safetensors"), "model.safetensors is damaged or cut"),
    "empty weights": (lambda f: os.truncate(f / "model.safetensors", 0), "damaged or cut short"),
    "no config": (lambda f: (f / "config.json").unlink(), "lacks config.json"),
    "cut config": (lambda f: cut(f / "config.json"), "config.json is damaged"),
    "list config": (lambda f: (f / "config.json").write_text("[]"), "holds no JSON object"),
    "no state": (lambda f: (f / "trainer_state.json").unlink(), "lacks trainer_state.json"),
    "cut state": (lambda f: cut(f / "trainer_state.json"), "trainer_state.json is damaged"),
    "no step": (lambda f: edit(f / "trainer_state.json", global_step=None), "has no global_step"),
    "no optimizer": (lambda f: (f / "optimizer.pt").unlink(), "lacks optimizer.pt"),
    "cut optimizer": (lambda f: cut(f / "optimizer.pt"), "optimizer.pt is damaged or cut"),
    "no scheduler": (lambda f: (f / "scheduler.pt").unlink(), "lacks scheduler.pt"),
    "cut scheduler": (lambda f: cut(f / "scheduler.pt"), "scheduler.pt is damaged or cut"),
    "cut scaler": (lambda f: (f / "scaler.pt").write_bytes(b"PK"), "scaler.pt is damaged"),
    "no random state": (lambda f: (f / "rng_state.pth").unlink(), "lacks rng_state.pth"),
    "cut random state": (lambda f: cut(f / "rng_state.pth"), "rng_state.pth is damaged"),
    "lost rank": (
        lambda f: (f / "rng_state.pth").rename(f / "rng_state_1.pth"),
        "lacks rng_state_0.pth",
    ),
    "other zip": (
        lambda f: (
            shutil.make_archive(str(f / "x"), "zip", f, "config.json")
            and (f / "x.zip").rename(f / "optimizer.pt")
        ),
        "no file of torch.save",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_checkpoint_is_refused_and_skipped(
    run: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """``check_checkpoint`` says what is wrong; ``newest_checkpoint`` warns and takes another."""
    damage, message = DAMAGES[name]
    damage(run / "checkpoint-8")
    with pytest.raises(ArgumentError, match=message) as raised:
        check_checkpoint(run / "checkpoint-8")
    assert "\n" not in str(raised.value)
    assert newest_checkpoint(run) == run / "checkpoint-6"
    told = capfd.readouterr().err
    assert message in told
    assert told.count("skipping a damaged checkpoint") == 1


def test_train_refuses_a_damaged_checkpoint(run: Path) -> None:
    cut(run / "checkpoint-8" / "optimizer.pt")
    trainer = tiny.trainer(run)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    with pytest.raises(ArgumentError, match=r"checkpoint-8/optimizer\.pt is damaged"):
        trainer.train(resume_from_checkpoint=str(run / "checkpoint-8"))
    with pytest.raises(ArgumentError, match="does not exist"):
        trainer.train(resume_from_checkpoint=run / "checkpoint-10")
    assert tiny.same(before, trainer.model.state_dict())


def test_no_checkpoint_at_all(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-x").mkdir()
    (tmp_path / ".saving-checkpoint-4").mkdir()
    (tmp_path / "checkpoint-12").write_text("a file")
    assert newest_checkpoint(tmp_path) is None
    assert newest_checkpoint(tmp_path / "absent") is None
    remove_leftovers(tmp_path / "absent")
    with pytest.raises(ArgumentError, match="holds no complete checkpoint"):
        tiny.trainer(tmp_path).train(resume_from_checkpoint=True)


def test_sharded_weights(tmp_path: Path) -> None:
    """The index names the shards, each of which must be whole; a model needs no optimizer."""
    tiny.model().save_pretrained(tmp_path, max_shard_size="10KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 1
    check_checkpoint(tmp_path)
    cut(shards[1])
    with pytest.raises(ArgumentError, match=f"{shards[1].name} is damaged"):
        check_checkpoint(tmp_path)
    shards[1].unlink()
    with pytest.raises(ArgumentError, match=f"lacks {shards[1].name}"):
        check_checkpoint(tmp_path)
    edit(tmp_path / "model.safetensors.index.json", weight_map={})
    with pytest.raises(ArgumentError, match="names no weights"):
        check_checkpoint(tmp_path)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_shards_of_fsdp(run: Path) -> None:
    """``torch.distributed.checkpoint`` keeps its table in .metadata, and the data beside it."""
    from torch.distributed.checkpoint import FileSystemWriter, save

    folder = run / "checkpoint-8"
    (folder / "model.safetensors").unlink()
    (folder / "optimizer.pt").unlink()
    for name in ("pytorch_model_fsdp_0", "optimizer_0"):
        save(
            {"model": tiny.model().state_dict()},
            storage_writer=FileSystemWriter(folder / name),
            no_dist=True,
        )
    check_checkpoint(folder)
    data = next((folder / "optimizer_0").glob("*.distcp"))
    cut(data)
    with pytest.raises(ArgumentError, match=f"{data.name} is cut short"):
        check_checkpoint(folder)
    cut(folder / "pytorch_model_fsdp_0" / ".metadata")
    with pytest.raises(ArgumentError, match=r"\.metadata is damaged"):
        check_checkpoint(folder)
    (folder / "pytorch_model_fsdp_0" / ".metadata").unlink()
    with pytest.raises(ArgumentError, match=r"lacks \.metadata"):
        check_checkpoint(folder)


@pytest.mark.parametrize(
    ("moment", "good"), [("weights", 2), ("optimizer", 2), ("rename", 2), ("rotation", 4)]
)
def test_kill_during_a_checkpoint(tmp_path: Path, finished: Path, moment: str, good: int) -> None:
    """After a SIGKILL the last good checkpoint loads, and resuming ends at the same weights.

    One checkpoint alone is kept: a save that deleted the old one first would leave none.
    """
    tiny.kill_at(tmp_path, moment)
    assert tiny.hidden(tmp_path) != []
    assert newest_checkpoint(tmp_path) == tmp_path / f"checkpoint-{good}"
    assert tiny.same(
        tiny.weights(tmp_path / f"checkpoint-{good}"), tiny.weights(finished / f"checkpoint-{good}")
    )
    trainer = tiny.trainer(tmp_path)
    trainer.train(resume_from_checkpoint=True)
    assert tiny.hidden(tmp_path) == []
    assert tiny.same(
        tiny.weights(tmp_path / "checkpoint-8"), tiny.weights(finished / "checkpoint-8")
    )


@pytest.mark.parametrize(("moment", "whose"), [("weights", "old"), ("move", "new")])
def test_kill_during_the_final_model(
    tmp_path: Path, finished: Path, moment: str, whose: str
) -> None:
    """The older model stays, or, once the new one is complete, it is moved in afterwards."""
    tiny.model().save_pretrained(tmp_path)
    expected = {"old": tiny.weights(tmp_path), "new": tiny.weights(finished / "checkpoint-8")}
    tiny.kill_at(tmp_path, moment, "model")
    assert tiny.same(tiny.weights(tmp_path), expected["old"])
    if moment == "move":  # weights come last: a new folder without them is no model
        (left,) = (tmp_path / ".saved-model").iterdir()
        assert left.name == "model.safetensors"
    remove_leftovers(tmp_path)
    assert tiny.hidden(tmp_path) == []
    assert tiny.same(tiny.weights(tmp_path), expected[whose])


def test_the_final_model_replaces_shards_and_nothing_else(tmp_path: Path) -> None:
    """Plain HF loads the folder; its architecture is HF's, not the accelerated class."""
    tiny.model().save_pretrained(tmp_path, max_shard_size="10KB")
    (tmp_path / "metrics.json").write_text("{}")
    trainer = tiny.trainer(tmp_path, max_steps=2)
    trainer.train()
    trainer.save_model()
    assert sorted(path.name for path in tmp_path.glob("model*")) == ["model.safetensors"]
    assert (tmp_path / "metrics.json").exists()
    assert (tmp_path / "checkpoint-2").is_dir()
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == [
        "XLNetLMHeadModel"
    ]
    loaded = XLNetLMHeadModel.from_pretrained(tmp_path)
    assert type(loaded) is XLNetLMHeadModel
    assert tiny.same(dict(loaded.state_dict()), dict(trainer.model.state_dict()))
    trainer.save_model(str(tmp_path / "a" / "b"))
    check_checkpoint(tmp_path / "a" / "b")


def test_leftovers_of_a_replaced_checkpoint(run: Path) -> None:
    """The older folder comes back if the newer one never took its place."""
    (run / "checkpoint-8").rename(run / ".replaced-checkpoint-8")
    shutil.copytree(run / "checkpoint-6", run / ".replaced-checkpoint-6")
    (run / ".other").mkdir()
    remove_leftovers(run)
    assert tiny.hidden(run) == [".other"]
    assert newest_checkpoint(run) == run / "checkpoint-8"


def test_a_kill_between_two_folders_of_one_name_leaves_the_older(tmp_path, monkeypatch) -> None:
    final, written = tmp_path / "checkpoint-8", tmp_path / ".saving-checkpoint-8"
    for folder in (final, written):
        folder.mkdir()
        (folder / "whose").write_text(folder.name)
    rename = os.rename

    def killed(old: Path, new: Path) -> None:
        if new == final:
            raise KeyboardInterrupt
        rename(old, new)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.os, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            checkpoints._replace_folder(written, final)
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-8"]
    assert (final / "whose").read_text() == "checkpoint-8"


class _At(TrainerCallback):
    """Calls a function before a step."""

    def __init__(self, step: int, function: Callable[[], object]) -> None:
        self.step, self.function = step, function

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            self.function()


@contextmanager
def restored_limit() -> Iterator[Callable[[int], None]]:
    """A function that limits the size of files, as a quota does; Python ignores SIGXFSZ."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize(
    ("largest", "reason"),
    [("model.safetensors", "File too large"), ("optimizer.pt", "torch.save could not write on")],
)
def test_a_file_too_large(tmp_path: Path, finished: Path, largest: str, reason: str) -> None:
    """The real thing: the system refuses the bytes, in safetensors' writer and in torch's."""
    size = (finished / "checkpoint-8" / largest).stat().st_size - 5000
    with restored_limit() as limit:
        trainer = tiny.trainer(tmp_path, callbacks=[_At(2, lambda: limit(size))])
        with pytest.raises(XLNetFastError, match=reason) as raised:
            trainer.train()
    assert "checkpoint-4 could not be saved" in str(raised.value)
    assert f"the last good one is {tmp_path / 'checkpoint-2'}" in str(raised.value)
    assert "iB is free" in str(raised.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-2"]
    assert tiny.same(
        tiny.weights(tmp_path / "checkpoint-2"), tiny.weights(finished / "checkpoint-2")
    )


def test_a_full_disk_that_shows_when_flushing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No earlier checkpoint, and the error comes last: from fsync of a file."""

    def full(descriptor: int) -> None:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoints.os, "fsync", full)
    with pytest.raises(XLNetFastError, match=r"No space left on device.*no earlier checkpoint"):
        tiny.trainer(tmp_path).train()
    assert list(tmp_path.iterdir()) == []


def test_a_final_model_that_cannot_be_written(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = tiny.trainer(run)
    trainer.save_model()
    before = tiny.weights(run)

    def full(descriptor: int) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(checkpoints.os, "fsync", full)
    with torch.no_grad():
        next(trainer.model.parameters()).add_(1)
    with pytest.raises(XLNetFastError, match=f"the model in {run} could not be saved: Disk quota"):
        trainer.save_model()
    assert tiny.hidden(run) == []
    assert tiny.same(before, tiny.weights(run))


def test_other_errors_in_a_save_stay_what_they_are(tmp_path: Path) -> None:
    class Broken(XLNetTrainer):
        def save_extra(self, folder: Path) -> None:
            assert (folder / "optimizer.pt").is_file()
            raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        tiny.trainer(tmp_path, kind=Broken).train()
    assert list(tmp_path.iterdir()) == []


def test_extra_state_is_in_the_checkpoint(tmp_path: Path) -> None:
    class Extra(XLNetTrainer):
        def save_extra(self, folder: Path) -> None:
            (folder / "memory.pt").write_text(str(self.state.global_step))

    tiny.trainer(tmp_path, kind=Extra, max_steps=2).train()
    assert (tmp_path / "checkpoint-2" / "memory.pt").read_text() == "2"


def test_save_total_limit_and_the_best_model(tmp_path: Path) -> None:
    """The best of four is the second; it and the newest stay, and it is loaded at the end."""
    scores = iter([0.1, 0.9, 0.5, 0.3])
    trainer = tiny.trainer(
        tmp_path, eval_steps=2, save_total_limit=2, load_best_model_at_end=True,
        metric_for_best_model="score", compute_metrics=lambda _: {"score": next(scores)},
    )  # fmt: skip
    trainer.train()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-4", "checkpoint-8"]
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-4")
    assert tiny.same(dict(trainer.model.state_dict()), tiny.weights(tmp_path / "checkpoint-4"))
    for step in (4, 8):
        state = json.loads((tmp_path / f"checkpoint-{step}" / "trainer_state.json").read_text())
        assert state["best_model_checkpoint"] == str(tmp_path / "checkpoint-4")


@pytest.mark.parametrize("limit", [1, 2])
def test_rotation_after_a_resume_from_an_earlier_step(run: Path, limit: int) -> None:
    """The damaged checkpoint of a higher step is not "the newest" that has to be kept."""
    cut(run / "checkpoint-8" / "model.safetensors")
    trainer = tiny.trainer(run, save_total_limit=limit, max_steps=7)
    trainer.train(resume_from_checkpoint=True)
    kept = {1: {"checkpoint-7"}, 2: {"checkpoint-6", "checkpoint-7"}}[limit]
    assert {path.name for path in run.iterdir()} == kept


def test_a_checkpoint_of_the_same_step_is_replaced(run: Path, finished: Path) -> None:
    cut(run / "checkpoint-8" / "model.safetensors")
    tiny.trainer(run).train(resume_from_checkpoint=run / "checkpoint-6")
    assert tiny.hidden(run) == []
    assert tiny.same(tiny.weights(run / "checkpoint-8"), tiny.weights(finished / "checkpoint-8"))
