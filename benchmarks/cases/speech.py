"""Speech encoders with random weights, at the sizes of published checkpoints, and their frames.

A new family is one entry of `MODELS`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from .model import round_weights
from .rel_attention import DTYPES

LAYERS = 2  # of an encoder, which stand for all
_SPREAD = 0.04  # of the noise on all weights: scores differ from key to key, no bias is zero
_REAL = (1.0, 0.85, 0.7, 0.55)  # shares of the frames of each element that are no padding


@dataclass(frozen=True)
class SpeechModel:
    """An encoder, and how it is called on frames.

    Attributes:
        name: for readers. checkpoint: whose sizes it has.
        module: of `transformers.models`. architecture: the class that is made.
        layers: what its config calls their number. options: of the config, beside its defaults.
        part: the attribute of what is made that takes frames; "" for all of it.
        width: of a frame as it comes in. frames_per_s: of audio.
        heads, head_dim: of its attention.
        subsampled: mel frames for one frame, where a module `subsampling` makes frames of them. It
            is passed over: beside two layers it would weigh twelve times what it does in a model.
        block: frames that attend to each other alone; 0 for all.
        has_distances: whether Hugging Face makes a tensor of (T, T, head_dim).
        padded: whether it takes a mask of padding. call: what else it is called with.
    """

    name: str
    checkpoint: str
    module: str
    architecture: str
    layers: str
    width: int
    frames_per_s: float
    heads: int = 16
    head_dim: int = 64
    options: Mapping[str, Any] = field(default_factory=dict)
    part: str = ""
    subsampled: int = 1
    block: int = 0
    has_distances: bool = False
    padded: bool = True
    call: Mapping[str, Any] = field(default_factory=dict)


# Frames of 32 times the size would hide what the layers add to them.
_UNSCALED = {"scale_input": False}
_LARGE = {
    "hidden_size": 1024, "num_attention_heads": 16, "intermediate_size": 4096,
    "hidden_act": "swish",
}  # fmt: skip
_ALL = (
    SpeechModel(
        "Parakeet", "nvidia/parakeet-ctc-1.1b", "parakeet", "ParakeetEncoder",
        "num_hidden_layers", 1024, 12.5, 8, 128, _UNSCALED, subsampled=8,
    ),
    SpeechModel(
        "Nemotron streaming", "nvidia/nemotron-speech-streaming-en-0.6b", "nemotron_asr_streaming",
        "NemotronAsrStreamingEncoder", "num_hidden_layers", 1024, 12.5, 8, 128, _UNSCALED,
        subsampled=8, call={"num_lookahead_tokens": 13},
    ),
    SpeechModel(
        "Wav2Vec2-BERT", "facebook/w2v-bert-2.0", "wav2vec2_bert", "Wav2Vec2BertModel",
        "num_hidden_layers", 160, 50, has_distances=True,
    ),
    SpeechModel(
        "SeamlessM4T", "facebook/hf-seamless-m4t-large", "seamless_m4t", "SeamlessM4TSpeechEncoder",
        "speech_encoder_layers", 1024, 50, part="encoder",
    ),
    SpeechModel(
        "SeamlessM4T v2", "facebook/seamless-m4t-v2-large", "seamless_m4t_v2",
        "SeamlessM4Tv2SpeechEncoder", "speech_encoder_layers", 1024, 50, part="encoder",
        has_distances=True,
    ),
    SpeechModel(
        "Wav2Vec2-Conformer", "facebook/wav2vec2-conformer-rel-pos-large", "wav2vec2_conformer",
        "Wav2Vec2ConformerModel", "num_hidden_layers", 1024, 50, options=_LARGE, part="encoder",
    ),
    SpeechModel(
        "Granite speech", "ibm-granite/granite-speech-3.3-8b", "granite_speech",
        "GraniteSpeechCTCEncoder", "num_layers", 160, 50, 8, 128, {"output_dim": 256},
        block=200, padded=False,
    ),
    SpeechModel(
        "SpeechT5", "microsoft/speecht5_asr", "speecht5", "SpeechT5Encoder", "encoder_layers",
        768, 50, heads=12, has_distances=True,
    ),
)  # fmt: skip
MODELS = {model.name: model for model in _ALL}


@dataclass(frozen=True)
class SpeechCase:
    """A batch of audio of so many seconds, the dtype, and whether attention stands alone."""

    seconds: float
    batch: int
    dtype: str
    attention: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")
        if self.batch < 1 or self.seconds <= 0:
            raise ValueError(
                f"batch must be >= 1 and seconds > 0, got {self.batch} and {self.seconds}"
            )

    def frames(self, model: SpeechModel) -> int:
        """How many frames a model makes of it."""
        return max(1, round(self.seconds * model.frames_per_s))


class _Frames(nn.Module):
    """In the place of a subsampling: what comes in are frames."""

    def forward(self, frames: Tensor, *arguments: Any, **options: Any) -> Tensor:
        """A copy: Hugging Face scales it in place."""
        return frames.clone()


def make_encoder(model: SpeechModel, layers: int = LAYERS) -> nn.Module:
    """Return Hugging Face's encoder in fp32 with random weights that bf16 represents exactly.

    So the bf16, fp32 and float64 encoders are the same function. Attention is "sdpa" where
    Hugging Face has it.
    """
    module = import_module(f"transformers.models.{model.module}.modeling_{model.module}")
    architecture = getattr(module, model.architecture)
    config = architecture.config_class(**{model.layers: layers}, **model.options)
    kind = "sdpa" if architecture._supports_sdpa else "eager"
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        encoder: nn.Module = architecture._from_config(config, attn_implementation=kind)
        encoder = getattr(encoder, model.part) if model.part else encoder
        if model.subsampled > 1:
            encoder.subsampling = _Frames()
        for parameter in encoder.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=_SPREAD)
    return round_weights(encoder)


def as_loaded(encoder: nn.Module, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """Return a copy in another dtype, as `from_pretrained(dtype=...)` makes it.

    Buffers that no file holds (frequencies of the positions) stay in fp32, as they do there.
    """
    kept = {
        (name, key): buffer
        for name, module in encoder.named_modules()
        for key, buffer in module.named_buffers(recurse=False)
        if key in module._non_persistent_buffers_set
    }
    made = copy.deepcopy(encoder).to(device=device, dtype=dtype)
    for (name, key), buffer in kept.items():
        made.get_submodule(name)._buffers[key] = buffer.detach().clone().to(device)
    return made


def real_frames(model: SpeechModel, case: SpeechCase) -> Tensor:
    """Return (B, T) bool, False for padding: of a batch, all but the first element have some."""
    count = case.frames(model)
    if not model.padded:
        return torch.ones(case.batch, count, dtype=torch.bool)
    shares = [_REAL[number % len(_REAL)] for number in range(case.batch)]
    lengths = torch.tensor([max(1, round(count * share)) for share in shares])
    return torch.arange(count) < lengths[:, None]


def random_frames(batch: int, count: int, width: int) -> Tensor:
    """Return (B, T, width) fp32 of deviation 1, which bf16 represents exactly."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, count, width, generator=generator).bfloat16().float()


def mask_of(model: SpeechModel, real: Tensor) -> Tensor | None:
    """Return the mask that an encoder takes for (B, T) real frames, None where all are."""
    if bool(real.all()):
        return None
    lengths = real.sum(1, keepdim=True) * model.subsampled
    return torch.arange(real.shape[1] * model.subsampled, device=real.device) < lengths


def needed_bytes(model: SpeechModel, case: SpeechCase) -> float:
    """Return about what Hugging Face's attention of one element takes in float64.

    About five tensors of scores at once, and one of (T, T, head_dim) in some.
    """
    count = case.frames(model)
    keys = min(model.block or count, count)
    numbers = 5 * model.heads * count * keys
    if model.has_distances:
        numbers += model.head_dim * keys * keys
    return 8.0 * numbers
