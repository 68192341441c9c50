"""Vocabularies of Transformer-XL: what is read, what is refused, and that nothing is run."""

from __future__ import annotations

import base64
import builtins
import functools
import io
import json
import os
import pickle
import random
import struct
import subprocess
import sys
import zipfile
import zlib
from collections import Counter, OrderedDict
from pathlib import Path

import pytest
import torch

from xlnet_fast.errors import ArgumentError
from xlnet_fast.models.transfo_xl import pickles, vocabulary
from xlnet_fast.models.transfo_xl.pickles import Foreign, load
from xlnet_fast.models.transfo_xl.vocabulary import read_vocabulary

PROTOCOLS = range(6)
WORDS = ["<eos>", "<unk>", "the", "naïve", "@-@", "東京", "a'b\\c\"d"]
COUNTS = {"the": 7, "<eos>": 3}


def attributes(words=WORDS, **others):
    """What the tokenizer's `__dict__` was."""
    return {
        "counter": Counter(COUNTS),
        "special": ["<eos>"],
        "min_freq": 0,
        "max_size": None,
        "lower_case": False,
        "idx2sym": list(words),
        "sym2idx": OrderedDict((word, index) for index, word in enumerate(words)),
        **others,
    }


def written(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def refused(tmp_path, content, name="vocab.pkl"):
    with pytest.raises(ArgumentError) as told:
        read_vocabulary(written(tmp_path, name, content))
    message = str(told.value)
    assert str(tmp_path / name) in message
    assert "\n" not in message
    return message


# ---- what is read ----


def test_json_has_ids_or_an_order(tmp_path):
    by_id = {word: index for index, word in reversed(list(enumerate(WORDS)))}
    for content in (by_id, WORDS):
        read = read_vocabulary(written(tmp_path, "vocab.json", json.dumps(content)))
        assert read.symbols == WORDS
        assert read.counts == {}


@pytest.mark.parametrize("end", ["\n", "\r\n", ""])
def test_text_has_a_word_a_line_and_may_have_counts(tmp_path, end):
    text = (end or "\n").join(WORDS) + end
    assert read_vocabulary(written(tmp_path, "vocab.txt", text)).symbols == WORDS
    text = "\ufeff" + "".join(f"{word}\t{index}\n" for index, word in enumerate(WORDS))
    read = read_vocabulary(written(tmp_path, "1b_word_vocab.txt", text))
    assert read.symbols == WORDS
    assert read.counts == {word: index for index, word in enumerate(WORDS)}


def test_a_line_ends_where_files_end_them(tmp_path):
    words = ["a\x1cb", "c\u2028d", "e\x85f"]
    # Each is white space to `split`, and so can be in no word that was split.
    with pytest.raises(ArgumentError, match=r"line 1 .*a word and its count"):
        read_vocabulary(written(tmp_path, "vocab.txt", "\n".join(words)))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_pickles_of_every_protocol(tmp_path, protocol):
    read = read_vocabulary(
        written(tmp_path, "vocab.pkl", pickle.dumps(attributes(), protocol=protocol))
    )
    assert read.symbols == WORDS
    assert read.counts == COUNTS


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_files_of_torch_save(tmp_path, new):
    path = tmp_path / "vocab.bin"
    torch.save(attributes(), path, _use_new_zipfile_serialization=new)
    assert zipfile.is_zipfile(path) == new
    read = read_vocabulary(path)
    assert read.symbols == WORDS
    assert read.counts == COUNTS


GOLDEN = json.loads(
    (Path(__file__).parents[1] / "golden" / "txl_pickles.json").read_text(encoding="utf-8")
)


@pytest.mark.parametrize("name", GOLDEN["files"])
def test_what_transformers_4_37_2_saved(tmp_path, name):
    content = zlib.decompress(base64.b64decode(GOLDEN["files"][name]))
    assert b"sacremoses" in content  # it holds more than a vocabulary
    read = read_vocabulary(written(tmp_path, name, content))
    assert read.symbols == GOLDEN["symbols"]
    assert read.counts == {"the": 2, "dog": 1}


def test_an_ordered_dict_of_python_2(tmp_path):
    class Pairs:
        def __reduce__(self):
            return OrderedDict, ([[word, index] for index, word in enumerate(WORDS)],)

    content = pickle.dumps(attributes(sym2idx=Pairs()), protocol=2)
    assert read_vocabulary(written(tmp_path, "vocab.pkl", content)).symbols == WORDS


def random_value(draw, depth=0):
    """Any data, of sizes that take each way to write it."""
    scalars = (
        lambda: draw.choice([None, True, False, "", "\n", "x" * 300, b"", b"y" * 300, -1.5, 1e300]),
        lambda: draw.choice([0, 255, 256, 65536, -5, -(2**31), 2**31, 2**100, -(2**200)]),
        lambda: "".join(map(chr, draw.choices([65, 39, 92, 10, 233, 0x20AC, 0x1F600], k=5))),
    )
    if depth > 3 or draw.random() < 0.4:
        return draw.choice(scalars)()
    items = [random_value(draw, depth + 1) for _ in range(draw.choice([0, 1, 2, 3, 4]))]
    kind = draw.choice([list, tuple, dict, OrderedDict, Counter])
    if kind in (list, tuple):
        return kind(items)
    return kind({f"{number}é": item for number, item in enumerate(items)})


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_data_is_what_python_reads(protocol):
    draw = random.Random(protocol)
    values = [random_value(draw) for _ in range(200)]
    shared = ["again"]
    values += [[shared, shared], list(range(3000)), {str(n): n for n in range(3000)}]
    if protocol < 3:  # these have bytes by a name alone
        named = (b"_codecs", b"bytes")
        values = [v for v in values if not any(n in pickle.dumps(v, protocol) for n in named)]
    for value in values:
        assert load(pickle.dumps(value, protocol), "it") == value
    assert len(values) > 100
    again = load(pickle.dumps([shared, shared], protocol), "it")
    assert again[0] is again[1]


def test_of_a_dict_only_text_is_a_key():
    # These all have one hash: a dict of them takes the square of their number.
    numbers = b"".join(
        b"\x8a\x0a" + (k * (2**61 - 1)).to_bytes(10, "little") + b"K\x00" for k in range(1, 50_000)
    )
    assert load(b"\x80\x02}(X\x01\x00\x00\x00aK\x01" + numbers + b"u.", "it") == {"a": 1}
    assert load(pickle.dumps({1: 2, "a": 3, (4,): 5, b"b": 6}, 4), "it") == {"a": 3}


# ---- what would run something ----


class Calls:
    """Pickled as a call, which reading it the usual way makes."""

    def __init__(self, function, *args):
        self.reduced = function, args

    def __reduce__(self):
        return self.reduced


def hostile(marker):
    """Name in the message -> an object whose pickle makes the file `marker`."""
    make = f"open({str(marker)!r}, 'w').close()"
    nested = pickle.dumps(Calls(builtins.exec, make))
    return {
        f"{os.name}.system": Calls(os.system, f"touch {marker}"),
        ".Popen": Calls(subprocess.Popen, ["touch", str(marker)]),
        "eval": Calls(eval, make),
        "exec": Calls(exec, make),
        "getattr": Calls(getattr, Calls(__import__, "os"), "system"),
        "__import__": Calls(__import__, "antigravity"),
        "pickle.loads": Calls(pickle.loads, nested),
        "functools.partial": Calls(functools.partial, exec, make),
        "torch.storage._load_from_bytes": Calls(torch.storage._load_from_bytes, nested),
        "torch.serialization.load": Calls(torch.load, str(marker)),
        "operator.methodcaller": Calls(__import__("operator").methodcaller, "system", "true"),
        "torch.jit": Calls(torch.jit.load, str(marker)),
        "io.open": Calls(open, str(marker), "w"),
        "collections.namedtuple": Calls(__import__("collections").namedtuple, "x", "y"),
        "collections.deque": Calls(__import__("collections").deque, [1]),
        "numpy": Calls(__import__("numpy").load, str(marker)),
    }


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", hostile("x"))
def test_what_a_pickle_would_call_is_named_and_not_called(tmp_path, name, protocol):
    marker = tmp_path / "ran"
    evil = hostile(marker)[name]
    for content in (evil, attributes(extra=evil), attributes(sym2idx=evil), attributes([evil])):
        message = refused(tmp_path, pickle.dumps(content, protocol))
        assert "is refused: it wants" in message
        assert name in message.split("it wants ")[1].split(",")[0]
    assert not marker.exists()


def test_these_pickles_do_run_elsewhere(tmp_path):
    for number, name in enumerate(("exec", "pickle.loads", f"{os.name}.system", "io.open")):
        marker = tmp_path / str(number)
        pickle.loads(pickle.dumps(attributes(extra=hostile(marker)[name])))
        assert marker.exists(), name


def test_hostile_files_of_torch_save(tmp_path):
    marker = tmp_path / "ran"
    for new in (True, False):
        file = io.BytesIO()
        evil = hostile(marker)["exec"]
        torch.save(attributes(extra=evil), file, _use_new_zipfile_serialization=new)
        assert "it wants __builtin__.exec" in refused(tmp_path, file.getvalue(), "vocab.bin")
        file = io.BytesIO()
        torch.save(attributes(extra=torch.ones(2)), file, _use_new_zipfile_serialization=new)
        message = refused(tmp_path, file.getvalue(), "vocab.bin")
        assert "torch._utils._rebuild_tensor_v2" in message
    assert not marker.exists()


def short(text):
    return b"\x8c" + bytes([len(text)]) + text.encode()


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (b"\x80\x04" + short("os") + short("system") + b"\x93.", "os.system"),
        # A name with dots goes on from a class that is allowed, or through one module to another.
        (b"\x80\x04" + short("collections") + short("OrderedDict.fromkeys") + b"\x93.", "fromkeys"),
        (b"\x80\x04" + short("collections") + short("abc.sys.modules") + b"\x93.", "abc.sys"),
        (b"\x80\x04" + short("transformers") + short("utils.os.system") + b"\x93.", "os.system"),
        (b"\x80\x04" + short("sacremoses_") + short("x") + b"\x93.", "sacremoses_.x"),
        (b"ctransformers\nutils.os.system\n.", "transformers.utils.os.system"),
        (b"(S'true'\nios\nsystem\n.", "os.system"),
        (b"(cos\nsystem\nS'true'\no.", "os.system"),
        (b"\x80\x02cos\nsystem\n)\x81.", "os.system"),
        (b"\x80\x02cre\ncompile\n.", "re.compile"),
        (b"ccopyreg\n__newobj__\n.", "copyreg.__newobj__"),
        (b"Pan object\n.", "PERSID, for a tensor"),
        (b"\x80\x02K\x01Q.", "BINPERSID, for a tensor"),
        (b"\x80\x02\x82\x01.", "EXT1"),
        (b"\x80\x02\x84\x01\x00\x00\x00.", "EXT4"),
        (pickle.dumps(bytearray(b"x"), 5), "BYTEARRAY8"),
        (b"\x80\x05\x96\xff\xff\xff\xff\xff\xff\xff\x7f.", "BYTEARRAY8"),
        (b"\x80\x05\x97.", "NEXT_BUFFER"),
    ],
)
def test_each_way_to_name_something_is_closed(tmp_path, content, wanted):
    message = refused(tmp_path, content)
    assert "is refused" in message
    assert wanted in message


