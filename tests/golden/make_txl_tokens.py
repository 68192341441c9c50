"""Writes what Hugging Face's own Transformer-XL tokenizer gives: txl_tokens.json, txl_pickles.json.

transformers 4.37.2 has it, and wants an environment of its own:

    pip install torch==2.13.0 transformers==4.37.2 "numpy<2" sacremoses
    PYTHONHASHSEED=0 python tests/golden/make_txl_tokens.py

The first file has words, ids and texts of each text below, for several settings of the tokenizer;
the second the files that tokenizer saves its vocabulary in, zlib in base64. (A set in them has the
order of the seed.)
"""

from __future__ import annotations

import base64
import io
import json
import os
import pickle
import tempfile
import zlib
from pathlib import Path
from typing import Any

import sacremoses
import torch
import transformers
from transformers import TransfoXLTokenizer

HERE = Path(__file__).resolve().parent
TEXTS = [
    "",
    "   ",
    "The quick brown fox jumps over the lazy dog.",
    "23,000 people are 1.80 m tall; 1,234,567.89 of 3.14.15 are not, 5 , 6.",
    "The state-of-the-art model -- a 12-layer one - isn't re-trained (yet).",
    "He said: \"It's John's, not the Jones' house!\" and 'left'.",
    "“Curly” quotes – and ‘single’ ones — with an ellipsis… and «guillemets».",
    "Mr. J. Smith of the U.S. arrived at 5 p.m. on No. 7 St. George St. etc.",
    "Wait... what?! Really?? (see [1], {2} & <b>bold</b>) 100% of $5.50 = €4,99",
    "Größe, naïve café, Ελλάδα ΣΊΣΥΦΟΣ, Москва, 東京 タワー, हिन्दी, שלום.",
    "<unk> and <UNK> and <Eos> <eos> then<formula>glued, <formula>.",
    "a\tb\nc  d\u00a0e\u3000f",
    "http://example.org/a_b?c=d&e=f#g and someone@example.org, @name #tag",
    "can't won't they'll I'd we've y'all 'tis 80's rock'n'roll O'Neil",
    "A,B,C,D 1,2 x,1 1,x . . . .. ,, ;; '' `` \"\" ''",
    " = Robert Boulter = ",
    "It was released on the GameCube ( 2002 ) , and the PS2 @,@ too @-@ late .",
    "Combining e\u0301 and emoji 😀👩‍🔬 and soft\u00adhyphen, zero\u200bwidth, control\x07bell.",
    "&amp; &lt;tag&gt; &quot;quoted&quot; a|b",
    'A "<formula>" (<formula>) and "<end>" or (<end>), "c".',
]
COUNTED = ["the cat saw the dog .", "the dog saw 1,000 cats", "", "a dog , a cat"]
NUMBERS = [["$", "5,000", "1.73", "m"], ["1,2,3", "a.b", ".5", "7."], []]
BATCH = ["the quick dog", "the lazy", ""]


def symbols() -> list[str]:
    """A vocabulary that has the words of every other text, and so lacks others."""
    with tempfile.TemporaryDirectory() as folder:
        splitter = with_vocabulary(folder, ["<eos>", "<unk>", "<formula>"])
        words = {word for text in TEXTS[::2] for word in splitter.tokenize(text)}
        words |= {letter for text in TEXTS[:5] for letter in text if letter.strip()}
        words |= {"gluon", "the", "quick", "dog", "lazy", "@-@"} | {w.lower() for w in words}
    return ["<eos>", "<unk>", *sorted(words - {"<eos>", "<unk>", "<UNK>", "<formula>"})]


def with_vocabulary(folder: str, words: list[str], **arguments: Any) -> TransfoXLTokenizer:
    path = Path(folder, "vocab.txt")
    path.write_text("".join(f"{word}\n" for word in words), encoding="utf-8")
    return TransfoXLTokenizer(vocab_file=str(path), **arguments)


def rows(tokenizer: TransfoXLTokenizer, texts: list[str]) -> list[dict[str, Any]]:
    found = []
    for text in texts:
        tokens, ids = tokenizer.tokenize(text), tokenizer.encode(text)
        found.append(
            {
                "text": text,
                "tokens": tokens,
                "ids": ids,
                "decoded": tokenizer.decode(ids),
                "plain": tokenizer.decode(
                    ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
                ),
                "joined": tokenizer.convert_tokens_to_string(tokens),
            }
        )
    return found


