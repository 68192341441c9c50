"""What the architectures of ``pretrain`` have to say; the run itself is the same for all."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from xlnet_fast.errors import ArgumentError
from xlnet_fast.train.pretraining.corpus import Corpus, TextVocabulary
from xlnet_fast.train.pretraining.memory_trainer import MemoryTrainer
from xlnet_fast.train.pretraining.options import PretrainOptions
from xlnet_fast.train.pretraining.sources import OpenSource, train_on
from xlnet_fast.train.pretraining.text_streams import TextStreams
from xlnet_fast.train.shared.tokenizers import load_run_tokenizer, load_tokenizer


class Architecture(ABC):
    """What a run asks of the architecture that it trains.

    Attributes:
        options: of the run.
        trainer: class of its trainer. layer: name of the layers that FSDP shards one by one.
        directions: 2 where half of the rows read backwards, else 1.
        mem_len: tokens of memory.
    """

    trainer: type[MemoryTrainer]
    layer: str
    directions = 1
    mem_len: int

    def __init__(self, options: PretrainOptions) -> None:
        self.options = options

    def tokenizer(self, source: OpenSource) -> Any:
        """That of the options, else one that is trained on the text.

        Raises:
            ArgumentError: it cannot be read, is of another kind, or the text is too short for one.
        """
        if self.options.tokenizer or self.options.model:
            return load_run_tokenizer(self.options.tokenizer, self.options.model, self.load)
        return train_on(source, self.options.vocab_size)

    def load(self, name: str) -> Any:
        """The tokenizer of a folder, a file or the Hub."""
        return load_tokenizer(name)

    def saved_tokenizer(self, tokenizer: Any) -> Any:
        """What goes beside the model."""
        return tokenizer

    @abstractmethod
    def vocabulary(self, tokenizer: Any) -> TextVocabulary:
        """What the data needs to know of a tokenizer."""

    @abstractmethod
    def model(self, tokenizer: Any, vocabulary: TextVocabulary) -> Any:
        """A new or a loaded model, set up for memory.

        Raises:
            ArgumentError: sizes that do not fit each other, or a checkpoint that cannot be used.
        """

    @abstractmethod
    def streams(
        self, text: Corpus, vocabulary: Any, rows: int, processes: int, *, evaluation: bool
    ) -> TextStreams:
        """The data of a text; that of an evaluation stands in one order."""


def sizes_of(options: PretrainOptions, sizes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Width, layers, heads and inner width of a new model, by their names in a config."""
    names = ("d_model", "n_layer", "n_head", "d_inner")
    return {
        name: getattr(options, name) or size
        for name, size in zip(names, sizes[options.size], strict=True)
    }


def check_heads(d_model: int, n_head: int, instead: str = "") -> None:
    """Check that heads share a width alike.

    Raises:
        ArgumentError: they do not.
    """
    if d_model % n_head:
        raise ArgumentError(
            f"d_model is {d_model} and n_head {n_head}; expected a multiple{instead}"
        )
