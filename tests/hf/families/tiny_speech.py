"""Tiny models of the speech families, by name: what all of them are tested with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from family_parity import Case, Valid, frames_mask, random_frames, randomized
from torch import nn
from transformers import (
    FastSpeech2ConformerConfig,
    GraniteSpeech5Encoder,
    GraniteSpeech5EncoderConfig,
    GraniteSpeechCTCEncoder,
    GraniteSpeechEncoderConfig,
    GraniteSpeechPlusEncoderConfig,
    SeamlessM4TConfig,
    SeamlessM4Tv2Config,
    SpeechT5Config,
    SpeechT5ForSpeechToText,
    Wav2Vec2BertConfig,
    Wav2Vec2BertModel,
    Wav2Vec2ConformerConfig,
    Wav2Vec2ConformerModel,
)
from transformers.models.fastspeech2_conformer import modeling_fastspeech2_conformer as fastspeech2
from transformers.models.granite_speech import modeling_granite_speech as granite
from transformers.models.granite_speech5 import modeling_granite_speech5 as granite5
from transformers.models.granite_speech_plus import modeling_granite_speech_plus as granite_plus
from transformers.models.seamless_m4t import modeling_seamless_m4t as seamless
from transformers.models.seamless_m4t_v2 import modeling_seamless_m4t_v2 as seamless2
from transformers.models.speecht5 import modeling_speecht5 as speecht5
from transformers.models.wav2vec2_bert import modeling_wav2vec2_bert as bert
from transformers.models.wav2vec2_conformer import modeling_wav2vec2_conformer as conformer

FEATURES = 6
SIZES = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
UNDROPPED = {"layerdrop": 0.0, "mask_time_prob": 0.0, "mask_feature_prob": 0.0}
NO_DROPOUT = {
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "conformer_conv_dropout": 0.0,
    "final_dropout": 0.0,
}


def made(
    cls: Callable[[Any], nn.Module], config: Callable[..., Any], **values: Any
) -> Callable[..., Any]:
    """Makes a model, with an implementation of attention and more of its configuration."""
    first = values.pop("implementation", "sdpa")

    def make(implementation: str = first, **more: Any) -> Any:
        chosen = config(**{**values, **more})
        chosen._attn_implementation = implementation
        return randomized(cls(chosen))

    return make


def features(batch: int, length: int, padded: bool, seed: int = 0) -> dict[str, Any]:
    """Of models that take features of frames and a mask of them."""
    inputs = {"input_features": random_frames(batch, length, FEATURES, seed)}
    return inputs | ({"attention_mask": frames_mask(batch, length)} if padded else {})


def of_mask(inputs: dict[str, Any]) -> Valid:
    """The frames are those of the mask."""
    mask = inputs.get("attention_mask")
    return () if mask is None else (mask.bool(),)


SAMPLES = 4
"""Of sound, for one frame of the models that take sound."""
SOUND = {
    "conv_dim": (8,),
    "conv_stride": (SAMPLES,),
    "conv_kernel": (SAMPLES,),
    "num_feat_extract_layers": 1,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "feat_extract_norm": "layer",
}


def sound(batch: int, length: int, padded: bool, seed: int = 0) -> dict[str, Any]:
    """Of models that take sound: ``SAMPLES`` for each of ``length`` frames."""
    inputs = {"input_values": random_frames(batch, length * SAMPLES, 1, seed)[..., 0]}
    if padded:
        mask = frames_mask(batch, length).repeat_interleave(SAMPLES, 1)
        inputs["attention_mask"] = mask
    return inputs


def of_sound(inputs: dict[str, Any]) -> Valid:
    mask = inputs.get("attention_mask")
    return () if mask is None else (mask[:, ::SAMPLES].bool(),)


# ---- Wav2Vec2-BERT ----

_BERT = {
    **SIZES,
    **UNDROPPED,
    **NO_DROPOUT,
    "num_hidden_layers": 2,
    "feature_projection_input_dim": FEATURES,
    "conv_depthwise_kernel_size": 3,
    "max_source_positions": 16,
    "left_max_position_embeddings": 4,
    "right_max_position_embeddings": 2,
}
_OF_BERT = {
    bert.Wav2Vec2BertSelfAttention: 2,
    bert.Wav2Vec2BertFeedForward: 4,
    bert.Wav2Vec2BertConvolutionModule: 2,
}


def bert_case(kind: str) -> Case:
    return Case(
        made(Wav2Vec2BertModel, Wav2Vec2BertConfig, **_BERT, position_embeddings_type=kind),
        features,
        of_mask,
        bert.Wav2Vec2BertSelfAttention,
        _OF_BERT,
    )


# ---- Wav2Vec2-Conformer ----

_CONFORMER = {
    **SIZES,
    **UNDROPPED,
    **NO_DROPOUT,
    **SOUND,
    "num_hidden_layers": 2,
    "conv_depthwise_kernel_size": 3,
    "max_source_positions": 16,
}

# ---- SeamlessM4T: its speech encoder, with the adapter ----

_SEAMLESS = {
    "hidden_size": 16,
    "speech_encoder_layers": 2,
    "speech_encoder_attention_heads": 2,
    "speech_encoder_intermediate_size": 24,
    "speech_encoder_layerdrop": 0.0,
    "feature_projection_input_dim": FEATURES,
    "conv_depthwise_kernel_size": 3,
    "adaptor_kernel_size": 4,
    "adaptor_stride": 4,
    "adaptor_dropout": 0.0,
}


def of_adapter(inputs: dict[str, Any]) -> Valid:
    """Of Seamless, whose adapter counts the frames that are left as HF does."""
    mask = inputs.get("attention_mask")
    if mask is None:
        return ()
    left = mask.sum(1) // 4 + 1
    rows = mask.shape[1] // 4 + 1
    return mask.bool(), torch.arange(rows) < left[:, None]


# ---- FastSpeech2-Conformer: one of its two encoders ----

_FASTSPEECH2 = {
    "hidden_size": 16,
    "vocab_size": 12,
    "encoder_layers": 2,
    "encoder_linear_units": 24,
    "encoder_kernel_size": 3,
    **{
        f"encoder_{name}_rate": 0.0
        for name in ("dropout", "positional_dropout", "attention_dropout")
    },
}


def fastspeech2_encoder(config: Any) -> nn.Module:
    encoder = fastspeech2.FastSpeech2ConformerEncoder(
        config, config.encoder_config, use_encoder_input_layer=True
    )
    return encoder


def text(batch: int, length: int, padded: bool, seed: int = 0) -> dict[str, Any]:
    ids = torch.randint(1, 12, (batch, length), generator=torch.Generator().manual_seed(seed))
    inputs: dict[str, Any] = {"input_tensor": ids, "return_dict": True}
    if padded:
        inputs["attention_mask"] = frames_mask(batch, length)[:, None]
    return inputs


def of_text(inputs: dict[str, Any]) -> Valid:
    mask = inputs.get("attention_mask")
    return () if mask is None else (mask[:, 0].bool(),)


# ---- SpeechT5 ----

_SPEECHT5 = {
    **SOUND,
    "vocab_size": 12,
    "hidden_size": 16,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "encoder_layerdrop": 0.0,
    "decoder_layers": 1,
    "decoder_attention_heads": 2,
    "decoder_ffn_dim": 24,
    "decoder_layerdrop": 0.0,
    "encoder_max_relative_position": 4,
    "positional_dropout": 0.0,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "mask_time_prob": 0.0,
}


def sound_and_text(batch: int, length: int, padded: bool, seed: int = 0) -> dict[str, Any]:
    ids = torch.randint(3, 12, (batch, 3), generator=torch.Generator().manual_seed(seed))
    return sound(batch, length, padded, seed) | {"decoder_input_ids": ids, "use_cache": False}


# ---- Granite speech: frames that are no multiple of a block ----

_GRANITE = {
    "input_dim": FEATURES,
    "num_layers": 2,
    "hidden_dim": 16,
    "num_heads": 2,
    "dim_head": 8,
    "output_dim": 5,
    "context_size": 4,
    "max_pos_emb": 6,
    "feedforward_mult": 2,
    "conv_kernel_size": 3,
    "dropout": 0.0,
}


def frames_alone(batch: int, length: int, padded: bool, seed: int = 0) -> dict[str, Any]:
    """Of Granite speech, which knows no padding: what is padded are zeros like any other."""
    frames = random_frames(batch, length, FEATURES, seed)
    return {"hidden_states": frames * frames_mask(batch, length, padded)[..., None]}


def granite_case(encoder: type, config: type, of: Any, prefix: str) -> Case:
    names = ("Attention", "FeedForward", "ConvModule")
    counts = dict(zip(names, (2, 4, 2), strict=True))
    adopted = {getattr(of, f"{prefix}Conformer{name}"): counts[name] for name in names}
    return Case(
        made(encoder, config, **_GRANITE),
        frames_alone,
        lambda inputs: (),
        getattr(of, f"{prefix}ConformerAttention"),
        adopted,
        implementations=("sdpa",),
    )


_GRANITE5: dict[str, Any] = {
    "vocab_size": 5,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_mel_bins": 2,
    "max_position_embeddings": 6,
    "context_size": 4,
    "conv_kernel_size": 3,
    "subsample_layers": [0],
}


def mel_frames(batch: int, length: int, padded: bool, seed: int = 0) -> dict[str, Any]:
    """Of Granite speech 5, whose frames have four times as many features as mel bins."""
    frames = random_frames(batch, length, 4 * _GRANITE5["num_mel_bins"], seed)
    return features(batch, length, padded, seed) | {"input_features": frames}


def of_halved(inputs: dict[str, Any]) -> Valid:
    mask = inputs.get("attention_mask")
    if mask is None:
        return ()
    half = mask.shape[1] // 2
    return mask.bool(), mask[:, : 2 * half].bool().view(len(mask), half, 2).all(2)


CASES = {
    "bert relative": bert_case("relative"),
    "bert relative_key": bert_case("relative_key"),
    "conformer": Case(
        made(Wav2Vec2ConformerModel, Wav2Vec2ConformerConfig, **_CONFORMER),
        sound,
        of_sound,
        conformer.Wav2Vec2ConformerSelfAttention,
        {
            conformer.Wav2Vec2ConformerSelfAttention: 2,
            conformer.Wav2Vec2ConformerFeedForward: 4,
            conformer.Wav2Vec2ConformerConvolutionModule: 2,
        },
    ),
    "seamless": Case(
        made(seamless.SeamlessM4TSpeechEncoder, SeamlessM4TConfig, **_SEAMLESS),
        features,
        of_adapter,
        seamless.SeamlessM4TConformerSelfAttention,
        {
            seamless.SeamlessM4TConformerSelfAttention: 2,
            seamless.SeamlessM4TConformerFeedForward: 6,
            seamless.SeamlessM4TConformerConvolutionModule: 2,
        },
    ),
    "seamless v2": Case(
        made(
            seamless2.SeamlessM4Tv2SpeechEncoder,
            SeamlessM4Tv2Config,
            **_SEAMLESS,
            left_max_position_embeddings=4,
            right_max_position_embeddings=2,
            speech_encoder_chunk_size=3,
            speech_encoder_left_chunk_num=1,
        ),
        features,
        of_adapter,
        seamless2.SeamlessM4Tv2ConformerSelfAttention,
        {
            seamless2.SeamlessM4Tv2ConformerSelfAttention: 2,
            seamless2.SeamlessM4Tv2ConformerFeedForward: 6,
            seamless2.SeamlessM4Tv2ConformerConvolutionModule: 2,
        },
    ),
    "fastspeech2": Case(
        made(
            fastspeech2_encoder, FastSpeech2ConformerConfig, implementation="eager", **_FASTSPEECH2
        ),
        text,
        of_text,
        fastspeech2.FastSpeech2ConformerAttention,
        {
            fastspeech2.FastSpeech2ConformerAttention: 2,
            fastspeech2.FastSpeech2ConformerConvolutionModule: 2,
        },
        implementations=("eager",),
    ),
    "speecht5": Case(
        made(SpeechT5ForSpeechToText, SpeechT5Config, implementation="eager", **_SPEECHT5),
        sound_and_text,
        of_sound,
        speecht5.SpeechT5Attention,
        {
            speecht5.SpeechT5Attention: 2,
            speecht5.SpeechT5Encoder: 1,
            speecht5.SpeechT5RelativePositionalEncoding: 1,
            speecht5.SpeechT5FeedForward: 3,
        },
        implementations=("eager",),
    ),
    "granite": granite_case(
        GraniteSpeechCTCEncoder, GraniteSpeechEncoderConfig, granite, "GraniteSpeech"
    ),
    "granite plus": granite_case(
        granite_plus.GraniteSpeechPlusCTCEncoder,
        GraniteSpeechPlusEncoderConfig,
        granite_plus,
        "GraniteSpeechPlus",
    ),
    "granite 5": Case(
        made(GraniteSpeech5Encoder, GraniteSpeech5EncoderConfig, **_GRANITE5),
        mel_frames,
        of_halved,
        granite5.GraniteSpeech5EncoderAttention,
        {
            granite5.GraniteSpeech5EncoderAttention: 2,
            granite5.GraniteSpeech5EncoderFeedForward: 4,
            granite5.GraniteSpeech5EncoderConvolutionModule: 2,
        },
        implementations=("sdpa",),
    ),
}
