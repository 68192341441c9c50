"""What is packed: all that a service needs, the same bytes each time, nothing from elsewhere."""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path

import deployable
import numpy as np
import pytest
from safetensors.numpy import save_file
from tiny_finetuning import checkpoint
from transformers import XLNetConfig, XLNetForSequenceClassification

from xlnet_fast.deploy.invocation import question_for
from xlnet_fast.deploy.model_archive import model_folder, pack
from xlnet_fast.errors import ArgumentError, XLNetFastError
from xlnet_fast.predict import Predictor


@pytest.fixture
def folder(tmp_path):
    return deployable.model(tmp_path / "model")


def test_the_archive_has_the_files_and_no_more(folder, tmp_path):
    for name in ("training_args.bin", "optimizer.pt", "README.md", ".secret.json"):
        (folder / name).write_bytes(b"x")
    (folder / "checkpoint-3").mkdir()
    found = model_folder(str(folder))
    assert found.files == ("config.json", "model.safetensors", "spiece.model")
    assert found.left_out == (
        ".secret.json", "README.md", "checkpoint-3/", "optimizer.pt", "training_args.bin",
    )  # fmt: skip
    pack(found, tmp_path / "a.tar.gz")
    with tarfile.open(tmp_path / "a.tar.gz") as archive:
        assert archive.getnames() == list(found.files)
        for entry in archive:
            assert entry.isreg()
            assert (entry.uid, entry.uname, entry.mode) == (0, "", 0o644)
            content = archive.extractfile(entry)
            assert content is not None
            assert content.read() == (folder / entry.name).read_bytes()


def test_the_same_files_are_the_same_bytes_wherever_and_whenever(tmp_path):
    archives, digests = [], []
    for name, seconds in (("a", 1), ("b", 2_000_000_000)):
        folder = deployable.model(tmp_path / name)
        for path in folder.iterdir():
            os.utime(path, (seconds, seconds))
            path.chmod(0o600 if name == "a" else 0o755)
        found = model_folder(str(folder))
        digests.append((found.digest, pack(found, tmp_path / f"{name}.tar.gz")))
        archives.append((tmp_path / f"{name}.tar.gz").read_bytes())
    assert archives[0] == archives[1]
    assert digests[0] == digests[1]


def test_other_content_has_another_digest(folder):
    before = model_folder(str(folder)).digest
    (folder / "spiece.model").write_bytes(b"others")
    assert model_folder(str(folder)).digest != before


def test_the_folder_of_a_run_is_its_model(folder):
    assert model_folder(str(folder.parent)).folder == folder


def test_a_link_out_of_the_folder_is_refused(folder, tmp_path):
    (tmp_path / "secret.txt").write_text("secret")
    (folder / "vocab.txt").symlink_to(tmp_path / "secret.txt")
    with pytest.raises(ArgumentError, match="is a link out of the folder"):
        model_folder(str(folder))


def test_a_link_within_the_folder_becomes_a_file(folder, tmp_path):
    (folder / "vocab.txt").symlink_to("spiece.model")
    pack(model_folder(str(folder)), tmp_path / "a.tar.gz")
    with tarfile.open(tmp_path / "a.tar.gz") as archive:
        entry = archive.getmember("vocab.txt")
        assert entry.isreg()
        assert archive.extractfile(entry).read() == b"pieces"


def test_a_link_to_nothing_and_a_pipe_are_refused(folder):
    (folder / "vocab.txt").symlink_to("nothing.txt")
    with pytest.raises(ArgumentError, match="is no regular file"):
        model_folder(str(folder))
    (folder / "vocab.txt").unlink()
    os.mkfifo(folder / "vocab.txt")
    with pytest.raises(ArgumentError, match="is no regular file"):
        model_folder(str(folder))


