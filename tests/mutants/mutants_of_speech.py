"""Faults of the speech families: distances, masks, when the op may answer."""

from __future__ import annotations

from mutant_fault import faults_of

FAMILIES = "xlnet_fast/hf/families"
PARITY = "hf/families/test_speech_families.py"

FAULTS = [
    *faults_of(
        f"{FAMILIES}/wav2vec2_blocks.py",
        f"{PARITY} hf/families/test_wav2vec2_families.py",
        (
            "speech: distances of keys run the other way",
            "torch.arange(1 - length, length, device=device)",
            "-torch.arange(1 - length, length, device=device)",
        ),
        (
            "speech: the causal convolution sees as much of the future",
            "F.pad(channels, (module.depthwise_conv.kernel_size[0] - 1, 0))",
            "F.pad(channels, (0, module.depthwise_conv.kernel_size[0] - 1))",
        ),
        (
            "speech: any mask is taken for one of who sees whom",
            "and is_readable(mask, implementation)",
            "and (mask is None or mask.dim() == 4)",
        ),
        select="float64 or masks_of",
    ),
    *faults_of(
        f"{FAMILIES}/granite_blocks.py",
        f"{PARITY} hf/families/test_granite_family.py",
        (
            "speech: distances within blocks run the other way",
            "torch.cat([pairs[:, 0].flip(0), pairs[0, 1:]])",
            "torch.cat([pairs[0].flip(0), pairs[1:, 0]])",
        ),
        (
            "speech: frames that fill up a block are seen",
            "AttentionMask(key_padding=~padded.reshape(-1, context))",
            "AttentionMask(key_padding=(~padded & padded).reshape(-1, context))",
        ),
        select="float64 or blocks",
    ),
    *faults_of(
        f"{FAMILIES}/speecht5.py",
        "hf/families/test_speecht5_family.py",
        (
            "speech: SpeechT5's farthest distance is one farther",
            "distances.clamp(-self.max_length, self.max_length - 1)",
            "distances.clamp(-self.max_length + 1, self.max_length - 1)",
        ),
        (
            "speech: a layer of the user's own gets a row for each distance",
            " or why_kept(layer, SpeechT5EncoderLayer)",
            "",
        ),
    ),
]
