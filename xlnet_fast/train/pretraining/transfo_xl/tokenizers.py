"""Tokenizers for running text: of XLNet's kind, of any kind, and Transformer-XL's words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerFast, XLNetTokenizer

from xlnet_fast.checkpoint import first_line, looks_like_path, ready_to_fetch
from xlnet_fast.errors import ArgumentError
from xlnet_fast.models.transfo_xl.tokenization import TransfoXLTokenizer
from xlnet_fast.text import MODEL_FILE
from xlnet_fast.train.pretraining.corpus import TextVocabulary
from xlnet_fast.train.shared.tokenizers import load_tokenizer

_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "vocab.bin")
_END = "<eod>"  # of a document, in XLNet's vocabularies


def load_text_tokenizer(name: str) -> Any:
    """A tokenizer of transformers, such as encodes running text.

    Args:
        name: a folder, a SentencePiece ``.model`` file, or a Hub id.

    Raises:
        ArgumentError: there is none, or it cannot be read.
    """
    path = Path(name).expanduser()
    if path.is_file() or (path / MODEL_FILE).is_file():
        return load_tokenizer(name)
    if not path.exists() and looks_like_path(name):
        raise ArgumentError(f"the tokenizer {name} does not exist")
    source = {} if path.exists() else ready_to_fetch(name, _FILES)
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(path) if path.is_dir() else name, **source)
    except Exception as error:  # of the tokenizers library, the Hub client and transformers
        raise ArgumentError(f"no tokenizer can be read from {name}: {first_line(error)}") from error
    return load_tokenizer(name) if isinstance(tokenizer, XLNetTokenizer) else tokenizer


def text_vocabulary(tokenizer: Any) -> TextVocabulary:
    """What running text needs to know of a tokenizer.

    <eod> ends a document, or else the tokenizer's ``eos_token``. In a vocabulary of words that
    token ends every line, as the original has it.

    Raises:
        ArgumentError: it has neither.
    """
    eod = tokenizer.get_vocab().get(_END, tokenizer.eos_token_id)
    if eod is None:
        raise ArgumentError(
            f"the tokenizer has neither {_END} nor an end of text (eos_token), expected one of "
            "them behind each document"
        )
    unk = tokenizer.unk_token_id
    return TextVocabulary(
        len(tokenizer),
        eod=eod,
        unk=eod if unk is None else unk,  # without one every text has pieces
        line_ends=isinstance(tokenizer, TransfoXLTokenizer),
    )


def without_segments(tokenizer: Any) -> Any:
    """A tokenizer of XLNet as a causal model wants it; any other as it is.

    The pieces are the same. A text has no <sep> and <cls> behind it and no segments, which the
    model does not know; <eod> is the end of a text, and what another begins behind.
    """
    if not isinstance(tokenizer, XLNetTokenizer):
        return tokenizer
    pieces = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    pieces.post_processor = TemplateProcessing(single="$A", pair="$A $B")
    return PreTrainedTokenizerFast(
        tokenizer_object=pieces,
        bos_token=_END,
        eos_token=_END,
        unk_token="<unk>",
        pad_token="<pad>",
        cls_token="<cls>",
        sep_token="<sep>",
        mask_token="<mask>",
        additional_special_tokens=["<s>", "</s>", "<eop>"],
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
    )
