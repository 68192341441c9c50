"""What a conversion of Transformer-XL refuses, in a sentence each, and never runs or overwrites."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from converted_transfo_xl import check_losses, write_kimiyoung, write_nvidia
from original_transfo_xl import Original, weights_of

from xlnet_fast.errors import ArgumentError
from xlnet_fast.models.transfo_xl import TransfoXLLMHeadModel
from xlnet_fast.models.transfo_xl.convert import Converted, convert

# ---- code ----


class Harmful:
    """What an unpickler would run."""

    def __init__(self, function: Any, argument: str) -> None:
        self.call = (function, (argument,))

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("kind", ["kimiyoung", "nvidia", "hf"])
@pytest.mark.parametrize("new_format", [True, False])
@pytest.mark.parametrize("function", [shutil.rmtree, eval], ids=lambda function: function.__name__)
def test_code_in_a_checkpoint_is_refused_and_not_run(function, new_format, kind, tmp_path):
    victim = tmp_path / "victim"
    victim.mkdir()
    argument = (
        str(victim) if function is shutil.rmtree else f"__import__('os').rmdir({str(victim)!r})"
    )
    source = tmp_path / "in" / "pytorch_model.bin"
    source.parent.mkdir()
    content = {"state_dict": {}, "model_state": {}, "vocab": Harmful(function, argument)}
    torch.save(content, source, _use_new_zipfile_serialization=new_format)
    (source.parent / "config.json").write_text('{"model_type": "transfo-xl"}')
    with pytest.raises(ArgumentError, match="holds objects of"):
        convert(source.parent if kind == "hf" else source, tmp_path / "out", kind)
    assert victim.is_dir()
    assert not (tmp_path / "out").exists()


# ---- what is refused ----


def changed(change: Any, **args: Any) -> Any:
    """A writer of a checkpoint of the original code that something is wrong with."""

    def write(folder: Path) -> Path:
        path = folder / "wrong.pt"
        state, told = weights_of(Original(div_val=2)), {**Original(div_val=2).args(), **args}
        change(state)
        torch.save({"state_dict": state, "args": told}, path)
        return path

    return write


def set_to(name: str, value: Any) -> Any:
    def change(state: Any) -> None:
        state[name] = value(state[name]) if callable(value) else value

    return change


QKV = "layers.1.dec_attn.qkv_net.weight"
WRONG = {
    "a_missing_weight": (changed(lambda s: s.pop(QKV)), f"lacks 1 of the .*{QKV}"),
    "a_missing_bias": (changed(lambda s: s.pop("layers.0.dec_attn.layer_norm.bias")), "lacks 1"),
    "no_weights_of_such_a_model": (
        changed(lambda s: (s.clear(), s.update(x=torch.ones(1)))), "it is no Transformer-XL"
    ),
    "an_unknown_weight": (changed(set_to("layers.0.other", torch.ones(1))), r"1 weights .*\.other"),
    "a_wrong_shape": (changed(set_to(QKV, lambda x: x[:-1])), r"shape \(17, 8\), expected \(18,"),
    "a_wrong_rank": (changed(set_to("r_w_bias", lambda x: x[0])), "expected 2 dimensions"),
    "not_a_number": (changed(set_to(QKV, lambda x: x * float("nan"))), "NaN or infinite values"),
    "whole_numbers": (changed(set_to(QKV, lambda x: x.long())), "expected floating point"),
    "no_tensor": (changed(set_to(QKV, [1.0])), "is list, expected a tensor"),
    "sparse": (changed(set_to(QKV, lambda x: x.to_sparse())), "is a sparse tensor, a nested one"),
    "no_values": (changed(set_to(QKV, lambda x: x.to("meta"))), "or one without values, expected"),
    "eight_bits": (
        changed(set_to(QKV, lambda x: x.to(torch.float8_e4m3fn))), "expected floating point of"
    ),
    "other_sizes": (changed(lambda s: None, d_model=16), "d_model is 16 by args .* and 8 by"),
    "other_cutoffs": (changed(lambda s: None, cutoffs=[4, 11]), r"cutoffs is \[4, 11\] by args"),
    "other_words": (changed(lambda s: None, n_token=20), "vocab_size is 20 by args .* and 19 by"),
    "other_divisor": (changed(lambda s: None, div_val=4), "div_val is 4 by args .* and 2 by"),
    "wrong_type": (changed(lambda s: None, mem_len="long"), "mem_len is 'long', expected a whole"),
    "said_to_be_tied": (
        changed(set_to("crit.out_layers.0.weight", lambda x: x + 1)), "have other values in"
    ),
    "odd_widths": (
        changed(set_to("word_emb.emb_layers.2.weight", torch.ones(8, 7))), "expected each to be the"
    ),
    "attention_1": (changed(set_to("r_emb", torch.ones(2, 2))), "has attn_type 1"),
    "attention_2": (changed(set_to("layers.0.dec_attn.q_net.weight", torch.ones(2))), "_type 2"),
    "attention_3_told": (changed(lambda s: None, attn_type=3), "has attn_type 3"),
    "sampled_softmax": (changed(set_to("out_layer.weight", torch.ones(2))), "a sampled softmax"),
    "no_memory_to_see": (
        changed(lambda s: None, same_length=True, mem_len=0), "same_length needs mem_len >= 1"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_checkpoint_is_told_in_a_sentence_and_nothing_is_written(name, tmp_path):
    write, words = WRONG[name]
    with pytest.raises(ArgumentError, match=words) as raised:
        convert(write(tmp_path), tmp_path / "out", "kimiyoung")
    assert "\n" not in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["wrong.pt"]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("new_format", [True, False])
def test_a_file_that_is_cut_short(new_format, share, tmp_path):
    options = {"_use_new_zipfile_serialization": new_format}
    path = write_nvidia(tmp_path, Original(), **options)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ArgumentError, match="damaged or cut short"):
        convert(path, tmp_path / "out", "nvidia")
    assert not (tmp_path / "out").exists()


def test_what_is_no_checkpoint(tmp_path):
    (tmp_path / "text.pt").write_text("no checkpoint")
    torch.save([1, 2], tmp_path / "list.pt")
    for source, kind, words in (
        ("text.pt", "kimiyoung", "is no file of torch.save"),
        ("list.pt", "kimiyoung", "is no state dict, expected names and tensors"),
        ("list.pt", "nvidia", "has no model_state"),
        ("list.pt", "hf", "is a file, expected a folder"),
        ("gone.pt", "nvidia", "does not exist"),
        ("gone", "hf", "does not exist, expected a folder"),
        (".", "nvidia", "is a folder, expected the file"),
        (".", "hf", "config.json cannot be read"),
        ("list.pt", "other", "kind is 'other', expected one of hf, kimiyoung, nvidia"),
    ):
        with pytest.raises(ArgumentError, match=words):
            convert(tmp_path / source, tmp_path / "sub" / "out", kind)
        assert not (tmp_path / "sub").exists()


def test_a_config_of_too_many_levels(tmp_path):
    (tmp_path / "config.json").write_text('{"a":' * 100_000)
    with pytest.raises(ArgumentError, match=r"config\.json is no valid JSON"):
        convert(tmp_path, tmp_path / "out", "hf")


@pytest.mark.parametrize("name", ["x" * 300, "a\0b"], ids=["too_long", "null_byte"])
def test_names_that_cannot_be_looked_up(name, tmp_path):
    path = write_kimiyoung(tmp_path, Original())
    for source, out in ((tmp_path / name, tmp_path / "out"), (path, tmp_path / name)):
        with pytest.raises(ArgumentError, match="cannot be looked up"):
            convert(source, out, "kimiyoung")
    with pytest.raises(ArgumentError, match="cannot be looked up"):
        convert(path, tmp_path / "out", "kimiyoung", vocabulary=Path(name))


# ---- the folder that is written ----


def test_a_folder_is_replaced_only_if_told_to_and_whole(tmp_path, monkeypatch):
    path, out = write_kimiyoung(tmp_path, Original()), tmp_path / "out"
    convert(path, out, "kimiyoung")
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    other = Original(clamp_len=3)
    write_kimiyoung(tmp_path, other)
    with pytest.raises(ArgumentError, match="holds a checkpoint: add --overwrite"):
        convert(path, out, "kimiyoung")
    monkeypatch.setattr(TransfoXLLMHeadModel, "save_pretrained", _full_disk)
    with pytest.raises(Exception, match="could not be written: the disk is full"):
        convert(path, out, "kimiyoung", overwrite=True)
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before
    monkeypatch.undo()
    convert(path, out, "kimiyoung", overwrite=True)
    check_losses(out, other)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["export.pt", "out"]


def _full_disk(model: Any, folder: Path) -> None:
    (Path(folder) / "half").write_text("of it")
    raise OSError(28, "the disk is full")


def test_other_peoples_folders_are_left_alone(tmp_path):
    path = write_kimiyoung(tmp_path, Original())
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "diary.txt").write_text("dear")
    for out, words in (
        (notes, "holds other things than a checkpoint"),
        (path, "is a file"),
        (tmp_path, "is or holds what is to be converted"),
        (path / "below", "is a file"),
    ):
        with pytest.raises(ArgumentError, match=words):
            convert(path, out, "kimiyoung", overwrite=True)
    assert (notes / "diary.txt").read_text() == "dear"
    (tmp_path / "empty").mkdir()
    assert isinstance(convert(path, tmp_path / "empty", "kimiyoung"), Converted)
