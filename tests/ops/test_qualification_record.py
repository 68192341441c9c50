"""Records of qualifications: their classes, and what is refused when one is read or written."""

from __future__ import annotations

import json
import os
from dataclasses import fields, replace

import pytest
from records import a_record, a_row, an_identity

from xlnet_fast.errors import ArgumentError
from xlnet_fast.kernels.triton.tiles import Config
from xlnet_fast.ops._dispatch import OPS
from xlnet_fast.ops.qualification.record import (
    CLASSES,
    SCHEMA,
    STATUSES,
    TILE_FIELDS,
    Identity,
    Timing,
    checksum,
    covering,
    head_dim_class,
    parse,
    read,
    write,
)


def test_what_is_written_is_read():
    rows = [
        a_row(backend=name, status=status, direction=direction)
        for name in ("cuda", "triton", "sdpa")
        for status, direction in zip(STATUSES, ("forward", "backward"), strict=False)
    ]
    record = a_record(rows)
    assert parse(record.to_json(), "it") == record
    assert json.loads(record.to_json())["schema"] == SCHEMA


def test_a_record_names_tiles_by_the_fields_of_a_config():
    record = replace(a_record(), tiles={"forward/bfloat16/64/light": (64, 32, 4, 2, 255, 206, 9)})
    assert parse(record.to_json(), "it") == record
    (tile,) = record.tiles.values()
    assert len(fields(Config)) == TILE_FIELDS == len(tile)
    assert Config(*tile).shared_bytes == 9


def test_every_op_has_classes_that_are_told_apart():
    assert set(OPS) < set(CLASSES)
    for op, classes in CLASSES.items():
        assert len(set(classes.values())) == len(classes)
        for name, features in classes.items():
            assert covering(op, features) == name


@pytest.mark.parametrize(
    ("op", "features", "expected"),
    [
        ("rel_attention", (), "plain"),
        ("rel_attention", ("segments",), "padded"),
        ("rel_attention", ("dropout",), "dropout"),
        ("rel_attention", ("memory", "padding"), "memory"),
        ("rel_attention", ("causal",), "causal"),
        ("rel_attention", ("ranks",), "permuted"),
        ("rel_attention", ("groups",), "dense"),
        ("rel_attention", ("bits", "ranks"), None),
        ("rel_attention", ("unheard of",), None),
        ("two_stream_attention", (), "permuted"),
        ("two_stream_attention", ("bits",), "dense"),
        ("two_stream_attention", ("causal",), None),
        ("masked_softmax", ("padding",), "all"),
        ("concat_memory", (), "all"),
    ],
)
def test_the_least_class_that_covers_a_call(op, features, expected):
    assert covering(op, features) == expected


@pytest.mark.parametrize(
    ("head_dim", "expected"),
    [(1, "<32"), (32, "32"), (33, "<64"), (64, "64"), (96, "<128"), (128, "128"), (129, "wide")],
)
def test_classes_of_head_dims(head_dim, expected):
    assert head_dim_class(head_dim) == expected


def test_every_part_of_an_identity_counts():
    identity = an_identity()
    assert identity.difference(identity) is None
    for field in fields(Identity):
        other = replace(identity, **{field.name: 7 if field.name == "multiprocessors" else "new"})
        words = identity.difference(other)
        assert words.startswith(f"{field.name} was ")
        assert words.endswith(("is 7", "is 'new'"))


def test_speeds_are_geometric_means_of_ratios():
    row = a_row(timings=(Timing("a", 10.0, 20.0, None), Timing("b", 10.0, 80.0, 10.0)))
    assert row.speedup("baseline") == pytest.approx(4.0)
    assert row.speedup("hf") is None
    assert row.time_us == pytest.approx(10.0)
    assert a_row(speed=None).speedup("baseline") is None
    assert a_row(speed=None).time_us is None


