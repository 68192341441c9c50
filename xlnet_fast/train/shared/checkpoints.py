"""Checkpoints that survive a kill and a full disk: checks, leftovers, and saves that are renamed.

A folder called ``checkpoint-N`` is always complete: it is written under another name, flushed to
the disk and renamed. What a killed save leaves behind begins with a dot:

    .saving-*       half written, to be deleted
    .saved-model    a complete model whose files were being moved into the folder around it
    .replaced-*     the older folder of that name, while a newer one takes its place
    .removing-*     being deleted because of ``save_total_limit``
"""

from __future__ import annotations

import logging
import os
import shutil
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors import SafetensorError
from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils.logging import (
    disable_progress_bar,
    enable_progress_bar,
    is_progress_bar_enabled,
)

from xlnet_fast.errors import ArgumentError, XLNetFastError
from xlnet_fast.train.shared.checkpoint_files import check_files, is_training_checkpoint, step_of

logger = logging.getLogger(__name__)
# Without a handler of its own Python would print each warning a second time on stderr.
logging.getLogger("xlnet_fast").addHandler(logging.NullHandler())

SAVING, SAVED_MODEL, REPLACED, REMOVING = ".saving-", ".saved-model", ".replaced-", ".removing-"


def check_checkpoint(folder: Path) -> None:
    """Check that a checkpoint can be loaded, and resumed from if it is called ``checkpoint-N``.

    Headers and tables of contents are read and compared with the sizes of the files, not the
    weights themselves, so it takes milliseconds.

    Raises:
        ArgumentError: a file is missing, cut short or cannot be parsed; says which.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ArgumentError(f"the checkpoint folder {folder} does not exist")
    check_files(folder, training=is_training_checkpoint(folder))


def newest_checkpoint(run: Path) -> Path | None:
    """The complete ``checkpoint-N`` of a run with the highest N, None if there is none.

    Each damaged one that is newer is logged as a warning and told on stderr. Call
    :func:`remove_leftovers` first where the run may have been killed.
    """
    for folder in reversed(_checkpoints(Path(run))):
        try:
            check_checkpoint(folder)
        except ArgumentError as error:
            warn(f"skipping a damaged checkpoint: {error}")
        else:
            return folder
    return None


def remove_leftovers(run: Path) -> None:
    """Tidy up after killed saves in a folder: delete what is half done, finish what was complete.

    No other process may be saving into that folder.
    """
    run = Path(run)
    for path in sorted(run.glob(".*")) if run.is_dir() else ():
        if path.name == SAVED_MODEL:
            _move_in(path)
        elif path.name.startswith(REPLACED):
            original = run / path.name.removeprefix(REPLACED)
            if original.exists():
                shutil.rmtree(path)
            else:
                os.rename(path, original)
        elif path.name.startswith((SAVING, REMOVING)):
            shutil.rmtree(path)


class AtomicSaves:
    """Mixin for ``transformers.Trainer``, before it in the bases: saves are complete or not there.

    ``_save_checkpoint`` and ``save_model`` write into a temporary folder on the same disk, flush
    it, and rename it; older checkpoints are deleted after that. All processes write into the same
    temporary folder, and the main one renames it when every one is done.
    """

    args: Any
    state: Any
    accelerator: Any
    _staging: Path | None = None  # where HF's code writes during a save
    _saved_step: int | None = None

    def save_extra(self, folder: Path) -> None:
        """Write more state into a checkpoint, before it is renamed; called in every process.

        Each process needs a file name of its own. ``folder`` exists.
        """

    def _get_output_dir(self, trial: Any) -> str:
        if self._staging is not None:
            return str(self._staging)
        folder: str = super()._get_output_dir(trial)  # type: ignore[misc]
        return folder

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self._staging is None:  # else under its final name, once the folder has it
            super()._push_from_checkpoint(checkpoint_folder)  # type: ignore[misc]

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        run = Path(self._get_output_dir(trial))
        final = run / f"checkpoint-{self.state.global_step}"
        with self._saving_into(run / f"{SAVING}{final.name}", final.name, run) as staging:
            written = staging / final.name
            super()._save_checkpoint(model, trial)  # type: ignore[misc]
            self._record_best(run)
            if self.args.should_save:
                # HF wrote it with the temporary path of the best checkpoint.
                self.state.save_to_json(str(written / TRAINER_STATE_NAME))
            self.save_extra(written)
            self._rename(written, final)
        self._saved_step = self.state.global_step
        if self.args.should_save:
            self._rotate(run, final)
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(final))

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As HF's; the model that is in the folder stays until the new one is complete.

        Raises:
            XLNetFastError: it could not be written; the folder is as it was.
        """
        if self._staging is not None:  # a part of `_save_checkpoint`
            super().save_model(output_dir, _internal_call)  # type: ignore[misc]
            return
        target = Path(output_dir or self.args.output_dir)
        run = Path(self.args.output_dir)
        with self._saving_into(target / f"{SAVING}model", f"the model in {target}", run) as staging:
            super().save_model(str(staging), _internal_call=True)  # type: ignore[misc]
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                _swap_in(staging, target)
            self.accelerator.wait_for_everyone()
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(  # type: ignore[attr-defined]
                commit_message="Model save", revision=self.args.hub_revision
            )

    @contextmanager
    def _saving_into(self, staging: Path, what: str, run: Path) -> Iterator[Path]:
        """An empty temporary folder that is gone afterwards, and failed writes in plain words."""
        local_main = self.is_local_process_zero()  # type: ignore[attr-defined]
        bars = is_progress_bar_enabled()
        disable_progress_bar()  # one for each file, across the bar of the training
        try:
            if local_main:  # on a shared disk two nodes may do so at once, hence no complaints
                shutil.rmtree(staging, ignore_errors=True)
                staging.mkdir(parents=True, exist_ok=True)
            self.accelerator.wait_for_everyone()
            self._staging = staging
            yield staging
        except BaseException as error:
            shutil.rmtree(staging, ignore_errors=True)
            reason = _write_failure(error)
            if reason is None:
                raise
            raise XLNetFastError(_failed_save(what, reason, run)) from error
        finally:
            self._staging = None
            if bars:
                enable_progress_bar()
        if local_main:
            shutil.rmtree(staging, ignore_errors=True)

    def _record_best(self, run: Path) -> None:
        """The path of the best checkpoint, under the name that it has after the rename."""
        step = self.state.best_global_step
        best = run / f"checkpoint-{step}"
        if step and (step == self.state.global_step or best.is_dir()):
            self.state.best_model_checkpoint = str(best)

    def _rename(self, written: Path, final: Path) -> None:
        """Give the written folder its name, in one process for each disk."""
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            _flush(written)
            _replace_folder(written, final)
        self.accelerator.wait_for_everyone()
        # A node with a disk of its own has its processes' files there, and nobody renamed them.
        elsewhere = not self.args.should_save and self.is_local_process_zero()  # type: ignore[attr-defined]
        if elsewhere and written.is_dir():
            try:
                os.rename(written, final)
            except OSError as error:  # a shared disk after all, seen through a stale cache
                logger.warning("%s stays as it is on this node: %s", final, error)
        self.accelerator.wait_for_everyone()

    def _rotate(self, run: Path, newest: Path) -> None:
        """Delete what exceeds ``save_total_limit``, but neither the newest nor the best.

        HF's own function takes the highest step for the newest one. After a resume from an earlier
        step that is wrong: the highest is damaged or of the abandoned course, so it goes first.
        """
        limit = self.args.save_total_limit
        if limit is None or limit <= 0:
            return
        best = self.state.best_model_checkpoint
        kept = {newest.name, Path(best).name} if best else {newest.name}
        others = [folder for folder in _checkpoints(run) if folder.name not in kept]
        others.sort(key=lambda folder: step_of(folder) < step_of(newest))
        kept_now = sum((run / name).is_dir() for name in kept)
        for folder in others[: max(0, kept_now + len(others) - max(limit, kept_now))]:
            doomed = run / f"{REMOVING}{folder.name}"
            os.rename(folder, doomed)  # a kill while files are deleted leaves no damaged checkpoint
            shutil.rmtree(doomed, ignore_errors=True)