def test_classes_are_as_they_were_after_a_pickle_that_would_change_them(tmp_path):
    before = dict(vars(Counter))
    # (None, {"update": 1}) as the state of the class itself: attributes that BUILD would set.
    content = b"\x80\x02ccollections\nCounter\nN}X\x06\x00\x00\x00updateK\x01s\x86b."
    refused(tmp_path, content)
    assert dict(vars(Counter)) == before

    class Restricted(pickle.Unpickler):
        """What is usually advised: it gives out this class alone, and the file changes it."""

        def find_class(self, module, name):
            return type("Counter", (Counter,), {})

    assert Restricted(io.BytesIO(content)).load().update == 1


def test_an_object_of_another_class_is_no_vocabulary(tmp_path):
    foreign = (
        b"csacremoses.tokenize\nMosesTokenizer\n)\x81}X\x04\x00\x00\x00langX\x02\x00\x00\x00ensb"
    )
    assert isinstance(load(b"\x80\x02" + foreign + b".", "it"), Foreign)
    message = refused(tmp_path, b"\x80\x02" + foreign + b".")
    assert "holds a sacremoses.tokenize.MosesTokenizer; expected" in message
    with_items = foreign + b"(X\x01\x00\x00\x00aK\x01u(K\x02e."
    assert isinstance(load(b"\x80\x02" + with_items, "it"), Foreign)
    content = b"\x80\x02}X\x07\x00\x00\x00idx2sym" + foreign + b"s."
    assert "MosesTokenizer as idx2sym" in refused(tmp_path, content)
    content = b"\x80\x02}X\x07\x00\x00\x00idx2sym]" + foreign + b"as."
    assert "the word with id 0 is a sacremoses" in refused(tmp_path, content)


