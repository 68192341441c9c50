"""XLNet models by class name, checkpoint folder or Hub id; every mishap is told in a sentence."""

from __future__ import annotations

import os
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
import transformers
from torch import nn
from transformers import AutoConfig, XLNetConfig

from xlnet_fast.errors import ArgumentError
from xlnet_fast.hf.families import families_in

CLASSES = (
    "XLNetModel",
    "XLNetLMHeadModel",
    "XLNetForSequenceClassification",
    "XLNetForTokenClassification",
    "XLNetForMultipleChoice",
    "XLNetForQuestionAnsweringSimple",
    "XLNetForQuestionAnswering",
)
DEFAULT_CLASS = "XLNetLMHeadModel"
WEIGHTS = (
    "model.safetensors", "model.safetensors.index.json",
    "pytorch_model.bin", "pytorch_model.bin.index.json",
)  # fmt: skip
_PATIENCE_S = 5.0


def load_model(name: str | None) -> tuple[nn.Module, str]:
    """A model in fp32, and what to call it.

    Args:
        name: one of ``CLASSES`` for a small random model, a checkpoint folder, a Hub id, or None.

    Raises:
        ArgumentError: the model does not exist, cannot be read or is no XLNet.
    """
    if name is None or name in CLASSES:
        cls = getattr(transformers, name or DEFAULT_CLASS)
        config = XLNetConfig(
            vocab_size=1000, d_model=512, n_layer=2, n_head=8, d_inner=512, dropout=0.0,
            # Wider than usual: attention then differs from key to key, and so do wrong results.
            initializer_range=0.05,
        )  # fmt: skip
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return cls(config), f"{cls.__name__}, small, random weights"
    config = load_config(name)
    architecture = next((a for a in config.architectures or () if a in CLASSES), "XLNetModel")
    return load_weights(name, architecture), f"{architecture} from {name}"


def load_any_model(name: str | None) -> tuple[nn.Module, str]:
    """As :func:`load_model`, of a checkpoint of any family that ``accelerate`` knows.

    Raises:
        ArgumentError: the model does not exist, cannot be read or is of no family.
    """
    if name is None or name in CLASSES:
        return load_model(name)
    config = load_config(name, only_xlnet=False)
    if config.model_type == "xlnet":
        return load_model(name)
    known = (a for a in config.architectures or () if hasattr(transformers, a))
    architecture = next(known, "AutoModel")
    cls = getattr(transformers, architecture)
    with quiet(), torch.device("meta"):
        empty = cls.from_config(config) if architecture == "AutoModel" else cls(config)
    if not families_in(empty):
        raise ArgumentError(f"{name} is a {config.model_type} model: nothing in it is accelerated")
    return load_weights(name, architecture), f"{architecture} from {name}"


def load_transfo_xl(name: str) -> Any:
    """A Transformer-XL with a language model head, in fp32, from a checkpoint folder or Hub id.

    Raises:
        ArgumentError: it does not exist, cannot be read or is of another model.
    """
    config = load_config(name, only_xlnet=False)
    if config.model_type != "transfo-xl":
        raise ArgumentError(f"{name} is a {config.model_type} model, expected a Transformer-XL")
    return load_weights(name, "TransfoXLLMHeadModel")


def class_named(architecture: str) -> Any:
    """A model's class, of our own or else of transformers.

    Raises:
        AttributeError: neither has it.
    """
    from xlnet_fast.models import transfo_xl

    own = transfo_xl if architecture in transfo_xl.__all__ else transformers
    return getattr(own, architecture)


def load_weights(name: str, architecture: str, config: Any = None) -> Any:
    """A checkpoint's weights, all of them, in fp32 as the given class.

    Args:
        config: instead of the checkpoint's own.

    Raises:
        ArgumentError: they cannot be read, or some are missing.
    """
    own: dict[str, Any] = {} if config is None else {"config": config}
    folder = Path(name).expanduser()
    if not folder.is_dir():
        own |= ready_to_fetch(name, WEIGHTS)
    with quiet():
        try:
            model, found = class_named(architecture).from_pretrained(
                str(folder) if folder.is_dir() else name,
                dtype=torch.float32,
                output_loading_info=True,
                **own,
            )
        except Exception as error:  # of the Hub, the files, the parsers
            raise ArgumentError(
                f"the weights of {name} cannot be read, the files may be damaged or cut short: "
                f"{type(error).__name__}: {first_line(error)}"
            ) from error
    missing = sorted(found["missing_keys"])
    if missing:
        raise ArgumentError(
            f"{name} lacks {len(missing)} of the {len(model.state_dict())} weights of "
            f"{architecture}, for example {missing[0]}: it is incomplete, or a checkpoint of "
            "another model"
        )
    return model


