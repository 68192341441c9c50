"""The sizes that are measured: geometries of an XLNet, batches, and attention shapes."""

from __future__ import annotations

from dataclasses import dataclass

from .rel_attention import FORWARD

TRAINING_STEP = "training_step"


@dataclass(frozen=True)
class Geometry:
    """The sizes of an XLNet."""

    name: str
    n_layer: int
    d_model: int
    n_head: int
    d_inner: int
    vocab_size: int = 32000

    @property
    def work(self) -> int:
        """Weights of all layers: what the time of short inputs goes with."""
        return self.n_layer * self.d_model * (5 * self.d_model + 2 * self.d_inner)


BASE = Geometry("xlnet-base", 12, 768, 12, 3072)
BASE_2 = Geometry("xlnet-base, 2 layers", 2, 768, 12, 3072)
BASE_4 = Geometry("xlnet-base, 4 layers", 4, 768, 12, 3072)
LARGE = Geometry("xlnet-large", 24, 1024, 16, 4096)
TINY = Geometry("tiny", 4, 256, 4, 1024, 8000)


@dataclass(frozen=True)
class ModelShape:
    """A batch of sequences, the passes to time on it, and the model's size (None: the preset's)."""

    batch: int
    length: int
    passes: tuple[str, ...] = (FORWARD,)
    geometry: Geometry | None = None


@dataclass(frozen=True)
class PretrainingShape:
    """A batch of a pretraining step, by default that of the paper, and the model's size.

    length: tokens of a sequence. reuse_len: those that its memory keeps. targets: those that are
    predicted. memory: tokens of the memory that the step gets.
    """

    geometry: Geometry
    batch: int
    length: int = 512
    reuse_len: int = 256
    targets: int = 85
    memory: int = 384


@dataclass(frozen=True)
class GenerationShape:
    """A batch of prompts to go on from, and the model's size.

    prompt: tokens of each. new: tokens to write. without_memory: also time the models that read all
    again for each token, which takes many times as long. memory: also measure the peak memory.
    """

    geometry: Geometry
    batch: int
    prompt: int
    new: int
    without_memory: bool = False
    memory: bool = False


@dataclass(frozen=True)
class SpeechShape:
    """A batch of audio for a speech encoder, by its name in `cases/speech.py`.

    attention: the attention of one layer alone. compiled: also compile both encoders, which takes a
    minute. memory: also measure the peak memory.
    """

    model: str
    seconds: float
    batch: int = 1
    attention: bool = False
    compiled: bool = False
    memory: bool = False


@dataclass(frozen=True)
class AttentionShape:
    """Sizes and features of an attention case, and the passes to time on it."""

    batch: int
    queries: int
    memory: int = 0
    heads: int = 12
    passes: tuple[str, ...] = (FORWARD,)
    padding: bool = True
    segments: bool = True
    dropout: float = 0.0
    head_dim: int = 64
