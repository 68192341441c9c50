"""The families that ``accelerate`` knows, and which of them are in a model.

A family's own module is imported when a model has one of its classes, so that nothing of
transformers is loaded that the model does not use.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module

from torch import nn

from xlnet_fast.hf.families.family import Family
from xlnet_fast.hf.families.kept import Kept
from xlnet_fast.hf.versions import why_no_speech


@dataclass(frozen=True)
class Entry:
    """How a family is found.

    Attributes:
        name: of our module in this folder, which has the family as ``FAMILY``.
        takes: what it takes, for users.
        module: of transformers, that defines its classes.
        classes: their names, where they are of another package, of whatever module.
    """

    name: str
    takes: str
    module: str = ""
    classes: tuple[str, ...] = ()

    def is_of(self, cls: type) -> bool:
        """Whether a class is of this family."""
        if self.module:
            return cls.__module__ == self.module
        return cls.__name__ in self.classes and not cls.__module__.startswith("transformers.")

    def family(self) -> Family:
        """The family; imports its module, unless this version of transformers is too old for it."""
        why = why_no_speech() if self.module and self.name != "xlnet" else None
        if why is not None:
            return Kept(self.takes, why)
        found: Family = import_module(f"{__name__}.{self.name}").FAMILY
        return found


def _modeling(name: str) -> str:
    return f"transformers.models.{name}.modeling_{name}"


ENTRIES = (
    Entry("xlnet", "XLNet (XLNetModel, XLNetLMHeadModel, XLNetFor...)", _modeling("xlnet")),
    Entry(
        "parakeet",
        "Parakeet (ParakeetEncoder, ParakeetForCTC, ParakeetForTDT, ParakeetForRNNT, and what "
        "contains its encoder: Canary, CohereAsr, NemotronHOmni)",
        _modeling("parakeet"),
    ),
    Entry(
        "nemotron",
        "Nemotron streaming (NemotronAsrStreamingEncoder, NemotronAsrStreamingForRNNT, and "
        "Nemotron 3.5 ASR, which contains it)",
        _modeling("nemotron_asr_streaming"),
    ),
    Entry("wav2vec2_bert", "Wav2Vec2-BERT", _modeling("wav2vec2_bert")),
    Entry("wav2vec2_conformer", "Wav2Vec2-Conformer", _modeling("wav2vec2_conformer")),
    Entry("seamless_m4t", "SeamlessM4T (its speech encoder)", _modeling("seamless_m4t")),
    Entry("seamless_m4t_v2", "SeamlessM4T v2 (its speech encoder)", _modeling("seamless_m4t_v2")),
    Entry("fastspeech2_conformer", "FastSpeech2-Conformer", _modeling("fastspeech2_conformer")),
    Entry("speecht5", "SpeechT5 (its encoder)", _modeling("speecht5")),
    Entry("granite_speech", "Granite speech (its encoder)", _modeling("granite_speech")),
    Entry("granite_speech_plus", "Granite speech plus", _modeling("granite_speech_plus")),
    Entry("granite_speech5", "Granite speech 5", _modeling("granite_speech5")),
    Entry("xlm", "XLM (XLMModel, XLMWithLMHeadModel, XLMFor...)", _modeling("xlm")),
    Entry(
        "flaubert",
        "Flaubert (FlaubertModel, FlaubertWithLMHeadModel, FlaubertFor...)",
        _modeling("flaubert"),
    ),
    Entry(
        "toolkits.nemo",
        "NeMo's RelPositionMultiHeadAttention",
        classes=("RelPositionMultiHeadAttention",),
    ),
    Entry(
        "toolkits.espnet",
        "ESPnet's RelPositionMultiHeadedAttention",
        classes=("RelPositionMultiHeadedAttention",),
    ),
    Entry("toolkits.speechbrain", "SpeechBrain's RelPosMHAXL", classes=("RelPosMHAXL",)),
)


def families_in(model: nn.Module) -> list[Family]:
    """The families of a model's modules, in the order of the table above."""
    classes = {cls for module in model.modules() for cls in type(module).__mro__}
    entries = [entry for entry in ENTRIES if any(map(entry.is_of, classes))]
    return [family for entry in entries if (family := entry.family()).is_in(model)]