# ---- what would take all memory, or all day ----


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02Nr\xff\xff\xff\xff.",  # a memo with four thousand million places
        b"Np99999999999999\n.",
        b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7fx.",  # texts that are longer than the file
        b"\x80\x04\x8e\x00\x00\x00\x00\x00\x01\x00\x00x.",
        b"\x80\x02X\xff\xff\xff\x7fx.",
        b"\x80\x02\x8b\xff\xff\xff\x7f\x01.",
        b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7fN.",
        b"I" + b"9" * 100_000 + b"\n.",
        b"\x80\x02\x8a\xff" + b"\x7f" * 255 + b"1",
    ],
)
def test_numbers_of_a_file_ask_for_no_memory(tmp_path, content):
    import tracemalloc

    tracemalloc.start()
    message = refused(tmp_path, content)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "cut short" in message or "damaged" in message
    assert peak < 2e6


def test_the_same_pairs_again_and_again_are_refused(tmp_path):
    pairs = (
        b"\x80\x02]("
        + b"X\x01\x00\x00\x00aK\x01\x86" * 500
        + b"eq\x00ccollections\nOrderedDict\nq\x01"
    )
    assert load(pairs + b"h\x00\x85R.", "it") == {"a": 1}
    assert "more pairs than the file has room for" in refused(
        tmp_path, pairs + b"h\x01h\x00\x85R" * 100 + b"."
    )


