"""``pretrain --arch xlnet``: the permutation objective, its model and its data."""

from __future__ import annotations

from typing import Any

import torch
from transformers import XLNetConfig, XLNetLMHeadModel

from xlnet_fast.checkpoint import load_config, load_weights
from xlnet_fast.hf import accelerate
from xlnet_fast.train.pretraining.architecture import Architecture, check_heads, sizes_of
from xlnet_fast.train.pretraining.corpus import Corpus, TextVocabulary, Vocabulary
from xlnet_fast.train.pretraining.options import SIZES, PretrainOptions
from xlnet_fast.train.pretraining.permutation import SpanSampling
from xlnet_fast.train.pretraining.streams import PermutationStreams, SequenceShape
from xlnet_fast.train.pretraining.trainer import PretrainingTrainer
from xlnet_fast.train.shared.tokenizers import check_vocabulary


class XLNetPretraining(Architecture):
    """Pretraining of an ``XLNetLMHeadModel`` by permutation language modelling."""

    trainer = PretrainingTrainer
    layer = "XLNetLayer"

    def __init__(self, options: PretrainOptions) -> None:
        super().__init__(options)
        self.directions = 2 if options.bi_data else 1
        self.mem_len = options.seq_len * 3 // 4 if options.mem_len is None else options.mem_len

    def vocabulary(self, tokenizer: Any) -> Vocabulary:
        """With the pieces that begin words, <sep> and <cls>."""
        return Vocabulary.of(tokenizer)

    def model(self, tokenizer: Any, vocabulary: TextVocabulary) -> Any:
        """Accelerated unless told otherwise."""
        options = self.options
        if options.model is None:
            sizes = sizes_of(options, SIZES)
            check_heads(sizes["d_model"], sizes["n_head"])
            dropout = 0.1 if options.dropout is None else options.dropout
            # As in the published configs: who uses the model says how much memory it keeps.
            config = XLNetConfig(vocab_size=vocabulary.size, dropout=dropout, mem_len=None, **sizes)
            model: Any = XLNetLMHeadModel(config)
        else:
            load_config(options.model)
            model = load_weights(options.model, "XLNetLMHeadModel")
            check_vocabulary(tokenizer, model.config.vocab_size, options.model)
            if options.dropout is not None:
                model.config.dropout = options.dropout
                for module in model.modules():
                    if isinstance(module, torch.nn.Dropout):
                        module.p = options.dropout
        if options.accelerate:
            accelerate(model, options.backend)
        # Attributes, not the config: a saved config with these would make inference carry memory,
        # and refuse odd batches.
        transformer = model.transformer
        transformer.mem_len = self.mem_len
        transformer.reuse_len = self._shape().reuse_len
        transformer.bi_data = options.bi_data
        return model

    def streams(
        self, text: Corpus, vocabulary: Any, rows: int, processes: int, *, evaluation: bool
    ) -> PermutationStreams:
        """Documents are shuffled in every epoch of the training."""
        return PermutationStreams(
            text,
            vocabulary,
            self._shape(),
            rows,
            processes=processes,
            seed=self.options.seed,
            shuffle=not evaluation,
        )

    def _shape(self) -> SequenceShape:
        options = self.options
        reuse_len = options.seq_len // 2 if options.reuse_len is None else options.reuse_len
        shorter = min(reuse_len, options.seq_len - reuse_len)
        return SequenceShape(
            seq_len=options.seq_len,
            reuse_len=reuse_len,
            perm_size=shorter if options.perm_size is None else options.perm_size,
            num_predict=max(1, options.seq_len // 6)
            if options.num_predict is None
            else options.num_predict,
            bi_data=options.bi_data,
            spans=SpanSampling(
                options.mask_alpha, options.mask_beta, options.max_span, options.whole_words
            ),
        )
