"""``pretrain --arch transfo-xl``: its model and its data."""

from __future__ import annotations

from typing import Any

from xlnet_fast.checkpoint import load_config, load_weights
from xlnet_fast.errors import ArgumentError
from xlnet_fast.models.transfo_xl import TransfoXLConfig, TransfoXLLMHeadModel
from xlnet_fast.models.transfo_xl.configuration import check_memory
from xlnet_fast.ops._dispatch import check_backend
from xlnet_fast.train.pretraining.architecture import Architecture, check_heads, sizes_of
from xlnet_fast.train.pretraining.corpus import Corpus, TextVocabulary
from xlnet_fast.train.pretraining.options import PretrainOptions
from xlnet_fast.train.pretraining.transfo_xl.options import SIZES, parse_cutoffs
from xlnet_fast.train.pretraining.transfo_xl.streams import SegmentStreams
from xlnet_fast.train.pretraining.transfo_xl.tokenizers import text_vocabulary, without_segments
from xlnet_fast.train.pretraining.transfo_xl.trainer import SegmentTrainer
from xlnet_fast.train.shared.text_tokenizers import load_text_tokenizer
from xlnet_fast.train.shared.tokenizers import check_vocabulary

# Up to so many ids one softmax over all of them will do.
_WITHOUT_CLUSTERS = 50_000
_CUTOFFS = (20_000, 40_000, 200_000)  # the original's for WikiText-103
# Of a new model: as the original trains, not as Hugging Face's config evaluates.
_TRAINED_WITH = {
    "dropout": 0.1, "dropatt": 0.0, "clamp_len": 0, "same_length": False, "initial_memory": "empty",
}  # fmt: skip


class TransfoXLPretraining(Architecture):
    """Pretraining of a ``TransfoXLLMHeadModel`` on running text."""

    trainer = SegmentTrainer
    layer = "RelPartialLearnableDecoderLayer"

    def __init__(self, options: PretrainOptions) -> None:
        super().__init__(options)
        self.mem_len = options.seq_len if options.mem_len is None else options.mem_len

    def load(self, name: str) -> Any:
        """That of any kind."""
        return load_text_tokenizer(name)

    def saved_tokenizer(self, tokenizer: Any) -> Any:
        """Without XLNet's <sep>, <cls> and segments."""
        return without_segments(tokenizer)

    def vocabulary(self, tokenizer: Any) -> TextVocabulary:
        """With the token that ends documents, or lines."""
        return text_vocabulary(tokenizer)

    def model(self, tokenizer: Any, vocabulary: TextVocabulary) -> Any:
        """Its config says with what memory and masks it was trained."""
        check_backend(self.options.backend)
        given = {name: getattr(self.options, name) for name in _TRAINED_WITH}
        given = {name: value for name, value in given.items() if value is not None}
        given["mem_len"] = self.mem_len
        if self.options.model is None:
            saved = self.saved_tokenizer(tokenizer)
            given |= {"bos_token_id": saved.bos_token_id, "pad_token_id": saved.pad_token_id}
            config = self._new_config(vocabulary, {**_TRAINED_WITH, **given})
            model: Any = TransfoXLLMHeadModel(config)
        else:
            config = _config_of(self.options.model, given)
            check_vocabulary(tokenizer, config.vocab_size, self.options.model)
            model = load_weights(self.options.model, "TransfoXLLMHeadModel", config)
        model.transformer.backend = self.options.backend
        if self.options.fsdp:
            # accelerate shards embeddings apart, and knows of those alone that have one weight
            # that they are tied: these would be sharded twice.
            model.get_input_embeddings = model.get_output_embeddings = lambda: None
        return model

    def _new_config(self, vocabulary: TextVocabulary, others: dict[str, Any]) -> TransfoXLConfig:
        options = self.options
        sizes = sizes_of(options, SIZES)
        if options.d_head is None:
            check_heads(sizes["d_model"], sizes["n_head"], ", or d_head")
        return TransfoXLConfig(
            vocab_size=vocabulary.size,
            cutoffs=self._cutoffs(vocabulary.size),
            d_head=options.d_head or sizes["d_model"] // sizes["n_head"],
            d_embed=options.d_embed or sizes["d_model"],
            div_val=options.div_val or 1,
            eos_token_id=vocabulary.eod,
            **sizes,
            **others,
        )

    def _cutoffs(self, size: int) -> tuple[int, ...]:
        """Those given, else those of WikiText-103 where the vocabulary is large."""
        if self.options.cutoffs is not None:
            return parse_cutoffs(self.options.cutoffs)
        known = () if size <= _WITHOUT_CLUSTERS else _CUTOFFS
        return tuple(cutoff for cutoff in known if cutoff < size)

    def streams(
        self, text: Corpus, vocabulary: Any, rows: int, processes: int, *, evaluation: bool
    ) -> SegmentStreams:
        """In the order of the text, unless the options say otherwise."""
        return SegmentStreams(
            text,
            vocabulary,
            self.options.seq_len,
            rows,
            processes=processes,
            seed=self.options.seed,
            shuffle=self.options.shuffle and not evaluation,
        )


def _config_of(name: str, trained_with: dict[str, Any]) -> TransfoXLConfig:
    """That of a checkpoint, with what a run changes of it.

    Raises:
        ArgumentError: it cannot be read, is of another model, or does not fit the changes.
    """
    config = load_config(name, only_xlnet=False)
    if not isinstance(config, TransfoXLConfig):
        raise ArgumentError(f"{name} is a {config.model_type} model, expected a Transformer-XL")
    for option, value in trained_with.items():
        setattr(config, option, value)
    config.check()
    check_memory(config.mem_len, config.same_length)
    return config