def test_too_many_operations_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(pickles, "MOST_STEPS", 1000)
    assert load(b"(" * 998 + b"N.", "it") is None
    assert "more than 1,000 operations" in refused(tmp_path, b"(" * 999 + b"N.")


@pytest.mark.parametrize("name", ["vocab.json", "vocab.txt", "vocab.bin", "vocab.pkl"])
def test_too_large_a_file_is_not_read(tmp_path, name, monkeypatch):
    path = tmp_path / name
    with path.open("wb") as file:
        file.truncate(vocabulary.MOST_BYTES + 1)  # no byte of it is on the disk
    monkeypatch.setattr(Path, "read_bytes", lambda self: pytest.fail("it was read"))
    with pytest.raises(ArgumentError, match=r"has 64 MiB and is not read.* take less than 64"):
        read_vocabulary(path)


def test_a_zip_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    def zipped(name, size):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(name, b"(" * size)
        return file.getvalue()

    monkeypatch.setattr(pickles, "MOST_BYTES", 2**20)
    assert "more than 1 MiB" in refused(tmp_path, zipped("archive/data.pkl", 2**20 + 1))
    assert "cut short" in refused(tmp_path, zipped("archive/data.pkl", 1000))
    assert "none that torch.save wrote" in refused(tmp_path, zipped("archive/other.pkl", 5))
    assert "damaged" in refused(tmp_path, zipped("archive/data.pkl", 1000)[:-30])