def padded(tokenizer: TransfoXLTokenizer, side: str) -> dict[str, list[list[int]]]:
    tokenizer.pad_token, tokenizer.padding_side = tokenizer.eos_token, side
    return dict(tokenizer(BATCH, padding=True, return_attention_mask=True))


def moved(folder: str, words: list[str]) -> dict[str, Any]:
    tokenizer = with_vocabulary(folder, words)
    tokenizer.add_tokens(["newest", "newer"])
    tokenizer.move_added_token("newest", 3)
    text = "the newest quick dog"
    return {"text": text, "ids": tokenizer.encode(text), "len": len(tokenizer)}


def counted(folder: str, **arguments: Any) -> list[str]:
    path = Path(folder, "text.txt")
    path.write_text("\n".join(COUNTED), encoding="utf-8")
    tokenizer = TransfoXLTokenizer(**arguments)
    tokenizer.count_file(str(path))
    tokenizer.build_vocab()
    return tokenizer.idx2sym


def saved(folder: str, words: list[str]) -> dict[str, bytes]:
    # The path of the file is in the pickle: without the folder it is always the same.
    os.chdir(folder)
    tokenizer = with_vocabulary("", words)
    tokenizer.count_sents([["the", "the", "dog"]])
    tokenizer.save_vocabulary(folder)
    found = {"vocab.pkl": Path(folder, "vocab.pkl").read_bytes()}
    for protocol in (2, 3, 5):
        found[f"protocol{protocol}.pkl"] = pickle.dumps(tokenizer.__dict__, protocol)
    for name, new in (("vocab.bin", True), ("legacy.bin", False)):
        file = io.BytesIO()
        torch.save(tokenizer.__dict__, file, _use_new_zipfile_serialization=new)
        found[name] = file.getvalue()
    return found


def main() -> None:
    words = symbols()
    settings: dict[str, dict[str, Any]] = {
        "as it is": {},
        "lower case": {"lower_case": True},
        "characters": {"delimiter": ""},
        "French": {"language": "fr"},
        "German": {"language": "de"},
        "another end": {"eos_token": "<end>"},
        "never split": {"never_split": ["state-of-the-art", "U.S.", "a_b"]},
        "more special tokens": {"additional_special_tokens": ["<formula>", "fox", "<b>"]},
    }
    with tempfile.TemporaryDirectory() as folder:
        with_added = with_vocabulary(folder, words)
        with_added.add_tokens(["gluon", "New York", "fo-x"])
        golden = {
            "versions": {
                "transformers": transformers.__version__,
                "sacremoses": sacremoses.__version__,
            },
            "symbols": words,
            "settings": [
                {
                    "name": name,
                    "arguments": arguments,
                    "rows": rows(with_vocabulary(folder, words, **arguments), TEXTS),
                }
                for name, arguments in settings.items()
            ],
            "added": {
                "tokens": ["gluon", "New York", "fo-x"],
                "rows": rows(with_added, ["A gluon, in New York. The fo-x fo-xy!", "New  York"]),
            },
            "numbers": [
                [words_in, transformers_numbers(words_in), joined_numbers(words_in)]
                for words_in in NUMBERS
            ],
            "padded": {
                side: padded(with_vocabulary(folder, words), side) for side in ("left", "right")
            },
            "batch": BATCH,
            "moved": moved(folder, words),
            "lines": COUNTED,
            "counted": [
                [arguments, counted(folder, **arguments)]
                for arguments in ({}, {"special": ["<eos>", "<unk>"], "min_freq": 2, "max_size": 4})
            ],
        }
        pickles = {
            name: base64.b64encode(zlib.compress(content, 9)).decode()
            for name, content in saved(folder, words[:40]).items()
        }
    write("txl_tokens.json", golden)
    write("txl_pickles.json", {"symbols": words[:40], "files": pickles})


def transformers_numbers(words: list[str]) -> list[str]:
    from transformers.models.deprecated.transfo_xl import tokenization_transfo_xl

    return tokenization_transfo_xl.tokenize_numbers(words)


def joined_numbers(words: list[str]) -> str:
    from transformers.models.deprecated.transfo_xl import tokenization_transfo_xl

    return tokenization_transfo_xl.detokenize_numbers(" ".join(transformers_numbers(words)))


def write(name: str, content: dict[str, Any]) -> None:
    text = json.dumps(content, ensure_ascii=True, indent=None, separators=(",", ":"))
    HERE.joinpath(name).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
