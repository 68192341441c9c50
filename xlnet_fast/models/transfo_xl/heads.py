"""Transformer-XL with a head: language model or classifier.

Letters: B batch, I tokens, V words.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GenerationMixin

from xlnet_fast.errors import ArgumentError, ShapeError
from xlnet_fast.hf.versions import MEMORY_NAME
from xlnet_fast.models.transfo_xl.adaptive_softmax import IGNORED, ProjectedAdaptiveLogSoftmax
from xlnet_fast.models.transfo_xl.base import TransfoXLPreTrainedModel
from xlnet_fast.models.transfo_xl.configuration import TransfoXLConfig
from xlnet_fast.models.transfo_xl.memory import Memory
from xlnet_fast.models.transfo_xl.modeling import TransfoXLModel, returns_dict
from xlnet_fast.models.transfo_xl.outputs import (
    TransfoXLLMHeadModelOutput,
    TransfoXLSequenceClassifierOutputWithPast,
)

_GOES_ON = "memory_is_of_this_text"
"""Of what ``generate`` carries along: whether the memory is of all tokens but the last."""


class TransfoXLLMHeadModel(TransfoXLPreTrainedModel, GenerationMixin):
    """Language model with an adaptive softmax whose words are those of the embeddings."""

    def __init__(self, config: TransfoXLConfig) -> None:
        super().__init__(config)
        self.transformer = TransfoXLModel(config)
        self.sample_softmax = config.sample_softmax
        self.trainer_compatible = config.trainer_compatible
        self.crit = ProjectedAdaptiveLogSoftmax(
            config.vocab_size, config.d_embed, config.d_model, config.cutoffs, config.div_val
        )
        # Read before the weights are tied, in transformers 4 as a list of patterns.
        self._tied_weights_keys = self.tied_names()
        self.post_init()

    def tied_names(self) -> dict[str, str]:
        """The words of the softmax and the projections that ``config.tie_projs`` names, too."""
        tied, config = super().tied_names(), self.config
        if config.tie_word_embeddings:
            for number in range(len(self.crit.out_layers)):
                source = f"transformer.word_emb.emb_layers.{number}.weight"
                tied[f"crit.out_layers.{number}.weight"] = source
        for number, is_tied in enumerate(config.tie_projs[: len(self.crit.out_projs)]):
            if is_tied:
                own = 0 if config.div_val == 1 else number
                tied[f"crit.out_projs.{number}"] = f"transformer.word_emb.emb_projs.{own}"
        return tied

    def get_output_embeddings(self) -> nn.Module:
        """The words of the last cluster, as Hugging Face's gives them."""
        return self.crit.out_layers[-1]

    def reset_memory_length(self, mem_len: int) -> None:
        """Remember so many rows from now on."""
        self.transformer.reset_memory_length(mem_len)

    def init_mems(self, bsz: int) -> list[Tensor] | None:
        """As :meth:`TransfoXLModel.init_mems`."""
        return self.transformer.init_mems(bsz)

    def forward(
        self,
        input_ids: Tensor | None = None,
        mems: Sequence[Tensor] | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        *,
        attention_mask: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        targets: Tensor | None = None,
    ) -> TransfoXLLMHeadModelOutput | tuple[Any, ...]:
        """Log-probabilities of the words that follow, or the losses of labels.

        Args:
            labels: (B, I) int64, -100 for none; shifted here: a token predicts the label behind it.
            targets: in their place, what is behind each token, so that the last one has a
                label, too; then ``losses`` is (B, I). (Trainer would ask every batch for an
                argument with "label" in its name.)
            logits_to_keep: log-probabilities of so many last tokens alone; 0: of all.
            The others as :meth:`TransfoXLModel.forward`.

        Raises:
            ArgumentError, ShapeError: name the argument, what it is and what is expected.
        """
        output: Any = self.transformer(
            input_ids, mems, head_mask, inputs_embeds, output_attentions, output_hidden_states,
            True, attention_mask=attention_mask, use_cache=use_cache,
        )  # fmt: skip
        hidden = output.last_hidden_state
        losses = loss = None
        scores: Tensor | tuple[()] = ()
        if labels is None and targets is None:
            scores = self.crit.log_prob(hidden[:, -logits_to_keep:] if logits_to_keep else hidden)
        else:
            losses, counted = self._losses(hidden, labels, targets)
            loss = losses.sum() / counted.clamp(min=1)
        returns = returns_dict(self.config) if return_dict is None else return_dict
        if returns:
            return TransfoXLLMHeadModelOutput(
                losses=losses, prediction_scores=scores, mems=output.mems,
                hidden_states=output.hidden_states, attentions=output.attentions, loss=loss,
            )  # fmt: skip
        rest = tuple(x for x in output.to_tuple()[1:] if x is not None)
        if losses is None:
            return (scores, *rest)
        if self.trainer_compatible:
            return (loss, scores, losses, *rest)
        return (losses, scores, *rest, loss)

    def _losses(
        self, hidden: Tensor, labels: Tensor | None, behind: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Losses of labels, or of those behind each token, and how many count."""
        if labels is not None and behind is not None:
            raise ArgumentError("give one of labels and targets")
        name, given = ("labels", labels) if behind is None else ("targets", behind)
        assert given is not None
        if given.shape != hidden.shape[:2]:
            raise ArgumentError(
                f"{name} have shape {tuple(given.shape)}, expected {tuple(hidden.shape[:2])}"
            )
        if behind is None:
            hidden, given = hidden[:, :-1], given[:, 1:]
        return self.crit.losses(hidden, given), (given != IGNORED).sum()

    def _resize(self, cluster: int, added: int) -> None:
        super()._resize(cluster, added)
        place = 0 if self.crit.div_val == 1 else cluster
        old: Any = self.crit.out_layers[place]
        size = old.out_features + added
        self.crit.out_layers[place] = new = nn.Linear(old.in_features, size).to(old.weight)
        with torch.no_grad():
            self._init_weights(new)
            kept = min(size, old.out_features)
            new.weight[:kept], new.bias[:kept] = old.weight[:kept], old.bias[:kept]
        self._grow(self.crit, cluster, added)
        self.tie_weights()

    # ---- what `generate` asks for ----

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        """The memory is kept in place of keys and values of all that was read."""
        return False

    def _prepare_model_inputs(self, *arguments: Any, **options: Any) -> tuple[Any, ...]:
        """The prompt, which what comes before the first call of the model would fail on.

        Raises:
            ArgumentError, ShapeError: it is no tensor of at least one text and token.
        """
        found: tuple[Any, ...] = super()._prepare_model_inputs(*arguments, **options)
        prompt, name = found[0], found[1]
        if not isinstance(prompt, Tensor):
            raise ArgumentError(f"{name} is {type(prompt).__name__}, expected a tensor")
        if prompt.dim() < 2 or prompt.shape[0] == 0 or prompt.shape[1] == 0:
            raise ShapeError(
                f"{name} has shape {tuple(prompt.shape)}, expected (B, I) with B and I >= 1: a "
                "text goes on from at least one token, such as that which ends the text before it"
            )
        return found

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        mems: Sequence[Tensor] | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        """All of the prompt, behind ``mems`` where that is given; then each new token."""
        inputs: dict[str, Any] = {"use_cache": options.get("use_cache", True)}
        for name in ("head_mask", "output_attentions", "output_hidden_states", "logits_to_keep"):
            if options.get(name) is not None:
                inputs[name] = options[name]
        if options.get(_GOES_ON):
            own = mems if MEMORY_NAME == "mems" else options.get(MEMORY_NAME)
            if own is not None:
                return {**inputs, "mems": own, "input_ids": input_ids[:, -1:]}
        if inputs_embeds is None or options.get(_GOES_ON):
            inputs["input_ids"] = input_ids
        else:
            inputs["inputs_embeds"] = inputs_embeds
        return {**inputs, "mems": mems, "attention_mask": attention_mask}

    def _update_model_kwargs_for_generation(
        self, outputs: Any, model_kwargs: dict[str, Any], *arguments: Any, **options: Any
    ) -> dict[str, Any]:
        kept: dict[str, Any] = super()._update_model_kwargs_for_generation(
            outputs, model_kwargs, *arguments, **options
        )
        if self.transformer.mem_len:  # else the whole text is read again
            for name in ("mems", "past_key_values"):
                kept.pop(name, None)
            kept |= {MEMORY_NAME: outputs.mems, _GOES_ON: True}
        return kept

    def _expand_inputs_for_generation(
        self, expand_size: int = 1, *arguments: Any, mems: Any = None, **options: Any
    ) -> tuple[Any, dict[str, Any]]:
        """Several texts for each prompt, and as many of its memory."""
        ids, kept = super()._expand_inputs_for_generation(expand_size, *arguments, **options)
        if mems is None:
            return ids, kept
        kept["mems"] = mems
        if isinstance(mems, (list, tuple)) and mems and isinstance(mems[0], Tensor):
            copies = torch.arange(mems[0].shape[1]).repeat_interleave(expand_size)
            kept["mems"] = self._reorder_cache(mems, copies)
        return ids, kept

    @staticmethod
    def _reorder_cache(mems: Any, beam_idx: Tensor) -> Any:
        """The memory of the texts that beam search goes on with."""
        if isinstance(mems, Memory):
            return mems.select(beam_idx)
        return [x.index_select(1, beam_idx.to(x.device)) for x in mems]


class TransfoXLForSequenceClassification(TransfoXLPreTrainedModel):
    """A linear layer on the last token that is no padding."""

    def __init__(self, config: TransfoXLConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.transformer = TransfoXLModel(config)
        self.score = nn.Linear(config.d_model, self.num_labels, bias=False)
        self._tied_weights_keys = self.tied_names()
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        mems: Sequence[Tensor] | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        *,
        attention_mask: Tensor | None = None,
    ) -> TransfoXLSequenceClassifierOutputWithPast | tuple[Any, ...]:
        """Scores of each text's class.

        The last token is that of ``attention_mask``; without one, as Hugging Face has it, the one
        before the first ``config.pad_token_id``, or the last.

        Args:
            labels: (B,) int64 classes; floats for a regression, (B, labels) for several labels.
            The others as :meth:`TransfoXLModel.forward`.

        Raises:
            ArgumentError, ShapeError: name the argument, what it is and what is expected.
        """
        output: Any = self.transformer(
            input_ids, mems, head_mask, inputs_embeds, output_attentions, output_hidden_states,
            True, attention_mask=attention_mask,
        )  # fmt: skip
        hidden = output.last_hidden_state
        last = self._last(hidden, input_ids, attention_mask)
        logits = self.score(hidden[torch.arange(len(hidden), device=hidden.device), last])
        loss = None if labels is None else self._loss(logits, labels)
        if not (returns_dict(self.config) if return_dict is None else return_dict):
            rest = tuple(x for x in output.to_tuple()[1:] if x is not None)
            return (logits, *rest) if loss is None else (loss, logits, *rest)
        return TransfoXLSequenceClassifierOutputWithPast(
            loss=loss, logits=logits, mems=output.mems, hidden_states=output.hidden_states,
            attentions=output.attentions,
        )  # fmt: skip

    def _last(
        self, hidden: Tensor, input_ids: Tensor | None, attention_mask: Tensor | None
    ) -> Tensor:
        """(B,) place of each text's last token."""
        batch, tokens = hidden.shape[:2]
        places = torch.arange(tokens, device=hidden.device)
        if attention_mask is not None:
            return (places * (attention_mask[:, -tokens:] != 0)).argmax(1)
        pad = self.config.pad_token_id
        if batch > 1 and pad is None:
            raise ArgumentError(
                "texts of a batch need an attention_mask or config.pad_token_id, to tell where "
                "each of them ends"
            )
        if pad is None or input_ids is None:
            return places.new_full((batch,), tokens - 1)
        return ((input_ids == pad).int().argmax(1) - 1) % tokens

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        kind = self.config.problem_type
        if kind is None:
            single = not labels.is_floating_point()
            kind = "single_label_classification" if single else "multi_label_classification"
            kind = "regression" if self.num_labels == 1 else kind
        if kind == "regression":
            return F.mse_loss(logits.view(labels.shape).to(labels.dtype), labels)
        if kind == "single_label_classification":
            return F.cross_entropy(logits.view(-1, self.num_labels), labels.view(-1))
        return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
