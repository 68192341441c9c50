"""The models and batches of the model benchmark."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from xlnet_fast.errors import ArgumentError

from .corpus import Corpus, load_corpus
from .rel_attention import DTYPES, FORWARD
from .shapes import TRAINING_STEP, Geometry


@dataclass(frozen=True)
class ModelCase:
    """One batch shape, dtype and pass."""

    batch: int
    length: int
    dtype: str
    pass_name: str = FORWARD

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")
        if self.pass_name not in (FORWARD, TRAINING_STEP):
            raise ValueError(f"pass must be forward or training_step, got {self.pass_name!r}")

    @property
    def label(self) -> str:
        """A short name for tables and progress bars."""
        return f"{self.batch}x{self.length} {self.dtype} {self.pass_name}"


def random_model(geometry: Geometry, architecture: str = "XLNetModel") -> nn.Module:
    """Return a model of Hugging Face in fp32 with random weights that bf16 represents exactly.

    architecture: the name of its class.
    So the bf16, fp32 and float64 models are the same function and one float64 result judges all.
    The spread 0.04 gives attention scores that differ by more than one from key to key; HF's 0.02
    gives almost uniform attention, on which a wrong position term would hardly show.
    """
    import transformers

    config = transformers.XLNetConfig(
        n_layer=geometry.n_layer, d_model=geometry.d_model, n_head=geometry.n_head,
        d_inner=geometry.d_inner, vocab_size=geometry.vocab_size, initializer_range=0.04,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(transformers, architecture)(config)
    return round_weights(model)


def load_model(path_or_id: str, architecture: str = "XLNetModel") -> nn.Module:
    """Load the XLNet of a checkpoint folder or Hub id in fp32, rounded to bf16.

    architecture: the name of its class, by default the trunk without a head.
    Raises `ArgumentError` in one sentence when it does not exist, cannot be read or is no XLNet.
    """
    import transformers
    from transformers.utils import logging

    folder = Path(path_or_id)
    if folder.is_dir() and not (folder / "config.json").exists():
        raise ArgumentError(f"{folder} holds no config.json, so it is no checkpoint folder")
    try:
        config = transformers.AutoConfig.from_pretrained(path_or_id)
        if config.model_type != "xlnet":
            raise ArgumentError(
                f"{path_or_id} is a {config.model_type} model; only XLNet models can be benchmarked"
            )
        level = logging.get_verbosity()
        logging.set_verbosity_error()  # heads that one of the two does not have are no news
        try:
            model = getattr(transformers, architecture).from_pretrained(
                path_or_id, dtype=torch.float32
            )
        finally:
            logging.set_verbosity(level)
    except ArgumentError:
        raise
    except Exception as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ArgumentError(f"cannot load a model from {path_or_id}: {first}") from error
    return round_weights(model)


@torch.no_grad()
def round_weights(model: nn.Module) -> nn.Module:
    """Round every weight to the nearest bf16 value in place, and switch to evaluation."""
    for parameter in model.parameters():
        parameter.copy_(parameter.bfloat16())
    return model.eval()


def geometry_of(model: Any, name: str) -> Geometry:
    """Read the geometry from a model's config."""
    config = model.config
    return Geometry(
        name, config.n_layer, config.d_model, config.n_head, config.d_inner, config.vocab_size
    )


def share(model: nn.Module) -> nn.Module:
    """Return a copy of the module objects that holds the very same parameters and buffers.

    Five providers of a 110-million-parameter model then need its weights only once.
    """
    memo: dict[int, Any] = {id(p): p for p in model.parameters()}
    memo |= {id(b): b for b in model.buffers()}
    return copy.deepcopy(model, memo)


def in_dtype(model: nn.Module, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """Return a copy of a model in another dtype on a device."""
    return copy.deepcopy(model).to(device=device, dtype=dtype)


def flops(case: ModelCase, geometry: Geometry) -> float:
    """Return the necessary floating point operations of a forward pass or a training step.

    Linear layers 2 x rows x weights with r projected once per layer, attention 6T (design formula,
    T = B N I J D); a training step has 3 times the linear work and 22T.
    """
    tokens = case.batch * case.length
    d, layers = geometry.d_model, geometry.n_layer
    linear = 2 * tokens * (4 * d * d + 2 * d * geometry.d_inner) + 2 * (2 * case.length) * d * d
    t = case.batch * case.length * case.length * d
    if case.pass_name == TRAINING_STEP:
        return float(layers * (3 * linear + 22 * t))
    return float(layers * (linear + 6 * t))


def last_hidden(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Run a model on a batch and return the last hidden state, (B, L, d_model)."""
    output: Tensor = model(**batch).last_hidden_state
    return output


def compared_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters whose gradients are compared: three layers and the embedding."""
    layers = len(model.layer)  # type: ignore[arg-type]
    wanted = tuple(f"layer.{i}." for i in sorted({0, layers // 2, layers - 1}))
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if name.startswith((*wanted, "word_embedding"))
    }


@dataclass
class Source:
    """The fp32 model that all providers share, its geometry, and the text."""

    model: nn.Module
    geometry: Geometry
    corpus: Corpus


def load_source(
    geometry: Geometry,
    model: str | None = None,
    text: str | None = None,
    architecture: str = "XLNetModel",
) -> Source:
    """Make the random model of a geometry, or load the user's; tokenise the text.

    architecture: the name of the model's class in transformers.
    Raises `ArgumentError` for a model or text that cannot be used.
    """
    if model is None:
        made = random_model(geometry, architecture)
        return Source(made, geometry, load_corpus(text, vocab_size=geometry.vocab_size))
    loaded = load_model(model, architecture)
    own = geometry_of(loaded, "user model")
    return Source(loaded, own, load_corpus(text, vocab_size=own.vocab_size, tokenizer_folder=model))
