"""What all Transformer-XL models share: random weights, tied weights, the vocabulary's size."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from xlnet_fast.errors import ArgumentError
from xlnet_fast.models.transfo_xl.adaptive_softmax import ProjectedAdaptiveLogSoftmax
from xlnet_fast.models.transfo_xl.configuration import TransfoXLConfig, check_memory
from xlnet_fast.models.transfo_xl.embedding import PositionalEmbedding, inverse_frequencies

try:  # leaves alone what a checkpoint had; from transformers 5 on
    from transformers import initialization as init
except ImportError:
    init = nn.init


class TransfoXLPreTrainedModel(PreTrainedModel):
    """Base class; loads, saves and initialises weights as Hugging Face's models do."""

    config_class = TransfoXLConfig
    base_model_prefix = "transformer"
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar[Any] = ["RelPartialLearnableDecoderLayer"]
    _is_stateful = True  # the memory cannot be taken back by a few tokens
    _skip_keys_device_placement: ClassVar[Any] = ["mems"]

    def __init__(self, config: TransfoXLConfig) -> None:
        config.check()
        check_memory(config.mem_len, config.same_length)
        super().__init__(config)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        config = self.config
        if isinstance(module, nn.Linear):
            self._init_weight(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            self._init_weight(module.weight)
        elif isinstance(module, nn.LayerNorm):
            init.normal_(module.weight, 1.0, config.init_std)
            init.zeros_(module.bias)
        elif isinstance(module, nn.ParameterList):  # of projections
            for projection in module:
                init.normal_(projection, 0.0, config.proj_init_std)
        elif isinstance(module, ProjectedAdaptiveLogSoftmax) and module.n_clusters:
            self._init_weight(module.cluster_weight)
            init.zeros_(module.cluster_bias)
        elif isinstance(module, PositionalEmbedding):
            frequencies = inverse_frequencies(module.width, module.inv_freq.device)
            if hasattr(init, "copy_"):
                init.copy_(module.inv_freq, frequencies)
            else:
                module.inv_freq.copy_(frequencies)
        elif isinstance(getattr(module, "r_w_bias", None), nn.Parameter):
            self._init_weight(module.r_w_bias)  # type: ignore[arg-type]
            self._init_weight(module.r_r_bias)  # type: ignore[arg-type]

    def _init_weight(self, weight: Tensor) -> None:
        if self.config.init == "uniform":
            init.uniform_(weight, -self.config.init_range, self.config.init_range)
        else:
            init.normal_(weight, 0.0, self.config.init_std)

    def tied_names(self) -> dict[str, str]:
        """Names of parameters that are others', with the names of those."""
        body = self.base_model
        prefix = "" if body is self else f"{self.base_model_prefix}."
        tied: dict[str, str] = {}
        if not self.config.untie_r:
            for number in range(len(body.layers)):
                for name in ("r_w_bias", "r_r_bias"):
                    tied[f"{prefix}layers.{number}.dec_attn.{name}"] = f"{prefix}{name}"
        return tied

    def get_expanded_tied_weights_keys(self, all_submodels: bool = False) -> dict[str, str]:
        """Asked for by transformers 5, whose own answer is of word embeddings alone."""
        return self.tied_names()

    def tie_weights(self, *arguments: Any, **options: Any) -> None:
        """Make one parameter of those that are tied."""
        if hasattr(super(), "get_expanded_tied_weights_keys"):
            super().tie_weights(*arguments, **options)
            return
        for target, source in self.tied_names().items():
            place, _, name = target.rpartition(".")
            setattr(self.get_submodule(place), name, self.get_parameter(source))

    def resize_token_embeddings(
        self,
        new_num_tokens: int | None = None,
        layer: int = -1,
        pad_to_multiple_of: int | None = None,
        **_: Any,
    ) -> nn.Module:
        """Give a cluster more or fewer words, at its end.

        Args:
            new_num_tokens: of the whole vocabulary; None changes nothing.
            layer: the cluster, counted from 0; -1: the last. With ``div_val`` 1 only the last.
            pad_to_multiple_of: round the vocabulary's size up to a multiple of it.

        Returns:
            The embeddings.

        Raises:
            ArgumentError: no such cluster, or one that would have no word left.
        """
        embedding = self.get_input_embeddings()
        if new_num_tokens is None:
            return embedding
        if pad_to_multiple_of is not None:
            new_num_tokens = -(-new_num_tokens // pad_to_multiple_of) * pad_to_multiple_of
        spans = embedding.spans
        cluster = len(spans) - 1 if layer == -1 else layer
        if not 0 <= cluster < len(spans) or (embedding.div_val == 1 and cluster != len(spans) - 1):
            raise ArgumentError(
                f"layer is {layer}, expected -1 or a cluster, 0 to {len(spans) - 1}; with div_val "
                "1 the last"
            )
        added = new_num_tokens - self.config.vocab_size
        first, end = spans[cluster]
        if end + added <= first:
            raise ArgumentError(
                f"new_num_tokens is {new_num_tokens}: cluster {cluster} would have no word left; "
                f"expected at least {self.config.vocab_size - (end - first) + 1}"
            )
        self._resize(cluster, added)
        return self.get_input_embeddings()

    def _resize(self, cluster: int, added: int) -> None:
        embedding = self.get_input_embeddings()
        place = 0 if embedding.div_val == 1 else cluster
        old = embedding.emb_layers[place]
        embedding.emb_layers[place] = new = nn.Embedding(
            old.num_embeddings + added, old.embedding_dim
        ).to(old.weight)
        with torch.no_grad():
            self._init_weight(new.weight)
            kept = min(old.num_embeddings, new.num_embeddings)
            new.weight[:kept] = old.weight[:kept]
        self._grow(embedding, cluster, added)
        self.config.cutoffs = embedding.cutoffs[:-1]
        self.config.vocab_size = self.base_model.n_token = embedding.n_token

    @staticmethod
    def _grow(module: Any, cluster: int, added: int) -> None:
        """Move the ends of a cluster and of those behind it."""
        module.cutoffs = [
            end + added if number >= cluster else end for number, end in enumerate(module.cutoffs)
        ]
        module.n_token += added