def changed(**changes):
    data = json.loads(a_record().to_json())
    for path, value in changes.items():
        *where, last = path.split("__")
        place = data
        for name in where:
            place = place[int(name) if name.isdigit() else name]
        if value is None:
            del place[last]
        else:
            place[last] = value
    return json.dumps({**data, "checksum": checksum(data)})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it is no JSON"),
        (changed()[:-20], "it is no JSON"),
        ("[]", "it has list for the whole, expected an object"),
        ("null", "it has NoneType for the whole"),
        (changed(schema=2), "it has schema 2, and this version reads 1"),
        (changed(schema=None), "it has schema None"),
        (changed(identity=None), "it has NoneType for identity"),
        (changed(identity__torch=None), "it lacks 'torch' in identity"),
        (changed(identity__colour="red"), "it has an unknown 'colour' in identity"),
        (changed(identity__multiprocessors="many"), "multiprocessors 'many' in identity"),
        (changed(identity__multiprocessors=True), "multiprocessors True in identity"),
        (changed(rows=None), "it has NoneType for rows"),
        (changed(rows=[7]), "it has int for row 0"),
        (changed(rows=[json.loads(changed())["rows"][0]] * 2), "it has row 1 twice"),
        (changed(rows__0__op="cooking"), "op 'cooking' in row 0, expected one of: rel_attention"),
        (changed(rows__0__operands="odd"), "operands 'odd' in row 0, expected one of: plain"),
        (changed(rows__0__status="green"), "status 'green' in row 0"),
        (changed(rows__0__direction="up"), "direction 'up' in row 0"),
        (changed(rows__0__error=1.0), "it calls row 0 passed, with error 1.0 and bound 0.002"),
        (changed(rows__0__error="no"), "error 'no' in row 0, expected float"),
        (changed(rows__0__error=float("nan")), "error nan in row 0"),
        (changed(rows__0__timings=None), "it has NoneType for the timings of row 0"),
        (changed(rows__0__timings__0__time_us=0.0), "it has a time in row 0 that is not positive"),
        (changed(rows__0__timings__0__baseline_us=-1.0), "a time in row 0 that is not positive"),
        (changed(rows__0__timings__0__hf_us=10**400), "or is longer than a day"),
        (changed(rows__0__error=-5.0), "it calls row 0 passed, with error -5.0"),
        (changed(identity__device="tpu"), "it has device 'tpu' in identity, expected cuda or cpu"),
        ("[" * 200000, "it is no JSON"),
        (changed(rows__0__timings__0__time_us=None), "it lacks 'time_us' in a timing of row 0"),
        (changed(seconds="long"), "seconds 'long' in the whole"),
        (changed(tiles=None), "it has NoneType for tiles"),
        (changed(tiles={"a": 7}), "it has int for the tile 'a'"),
        (changed(tiles={"a": [64, 32]}), "the tile 'a' of [64, 32], expected 7 integers"),
        (changed(tiles={"a": [64, 32, 4, 2, 255, 0, -1]}), "expected 7 integers"),
        (changed(tiles={"a": [64, 32, 4, 2, 255, 0, True]}), "expected 7 integers"),
        (changed(extra=1), "it has an unknown 'extra' in the whole"),
    ],
)
def test_a_damaged_record_is_refused_in_one_sentence(text, message):
    with pytest.raises(ArgumentError) as info:
        parse(text, "it")
    assert message in str(info.value)
    assert str(info.value).endswith("`xlnet-fast qualify` renews it")
    assert "\n" not in str(info.value)


@pytest.mark.parametrize(
    "edited",
    [
        lambda text: text.replace("300.0", "900.0"),
        lambda text: text.replace('"passed"', '"failed"'),
        lambda text: text.replace("NVIDIA Test 9000", "NVIDIA Test 9001"),
        lambda text: text.replace('"checksum"', '"checksums"'),
        lambda text: text.replace('"checksum": "', '"checksum": "0'),
    ],
)
def test_a_record_that_was_edited_by_hand_is_refused(edited):
    text = a_record().to_json()
    assert edited(text) != text
    with pytest.raises(ArgumentError, match=r"it (was edited: its checksum|has an unknown)"):
        parse(edited(text), "it")
    assert parse(json.dumps(json.loads(text)), "it") == a_record()  # spaces are no content


def test_files_that_cannot_be_read(tmp_path):
    for path in (tmp_path, tmp_path / "none.json"):
        with pytest.raises(ArgumentError, match="cannot be read"):
            read(path)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(ArgumentError, match="it is no regular file"):
        read(pipe)
    binary = tmp_path / "binary.json"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ArgumentError, match="cannot be read"):
        read(binary)


def test_a_record_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "record.json"
    write(a_record(), path)
    assert os.stat(path).st_mode & 0o777 == 0o644

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(ArgumentError, match=r"cannot be written .*No space left"):
        write(a_record(name="another"), path)
    assert read(path) == a_record()
    assert list(path.parent.iterdir()) == [path]


def test_where_no_record_can_be_written(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    for path in (file / "record.json", tmp_path):
        with pytest.raises(ArgumentError, match="cannot be written"):
            write(a_record(), path)
    assert file.read_text() == ""
    assert list(tmp_path.iterdir()) == [file]