# ---- what is damaged, or no vocabulary ----


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_file_that_was_cut_short_says_so(tmp_path, protocol):
    whole = pickle.dumps(attributes(), protocol)
    for size in range(len(whole)):
        with pytest.raises(ArgumentError, match="is cut short: its pickle goes on"):
            load(whole[:size], "it")
    assert "is cut short" in refused(tmp_path, whole[:-1])


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x04\x8c\x06\xe6\x9d\xb1\xe4\xba",
        b"\x80\x04N0\x8c\x03\xe6\x9d",
        b"\x80\x02X\x06\x00\x00\x00\xe6\x9d\xb1\xe4",
    ],
)
def test_a_letter_that_was_cut_is_no_damage(content):
    with pytest.raises(ArgumentError, match="is cut short"):
        load(content, "it")


def test_a_damaged_file_raises_nothing_else():
    draw = random.Random(0)
    wholes = [pickle.dumps(attributes(), protocol) for protocol in PROTOCOLS]
    file = io.BytesIO()
    torch.save(attributes(), file)
    errors = 0
    for whole in [*wholes, file.getvalue()]:
        for _ in range(400):
            damaged = bytearray(whole)
            for _ in range(draw.choice([1, 2, 8])):
                damaged[draw.randrange(len(damaged))] = draw.randrange(256)
            try:
                vocabulary._from_pickle(bytes(damaged), "it")
            except ArgumentError:
                errors += 1
    assert errors > 1000


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("vocab.json", "", "is no JSON, or was cut short"),
        ("vocab.json", '{"a": 0, "b"', "is no JSON, or was cut short"),
        ("vocab.json", "[" * 100_000, "is no JSON, or was cut short"),
        ("vocab.json", b"\xff", "is not UTF-8 (byte 0 is 0xff)"),
        ("vocab.json", "7", "holds neither {word: id} nor a list"),
        ("vocab.json", "{}", "holds no word"),
        ("vocab.json", "[]", "holds no word"),
        ("vocab.json", '["a", "b", "a"]', "has 'a' twice, at 0 and 2"),
        ("vocab.json", '{"a": 0, "a": 1}', "has 'a' twice, at 0 and 1"),
        ("vocab.json", '["a", ""]', "the word with id 1 is empty"),
        ("vocab.json", '["a", 5]', "the word with id 1 is 5; expected text"),
        ("vocab.json", '["a", null]', "the word with id 1 is None; expected text"),
        ("vocab.json", '{"a": 0, "b": 2}', "gives 'b' the id 2; the ids of 2 words are 0 to 1"),
        ("vocab.json", '{"a": 1, "b": 1}', "gives 'b' the id 1"),
        ("vocab.json", '{"a": -1}', "gives 'a' the id -1"),
        ("vocab.json", '{"a": true}', "gives 'a' the id a bool"),
        ("vocab.json", '{"a": 0.0}', "gives 'a' the id a float"),
        ("vocab.json", '{"model": {"vocab": {}}}', "gives 'model' the id a dict"),
        ("vocab.txt", "", "holds no word"),
        ("vocab.txt", "a\n\nb\n", "has nothing in line 2"),
        ("vocab.txt", "a\nb\n\n", "has nothing in line 3"),
        ("vocab.txt", "a\nb\na 3\n", "has 'a' twice, at 0 and 2"),
        ("vocab.txt", "a 1\nNew York\n", "line 2 of the vocabulary"),
        ("vocab.txt", "a 1 2\n", "a word and its count"),
        ("vocab.txt", "a -1\n", "a word and its count"),
        ("vocab.txt", b"a\n\xe9\n", "is not UTF-8 (byte 2 is 0xe9)"),
        ("vocab.pkl", "", "is cut short"),
        ("vocab.pkl", "the\nof\n", "is no pickle, or a damaged one"),
        ("vocab.pkl", b"\x80\x07N.", "protocol 7, and those up to 5"),
        ("vocab.pkl", b"\x00", "byte 0 is 0x00, no operation"),
        ("vocab.pkl", pickle.dumps(WORDS), "holds a list; expected the attributes"),
        ("vocab.pkl", pickle.dumps({}), "holds None as idx2sym and None as sym2idx"),
        ("vocab.pkl", pickle.dumps(attributes([])), "holds no word"),
        ("vocab.pkl", pickle.dumps(attributes(["a", "a"])), "has 'a' twice"),
        ("vocab.pkl", pickle.dumps(attributes(sym2idx=[])), "and a list as sym2idx"),
        ("vocab.pkl", pickle.dumps(attributes(["a"], sym2idx={"b": 0})), "contradicts itself"),
        ("vocab.pkl", pickle.dumps(attributes(["a"], sym2idx={})), "has 1 words and 0 ids"),
        ("vocab.pkl", pickle.dumps(attributes(["a"], sym2idx={"a": 2**99})), "the id a int"),
    ],
)
def test_what_is_wrong_is_told(tmp_path, name, content, message):
    assert message in refused(tmp_path, content, name)


