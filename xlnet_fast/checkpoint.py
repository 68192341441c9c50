"""XLNet models by class name, checkpoint folder or Hub id; every mishap is told in a sentence."""

from __future__ import annotations

import os
import socket
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
import transformers
from torch import nn
from transformers import AutoConfig, XLNetConfig

from xlnet_fast.errors import ArgumentError

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


def load_weights(name: str, architecture: str, config: Any = None) -> Any:
    """A checkpoint's weights, all of them, in fp32 as the given class.

    Args:
        config: instead of the checkpoint's own.

    Raises:
        ArgumentError: they cannot be read, or some are missing.
    """
    own = {} if config is None else {"config": config}
    with quiet():
        try:
            model, found = getattr(transformers, architecture).from_pretrained(
                name, dtype=torch.float32, output_loading_info=True, **own
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


def load_config(name: str) -> Any:
    """The config of an XLNet checkpoint folder or Hub id.

    Raises:
        ArgumentError: there is none, it cannot be read or is of another model; says which.
    """
    folder = Path(name).expanduser()
    looks_like_path = name.startswith((".", "~", os.sep)) or name.count("/") > 1
    if folder.is_file():
        raise ArgumentError(f"{name} is a file; give the checkpoint folder that holds config.json")
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ArgumentError(f"the folder {name} holds no config.json, so it is no checkpoint")
    elif looks_like_path:
        raise ArgumentError(f"the checkpoint folder {name} does not exist")
    elif name.startswith("XLNet") and name.isidentifier():
        raise ArgumentError(f"{name} is no class of XLNet; they are {', '.join(CLASSES)}")
    elif not _is_cached(name):
        _check_network(name)
    with quiet():
        try:
            config = AutoConfig.from_pretrained(name)
        except Exception as error:
            raise ArgumentError(
                f"no config can be read from {name}: {first_line(error)}"
            ) from error
    if config.model_type != "xlnet":
        raise ArgumentError(f"{name} is a {config.model_type} model, expected an XLNet")
    return config


def _is_cached(name: str) -> bool:
    with quiet():
        try:
            AutoConfig.from_pretrained(name, local_files_only=True)
        except Exception:
            return False  # the attempt with the network, which comes next, tells what is wrong
    return True


def _check_network(name: str) -> None:
    """Fail in seconds where the Hub is out of reach; its client would retry for half a minute."""
    from huggingface_hub import constants

    absent = f"{name} is neither a folder here, nor an XLNet class, nor in the local Hub cache"
    if constants.HF_HUB_OFFLINE:
        raise ArgumentError(f"{absent}, and HF_HUB_OFFLINE forbids to fetch it")
    address = urlsplit(constants.ENDPOINT)
    if urllib.request.getproxies():
        return  # names are then resolved by the proxy
    port = address.port or (80 if address.scheme == "http" else 443)
    try:
        socket.create_connection((address.hostname, port), timeout=5).close()
    except OSError as error:
        raise ArgumentError(
            f"{absent}, and the Hub cannot be reached ({error.strerror or error})"
        ) from error


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