def _checkpoints(run: Path) -> list[Path]:
    """The folders called ``checkpoint-N``, by N."""
    folders = run.iterdir() if run.is_dir() else ()
    return sorted((f for f in folders if is_training_checkpoint(f) and f.is_dir()), key=step_of)


def _replace_folder(written: Path, final: Path) -> None:
    old = final.with_name(f"{REPLACED}{final.name}")
    if final.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.rename(final, old)
    os.rename(written, final)
    _flush_folder(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def _swap_in(staging: Path, target: Path) -> None:
    """Move a model's files into a folder that may hold an older model, and other things."""
    names = {path.name for path in staging.iterdir()}
    if not any(name.endswith(".safetensors") for name in names):
        raise XLNetFastError(
            "no weights in Hugging Face's format were written: with FSDP, fsdp_config's "
            "state_dict_type must be FULL_STATE_DICT"
        )
    _flush(staging)
    ready = target / SAVED_MODEL
    os.rename(staging, ready)  # from here on a killed move is finished by `remove_leftovers`
    for old in target.glob("model*.safetensors*"):
        if old.name not in names:
            old.unlink()  # shards of an older, larger model
    _move_in(ready)


def _move_in(ready: Path) -> None:
    """Weights last: until they are there, the folder holds no model that could be mistaken."""
    for path in sorted(ready.iterdir(), key=lambda path: path.suffix == ".safetensors"):
        if path.is_dir():
            _replace_folder(path, ready.parent / path.name)
        else:
            os.replace(path, ready.parent / path.name)
    ready.rmdir()
    _flush_folder(ready.parent)


def _flush(folder: Path) -> None:
    """Wait until all files below are on the disk; a full disk may show only here."""
    for parent, _, names in os.walk(folder):
        for name in names:
            with open(os.path.join(parent, name), "rb") as file:
                os.fsync(file.fileno())
        _flush_folder(Path(parent))


def _flush_folder(folder: Path) -> None:
    """Wait until a folder's names are on the disk; Windows cannot open folders, and need not."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_failure(error: BaseException) -> str | None:
    """Why a file could not be written, None if the error is of another kind."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if isinstance(error, SafetensorError):
        return str(error).removeprefix("Error while serializing: ")
    # The writer of torch.save never tells the system's reason, and its own words differ each time.
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, RuntimeError) and frames[-1].filename == torch.serialization.__file__:
        words = str(error).splitlines()[0]
        return f"torch.save could not write on, as on a full disk or over a quota ({words})"
    return None


def _failed_save(what: str, reason: str, run: Path) -> str:
    disk = next(folder for folder in (run, *run.absolute().parents) if folder.is_dir())
    free_mib = shutil.disk_usage(disk).free / 2**20
    free = f"{free_mib / 1024:.1f} GiB" if free_mib >= 1024 else f"{free_mib:.1f} MiB"
    good = newest_checkpoint(run)
    last = "there is no earlier checkpoint" if good is None else f"the last good one is {good}"
    return f"{what} could not be saved: {reason}; {free} is free on the disk of {run}, and {last}"


def warn(message: str) -> None:
    """In the log, and on stderr in the main process only."""
    logger.warning(message)
    if os.environ.get("RANK", "0") == "0":
        Console(stderr=True).print(f"warning: {message}", style="yellow", markup=False)