def test_a_pickle_without_ids_has_the_order(tmp_path):
    content = pickle.dumps({"idx2sym": WORDS})
    assert read_vocabulary(written(tmp_path, "vocab.pkl", content)).symbols == WORDS


def test_what_is_no_file_is_told(tmp_path):
    with pytest.raises(ArgumentError, match=r"vocab\.txt does not exist"):
        read_vocabulary(tmp_path / "vocab.txt")
    with pytest.raises(ArgumentError, match=r"is no file; give one of vocab\.json, vocab\.txt"):
        read_vocabulary(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "vocab.pkl")
        with pytest.raises(ArgumentError, match="is no file"):
            read_vocabulary(tmp_path / "vocab.pkl")


def test_reading_imports_nothing(tmp_path):
    """Not even a module that is known: a pickle names it, and no more."""
    content = b"\x80\x02}X\x01\x00\x00\x00xcsacremoses.no_such_module\nThing\n)R"
    content += b"sX\x07\x00\x00\x00idx2sym]X\x01\x00\x00\x00aas."
    before = set(sys.modules)
    assert read_vocabulary(written(tmp_path, "vocab.pkl", content)).symbols == ["a"]
    assert set(sys.modules) == before


def test_floats_and_lines_of_old_pickles():
    assert load(b"F1.5\n.", "it") == 1.5
    assert load(b"\x80\x02G" + struct.pack(">d", 2.5) + b".", "it") == 2.5
    assert repr(load(b"(I01\nI00\nI5\nL7L\nl.", "it")) == "[True, False, 5, 7]"
    assert load(b"K\x05(0.", "it") == 5  # a mark, and what came after one, taken back
    assert load(b"K\x05(K\x061.", "it") == 5
    assert load(b"(S'it\\'s \\xc3\\xa9'\nS\"x\"\nU\x01zT\x01\x00\x00\x00yt.", "it") == (
        "it's é", "x", "z", "y",
    )  # fmt: skip
    with pytest.raises(ArgumentError, match="a number of 201 digits"):
        load(b"L" + b"9" * 200 + b"L\n.", "it")
    with pytest.raises(ArgumentError, match="a string without its quotes"):
        load(b"S'x\n.", "it")