def test_a_folder_behind_a_link_is_a_folder(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    assert model_folder(str(tmp_path / "link")).digest == model_folder(str(folder)).digest


def shards(folder: Path, **placed: str) -> None:
    (folder / "model.safetensors").unlink()
    save_file({"a": np.zeros(3)}, folder / "model-1.safetensors")
    save_file({"b": np.zeros(3)}, folder / "model-2.safetensors")
    text = json.dumps({"weight_map": placed})
    (folder / "model.safetensors.index.json").write_text(text)


def test_weights_in_several_files(folder):
    shards(folder, a="model-1.safetensors", b="model-2.safetensors")
    assert len(model_folder(str(folder)).files) == 5
    shards_gone = folder / "model-2.safetensors"
    shards_gone.unlink()
    with pytest.raises(ArgumentError, match=r"lacks model-2\.safetensors, which"):
        model_folder(str(folder))


def test_a_weight_that_is_not_where_the_index_says(folder):
    shards(folder, a="model-1.safetensors", c="model-2.safetensors")
    with pytest.raises(ArgumentError, match=r"model-2\.safetensors lacks c"):
        model_folder(str(folder))


def cut(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def without(name):
    return lambda folder: (folder / name).unlink()


def pickled(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def configured(**config):
    return lambda folder: (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (cut, "damaged or cut short"),
        (without("config.json"), r"config\.json cannot be read"),
        (without("spiece.model"), r"has no tokenizer, expected spiece\.model or tokenizer\.json"),
        (without("model.safetensors"), r"has no model\.safetensors$"),
        (pickled, r"pytorch_model\.bin would run what is in it"),
        (configured(model_type="bert"), "is a bert model, expected an XLNet"),
        (configured(model_type="xlnet"), "names no architectures"),
        (lambda folder: (folder / "config.json").write_text("[1]"), "holds no JSON object"),
        (lambda folder: (folder / "config.json").write_bytes(b"\xff{"), "cannot be read"),
    ],
)
def test_what_no_service_could_load_is_refused(folder, spoil, told):
    spoil(folder)
    with pytest.raises(ArgumentError, match=told):
        model_folder(str(folder))


@pytest.mark.parametrize("name", ["xlnet/xlnet-base-cased", "/not/there"])
def test_a_name_of_the_hub_is_no_folder(name):
    with pytest.raises(ArgumentError, match="expected a folder, not a name of the Hub"):
        model_folder(name)


def test_a_folder_that_changes_meanwhile(folder, tmp_path):
    found = model_folder(str(folder))
    (folder / "spiece.model").write_bytes(b"others")
    with pytest.raises(XLNetFastError, match="has changed while it was packed"):
        pack(found, tmp_path / "a.tar.gz")


def test_a_place_that_cannot_be_written_to(folder, tmp_path):
    with pytest.raises(XLNetFastError, match="cannot be written: No such file"):
        pack(model_folder(str(folder)), tmp_path / "none" / "a.tar.gz")


def test_weights_are_packed_without_being_held_in_memory(folder, tmp_path):
    import tracemalloc

    save_file({"weight": np.zeros(8 << 20, np.uint8)}, folder / "model.safetensors")
    tracemalloc.start()
    pack(model_folder(str(folder)), tmp_path / "a.tar.gz")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 << 20


def test_what_is_packed_is_enough_to_answer_the_first_question(tmp_path):
    """A checkpoint, packed, unpacked as SageMaker does, loaded and asked."""
    source = checkpoint(tmp_path / "model")
    config = XLNetConfig.from_pretrained(source)
    XLNetForSequenceClassification(config).save_pretrained(source)
    found = model_folder(str(source))
    pack(found, tmp_path / "model.tar.gz")
    with tarfile.open(tmp_path / "model.tar.gz") as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    predictor = Predictor.load(str(tmp_path / "unpacked"))
    (record,) = json.loads(question_for(found.architecture).body)["instances"]
    assert predictor(record)["label"] == Predictor.load(str(source))(record)["label"]
