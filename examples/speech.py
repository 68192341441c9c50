"""Transcribe audio with Parakeet: from a waveform to the ids of a transcript.

    python examples/speech.py [--model nvidia/parakeet-ctc-1.1b]

The audio is made here, a rising tone and a shorter falling one, so the model gets a batch with
padding. Without --model its weights are random, and so are the ids.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor
from transformers import (
    ParakeetCTCConfig,
    ParakeetEncoderConfig,
    ParakeetFeatureExtractor,
    ParakeetForCTC,
)

import xlnet_fast

RATE = 16_000  # samples per second


def sweep(seconds: float, first_hz: float, last_hz: float) -> Tensor:
    """Return a tone (samples,) whose pitch moves from one frequency to another."""
    time = torch.arange(int(seconds * RATE)) / RATE
    pitch = first_hz + (last_hz - first_hz) * time / (2 * seconds)
    return torch.sin(2 * torch.pi * pitch * time)


def tiny_model() -> ParakeetForCTC:
    """Make a small Parakeet with random weights."""
    torch.manual_seed(0)
    encoder = ParakeetEncoderConfig(
        hidden_size=128, num_hidden_layers=2, num_attention_heads=4, intermediate_size=256,
        initializer_range=0.1,
    )  # fmt: skip
    return ParakeetForCTC(ParakeetCTCConfig(encoder_config=encoder.to_dict()))


def transcripts(model: ParakeetForCTC, inputs: dict[str, Tensor]) -> list[list[int]]:
    """Return the ids of each audio: what each frame says, without repetitions and blanks."""
    blank = model.config.pad_token_id
    frames = model.generate(**inputs)
    return [[i for i in torch.unique_consecutive(row).tolist() if i != blank] for row in frames]


def main() -> None:
    """Transcribe with our code and with Hugging Face's, and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="checkpoint folder or Hub id; default: a tiny one")
    name = parser.parse_args().model
    model = ParakeetForCTC.from_pretrained(name) if name else tiny_model()
    extract = ParakeetFeatureExtractor.from_pretrained(name) if name else ParakeetFeatureExtractor()
    audio = [sweep(10, 100, 4000).numpy(), sweep(6, 3000, 200).numpy()]
    inputs = dict(extract(audio, sampling_rate=RATE, return_tensors="pt"))
    xlnet_fast.accelerate(model.eval())
    print(xlnet_fast.explain(model))
    ours = transcripts(model, inputs)
    with torch.no_grad():
        logits = model(**inputs).logits
    for ids in ours:
        print(len(ids), "tokens:", *ids[:8], "...")
    xlnet_fast.restore(model)
    with torch.no_grad():
        theirs = model(**inputs).logits
    print(f"Hugging Face's logits and ours: {(logits - theirs)[0].abs().max():.1e} apart")
    assert len(set(ours[0])) > 1, "one token for all sounds"
    assert ours == transcripts(model, inputs)


if __name__ == "__main__":
    main()
