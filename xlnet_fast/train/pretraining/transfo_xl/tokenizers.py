"""What running text needs to know of a tokenizer, and what is saved beside a model."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast, XLNetTokenizer

from xlnet_fast.errors import ArgumentError
from xlnet_fast.models.transfo_xl.tokenization import TransfoXLTokenizer
from xlnet_fast.train.pretraining.corpus import TextVocabulary

_END = "<eod>"  # of a document, in XLNet's vocabularies


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
