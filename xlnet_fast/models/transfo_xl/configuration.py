"""The configuration of a Transformer-XL, with the names that Hugging Face's had."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar

from transformers import PretrainedConfig

from xlnet_fast.errors import ArgumentError

MEMORIES = ("zeros", "empty")
INITS = ("normal", "uniform")


class TransfoXLConfig(PretrainedConfig):
    """Sizes and options of a Transformer-XL; the defaults are those of ``transfo-xl-wt103``.

    Source: ``TransfoXLConfig`` of transformers 4.37, which read the same ``config.json``.

    Args:
        vocab_size: V. cutoffs: first word of each cluster but the first, increasing, below V; none:
            a plain softmax.
        d_model: H. d_embed: width of the first cluster's embeddings; that of cluster i is
            ``d_embed // div_val**i``.
        n_head, d_head: of the attention. d_inner: of the feed-forward. n_layer: how many layers.
        pre_lnorm: normalise what goes into a layer, the memory too, in place of what comes out.
        mem_len: how many rows the memory has.
        clamp_len: larger distances count as this one; 0 or less: none is clamped.
        same_length: every token sees the ``mem_len - 1`` tokens before it, and not more.
        proj_share_all_but_first: the projections of all clusters but the first are those of the
            embeddings (``tie_projs``, which may be given in its place).
        untie_r: every layer has biases of its own.
        dropout: of embeddings, positions and layers. dropatt: of the attention's probabilities.
        init, init_range, init_std, proj_init_std: of random weights.
        attn_type: 0, Transformer-XL's own. sample_softmax: -1, none. Other values are refused, as
            Hugging Face refused them.
        adaptive: read and kept; without ``cutoffs`` the softmax is plain.
        initial_memory: what a text starts with: "zeros", ``mem_len`` rows of zeros, which are
            attended to (Hugging Face), or "empty" (the original code).
        trainer_compatible: of tuples: the loss first (Hugging Face).

    Raises:
        ArgumentError: names the option, what it is and what is expected.
    """

    model_type = "transfo-xl"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["mems"]
    attribute_map: ClassVar[dict[str, str]] = {
        "n_token": "vocab_size",
        "hidden_size": "d_model",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    }

    def __init__(
        self,
        vocab_size: int = 267735,
        cutoffs: Sequence[int] = (20000, 40000, 200000),
        d_model: int = 1024,
        d_embed: int = 1024,
        n_head: int = 16,
        d_head: int = 64,
        d_inner: int = 4096,
        div_val: int = 4,
        pre_lnorm: bool = False,
        n_layer: int = 18,
        mem_len: int = 1600,
        clamp_len: int = 1000,
        same_length: bool = True,
        proj_share_all_but_first: bool = True,
        attn_type: int = 0,
        sample_softmax: int = -1,
        adaptive: bool = True,
        dropout: float = 0.1,
        dropatt: float = 0.0,
        untie_r: bool = True,
        init: str = "normal",
        init_range: float = 0.01,
        proj_init_std: float = 0.01,
        init_std: float = 0.02,
        layer_norm_epsilon: float = 1e-5,
        eos_token_id: int | None = 0,
        initial_memory: str = "zeros",
        trainer_compatible: bool = False,
        pad_token_id: int | None = None,
        bos_token_id: int | None = None,
        tie_word_embeddings: bool = True,
        **kwargs: Any,
    ) -> None:
        _expect("cutoffs", cutoffs, isinstance(cutoffs, (list, tuple)), "a list of numbers")
        self.vocab_size = vocab_size
        self.cutoffs = list(cutoffs)
        self.tie_projs = [False] + [bool(proj_share_all_but_first)] * len(self.cutoffs)
        self.d_model = d_model
        self.d_embed = d_embed
        self.n_head = n_head
        self.d_head = d_head
        self.d_inner = d_inner
        self.div_val = div_val
        self.pre_lnorm = pre_lnorm
        self.n_layer = n_layer
        self.mem_len = mem_len
        self.clamp_len = clamp_len
        self.same_length = same_length
        self.attn_type = attn_type
        self.sample_softmax = sample_softmax
        self.adaptive = adaptive
        self.dropout = dropout
        self.dropatt = dropatt
        self.untie_r = untie_r
        self.init = init
        self.init_range = init_range
        self.proj_init_std = proj_init_std
        self.init_std = init_std
        self.layer_norm_epsilon = layer_norm_epsilon
        self.initial_memory = initial_memory
        self.trainer_compatible = trainer_compatible
        special = {"eos": eos_token_id, "pad": pad_token_id, "bos": bos_token_id}
        self._check_options(special, tie_word_embeddings)  # the base class reads some
        super().__init__(
            **{f"{name}_token_id": token for name, token in special.items()},
            tie_word_embeddings=tie_word_embeddings,
            **kwargs,
        )
        # Not every version of transformers keeps these itself.
        for name, token in special.items():
            setattr(self, f"{name}_token_id", token)
        self.tie_word_embeddings = tie_word_embeddings
        self.check()

    def _check_options(self, special: dict[str, Any], tie_word_embeddings: bool) -> None:
        """Raise ArgumentError for an option that is of another type, or out of its range alone."""
        for name in ("vocab_size", "d_model", "d_embed", "n_head", "d_head", "d_inner", "n_layer"):
            _expect(name, getattr(self, name), _is_whole(getattr(self, name), 1), "at least 1")
        _expect("div_val", self.div_val, _is_whole(self.div_val, 1), "a whole number, at least 1")
        _expect("mem_len", self.mem_len, _is_whole(self.mem_len, 0), "a whole number, at least 0")
        _expect("clamp_len", self.clamp_len, isinstance(self.clamp_len, int), "a whole number")
        for name in ("dropout", "dropatt"):
            x = getattr(self, name)
            _expect(name, x, _is_number(x) and 0 <= x <= 1, "a number from 0 to 1")
        for name in ("init_range", "init_std", "proj_init_std", "layer_norm_epsilon"):
            x = getattr(self, name)
            _expect(name, x, _is_number(x) and x >= 0, "a number, at least 0")
        switches = {name: getattr(self, name) for name in ("pre_lnorm", "same_length", "untie_r")}
        for name, x in {**switches, "tie_word_embeddings": tie_word_embeddings}.items():
            _expect(name, x, x in (True, False), "true or false")
        for kind, token in special.items():
            several = isinstance(token, list) and kind == "eos"
            is_right = all(isinstance(x, int) for x in (token if several else [token]))
            _expect(
                f"{kind}_token_id", token, token is None or is_right, "a word's number, or none"
            )
        _expect("d_model", self.d_model, self.d_model % 2 == 0, "an even number")
        _expect("init", self.init, self.init in INITS, f"one of {', '.join(INITS)}")
        _expect("attn_type", self.attn_type, self.attn_type == 0, "0, the only one there is")
        _expect(
            "sample_softmax", self.sample_softmax,
            isinstance(self.sample_softmax, int) and self.sample_softmax <= 0,
            "-1: there is no sampled softmax",
        )  # fmt: skip
        _expect(
            "initial_memory", self.initial_memory, self.initial_memory in MEMORIES,
            f"one of {', '.join(MEMORIES)}",
        )  # fmt: skip

    def check(self) -> None:
        """Raise ArgumentError where the options fit no model."""
        special = {kind: getattr(self, f"{kind}_token_id") for kind in ("eos", "pad", "bos")}
        self._check_options(special, self.tie_word_embeddings)
        ends = [0, *self.cutoffs, self.vocab_size]
        grows = all(_is_whole(b, 1) and a < b for a, b in pairwise(ends))
        _expect(
            "cutoffs", self.cutoffs, grows,
            f"increasing numbers between 0 and vocab_size = {self.vocab_size}",
        )  # fmt: skip
        narrowest = self.d_embed // self.div_val ** len(self.cutoffs)
        if narrowest < 1:
            raise ArgumentError(
                f"div_val is {self.div_val} with d_embed {self.d_embed} and {len(self.cutoffs)} "
                "cutoffs: the last cluster's embeddings would have no width; expected a smaller "
                "div_val or fewer cutoffs"
            )
        count = len(self.cutoffs) + 1
        is_right = isinstance(self.tie_projs, (list, tuple)) and len(self.tie_projs) == count
        _expect("tie_projs", self.tie_projs, is_right, f"{count} of them")


def check_memory(mem_len: int, same_length: bool) -> None:
    """Raise ArgumentError where no token could see a key, itself included."""
    if same_length and mem_len < 1:
        raise ArgumentError(
            "same_length needs mem_len >= 1: with mem_len 0 every key is hidden; set a mem_len or "
            "same_length=False"
        )


def _is_whole(x: object, least: int) -> bool:
    return isinstance(x, int) and not isinstance(x, bool) and x >= least


def _is_number(x: object) -> bool:
    return isinstance(x, (int, float)) and not isinstance(x, bool) and -math.inf < x < math.inf


def _expect(name: str, value: object, holds: bool, wanted: str) -> None:
    if not holds:
        raise ArgumentError(f"{name} is {value!r}, expected {wanted}")
