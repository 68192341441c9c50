"""Tiny models of Parakeet and Nemotron: encoders of width 32, and their heads."""

from __future__ import annotations

from typing import Any

import torch
from family_parity import Case, frames_mask, random_frames, randomized
from torch import Tensor
from transformers import (
    NemotronAsrStreamingEncoder,
    NemotronAsrStreamingEncoderConfig,
    ParakeetCTCConfig,
    ParakeetEncoder,
    ParakeetEncoderConfig,
    ParakeetForCTC,
    ParakeetForRNNT,
    ParakeetForTDT,
    ParakeetRNNTConfig,
    ParakeetTDTConfig,
)
from transformers.models.nemotron_asr_streaming.modeling_nemotron_asr_streaming import (
    NemotronAsrStreamingEncoderAttention,
    NemotronAsrStreamingEncoderConvolutionModule,
    NemotronAsrStreamingEncoderFeedForward,
    NemotronAsrStreamingEncoderRelPositionalEncoding,
)
from transformers.models.parakeet.modeling_parakeet import (
    ParakeetEncoderAttention,
    ParakeetEncoderConvolutionModule,
    ParakeetEncoderFeedForward,
    ParakeetEncoderRelPositionalEncoding,
)

MELS = 16
LAYERS = 2
ENCODER = {
    "hidden_size": 32, "num_hidden_layers": LAYERS, "num_attention_heads": 4,
    "num_key_value_heads": 4, "intermediate_size": 48, "num_mel_bins": MELS,
    "subsampling_conv_channels": 8, "dropout": 0.0, "dropout_positions": 0.0, "layerdrop": 0.0,
    "activation_dropout": 0.0, "attention_dropout": 0.0,
}  # fmt: skip
VOCABULARY = 12


def parakeet(
    implementation: str = "sdpa", dtype: torch.dtype = torch.float32, **config: Any
) -> Any:
    """A ``ParakeetEncoder``."""
    values = ParakeetEncoderConfig(**{**ENCODER, **config})
    return randomized(
        ParakeetEncoder._from_config(values, attn_implementation=implementation), dtype
    )


def ctc(**config: Any) -> Any:
    """A ``ParakeetForCTC``."""
    encoder = ParakeetEncoderConfig(**{**ENCODER, **config})
    return randomized(
        ParakeetForCTC(
            ParakeetCTCConfig(encoder_config=encoder, vocab_size=VOCABULARY, pad_token_id=0)
        ),
        scale=0.8,
    )


def transducer(kind: str) -> Any:
    """A ``ParakeetForTDT`` or ``ParakeetForRNNT``."""
    cls, config = {
        "tdt": (ParakeetForTDT, ParakeetTDTConfig),
        "rnnt": (ParakeetForRNNT, ParakeetRNNTConfig),
    }[kind]
    values = config(
        encoder_config=ParakeetEncoderConfig(**ENCODER), vocab_size=VOCABULARY,
        decoder_hidden_size=16, num_decoder_layers=1, blank_token_id=VOCABULARY - 1,
        pad_token_id=2, max_symbols_per_step=3,
    )  # fmt: skip
    model = randomized(cls(values), scale=0.8)
    with torch.no_grad():
        model.joint.head.bias[VOCABULARY - 1] -= 4  # or all it says is blank
    model.generation_config.decoder_start_token_id = VOCABULARY - 1
    if kind == "tdt":  # as its checkpoints: durations are no tokens
        model.generation_config.suppress_tokens = list(range(VOCABULARY, VOCABULARY + 5))
    return model


def nemotron(implementation: str = "sdpa", left: int = 8, lookahead: int = 3, **config: Any) -> Any:
    """A ``NemotronAsrStreamingEncoder`` that sees so many frames to either side, in chunks."""
    values = {**ENCODER, "sliding_window": left + 1, "default_num_lookahead_tokens": lookahead}
    built = NemotronAsrStreamingEncoderConfig(**{**values, **config})
    return randomized(
        NemotronAsrStreamingEncoder._from_config(built, attn_implementation=implementation)
    )


def sounds(frames: int, batch: int = 2, padded: bool = True, seed: int = 0) -> dict[str, Tensor]:
    """Features and mask of sounds that become so many frames; the second lacks a third of them."""
    features = random_frames(batch, 8 * frames, MELS, seed)
    mask = frames_mask(batch, 8 * frames, padded=False).bool()
    if padded:
        mask[1:, 8 * (frames - frames // 3) :] = False
    return {"input_features": features, "attention_mask": mask}


def several_sounds(
    frames: int, padded: bool = True, *, seeds: int = 8, **options: Any
) -> list[dict[str, Any]]:
    """Inputs of several seeds, a batch of three each; ``options`` are of the encoder's forward."""
    return [sounds(frames, 3, padded, seed) | options for seed in range(seeds)]


def _frames_of(given: dict[str, Any], halved: Any) -> tuple[Tensor]:
    """(B, T) masks of the frames of sounds, which three convolutions halve."""
    lengths = given["attention_mask"].sum(1, keepdim=True)
    for _ in range(3):
        lengths = halved(lengths)
    return (torch.arange(int(lengths.max())) < lengths,)


PARAKEET = Case(
    parakeet,
    lambda batch, length, padded, seed: sounds(length, batch, padded, seed),
    lambda given: _frames_of(given, lambda n: (n + 1) // 2),
    ParakeetEncoderAttention,
    {
        ParakeetEncoderAttention: LAYERS,
        ParakeetEncoderConvolutionModule: LAYERS,
        ParakeetEncoderFeedForward: 2 * LAYERS,
        ParakeetEncoderRelPositionalEncoding: 1,
    },
)
NEMOTRON = Case(
    nemotron,
    lambda batch, length, padded, seed: sounds(length, batch, padded, seed),
    lambda given: _frames_of(given, lambda n: n // 2 + 1),
    NemotronAsrStreamingEncoderAttention,
    {
        NemotronAsrStreamingEncoderAttention: LAYERS,
        NemotronAsrStreamingEncoderConvolutionModule: LAYERS,
        NemotronAsrStreamingEncoderFeedForward: 2 * LAYERS,
        NemotronAsrStreamingEncoderRelPositionalEncoding: 1,
    },
    implementations=("sdpa",),
)