def looks_like_path(name: str) -> bool:
    """Whether a name that is not there cannot have meant something of the Hub."""
    return name.startswith((".", "~", os.sep)) or name.count("/") > 1


def load_config(name: str, only_xlnet: bool = True) -> Any:
    """The config of an XLNet checkpoint folder or Hub id, or of any model's.

    Raises:
        ArgumentError: there is none, it cannot be read or is of another model; says which.
    """
    folder = Path(name).expanduser()
    source: dict[str, bool] = {}
    if folder.is_file():
        raise ArgumentError(f"{name} is a file; give the checkpoint folder that holds config.json")
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ArgumentError(f"the folder {name} holds no config.json, so it is no checkpoint")
    elif looks_like_path(name):
        raise ArgumentError(f"the checkpoint folder {name} does not exist")
    elif name.startswith("XLNet") and name.isidentifier():
        raise ArgumentError(f"{name} is no class of XLNet; they are {', '.join(CLASSES)}")
    else:
        source = ready_to_fetch(name, ("config.json",), what="an XLNet class")
    from xlnet_fast.models import transfo_xl  # noqa: F401, for it registers its config

    with quiet():
        try:
            place = str(folder) if folder.is_dir() else name
            config = AutoConfig.from_pretrained(place, **source)
        except Exception as error:
            raise ArgumentError(
                f"no config can be read from {name}: {first_line(error)}"
            ) from error
    if only_xlnet and config.model_type != "xlnet":
        raise ArgumentError(f"{name} is a {config.model_type} model, expected an XLNet")
    return config


def ready_to_fetch(name: str, files: Sequence[str], what: str = "") -> dict[str, bool]:
    """Arguments for ``from_pretrained`` of a Hub id: none, or to leave the network alone.

    The Hub's client would retry for minutes where the Hub is out of reach, for each file anew. It
    is asked here first, in seconds, and what is in the local cache is then taken from there.

    Args:
        name: the Hub id. files: any of them in the cache stands for the whole.
        what: what else the name could have been, for the message, such as "an XLNet class".

    Raises:
        ArgumentError: it is not in the cache and cannot be fetched; says why.
    """
    why = why_out_of_reach()
    if why is None:
        return {}
    if not any(_is_cached(name, file) for file in files):
        others = ", ".join(f"nor {one}" for one in (what, "in the local Hub cache") if one)
        raise ArgumentError(f"{name} is neither a folder here, {others}, and {why}")
    return {"local_files_only": True}


def _is_cached(name: str, file: str) -> bool:
    from huggingface_hub import constants, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        # The folder by its name at this time, not at that of the import: it may be set in between.
        found = try_to_load_from_cache(name, file, constants.HF_HUB_CACHE)
    except HFValidationError:
        return False  # no possible name of the Hub
    return isinstance(found, str)


def why_out_of_reach() -> str | None:
    """Why the Hub cannot be asked, in half a sentence; None if it seems that it can."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE forbids to fetch it"
    try:
        if urllib.request.getproxies():  # names are then resolved by the proxy
            urllib.request.urlopen(constants.ENDPOINT, timeout=_PATIENCE_S).close()
        else:
            address = urlsplit(constants.ENDPOINT)
            port = address.port or (80 if address.scheme == "http" else 443)
            socket.create_connection((address.hostname, port), timeout=_PATIENCE_S).close()
    except urllib.error.HTTPError:
        return None  # an answer, whatever it says
    except OSError as error:
        cause = getattr(error, "reason", error)
        if isinstance(cause, ssl.SSLError):
            return None  # certificates that Python lacks, and the Hub's client may have
        return f"the Hub cannot be reached ({getattr(cause, 'strerror', None) or cause})"
    return None


@contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings and progress bars of transformers and its Hub client."""
    from huggingface_hub.utils import logging as hub
    from transformers.utils import logging

    levels, bars = (logging.get_verbosity(), hub.get_verbosity()), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    hub.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(levels[0])
        hub.set_verbosity(levels[1])
        if bars:
            logging.enable_progress_bar()


def first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".:") if lines else type(error).__name__
