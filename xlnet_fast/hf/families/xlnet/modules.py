"""The class that an accelerated model takes on; how it does: :mod:`.adoption`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers.models.xlnet.modeling_xlnet import XLNetModel, XLNetModelOutput

from xlnet_fast.errors import ArgumentError, ShapeError
from xlnet_fast.hf.families.xlnet import inputs
from xlnet_fast.hf.families.xlnet.dense import dense_arguments
from xlnet_fast.hf.families.xlnet.layers import fuses_dropout, takes_context
from xlnet_fast.hf.families.xlnet.memory import Memory, padding_kept
from xlnet_fast.hf.families.xlnet.unused import waits_for_every_gradient, with_zero_gradients
from xlnet_fast.hf.options import Options
from xlnet_fast.hf.patches import patched
from xlnet_fast.hf.versions import TABLE_OPTIONS, returns_dict, with_head_mask_at
from xlnet_fast.nn import AttentionContext, relative_positions
from xlnet_fast.nn.dropout import drop, rate_of
from xlnet_fast.ops import concat_memories, concat_memory
from xlnet_fast.ops._dispatch import named_or_auto
from xlnet_fast.ops.settled import Settled
from xlnet_fast.transforms import nobody_looks_on


class FastModel(XLNetModel):
    """HF's model without the dense mask, one-hot segments and batch-expanded positions."""

    supports_gradient_checkpointing = True
    _xlnet_fast_options = Options()  # also of an instance that type(model)(config) makes

    def cache_mem(self, curr_out: Tensor, prev_mem: Tensor | None) -> Tensor:
        """Next memory of one layer, as HF's, without keeping the longer tensor alive."""
        if patched(XLNetModel, "cache_mem"):
            memory: Tensor = XLNetModel.cache_mem(self, curr_out, prev_mem)
            return memory
        backend = named_or_auto("concat_memory", self._xlnet_fast_options.backend)
        return concat_memory(curr_out, prev_mem, self.mem_len, self.reuse_len, backend=backend)

    def __caches_at_once(self) -> bool:
        """Whether the memory of all layers can wait for the last, if all are accelerated."""
        own = "cache_mem" in self.__dict__ or type(self).cache_mem is not FastModel.cache_mem
        return not own and patched(XLNetModel, "cache_mem") is None

    def __cache_layers(self, hidden: list[Tensor], mems: list[Tensor] | None) -> tuple[Tensor, ...]:
        """Next memory of all layers, in one call where the layers are alike."""
        if not _alike(hidden) or (mems is not None and not _alike(mems)):
            # Layers on several devices, or of several dtypes: each has its own memory.
            earlier = [None] * len(hidden) if mems is None else mems
            return tuple(map(self.cache_mem, hidden, earlier))
        kept, traced = hidden[0].shape[0], torch.jit.is_tracing()  # type: ignore[attr-defined]
        all_kept = (
            not traced and kept <= (self.mem_len or kept) and kept <= (self.reuse_len or kept)
        )
        if mems is None and all_kept:
            return tuple(state.detach() for state in hidden)  # nothing is cut off: no copy, as HF
        backend = named_or_auto("concat_memory", self._xlnet_fast_options.backend)
        return tuple(concat_memories(hidden, mems, self.mem_len, self.reuse_len, backend=backend))

    @with_head_mask_at(7)
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        mems: Any = None,
        perm_mask: Tensor | None = None,
        target_mapping: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        input_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        use_mems: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        target_positions: Tensor | None = None,
        permutation_ranks: tuple[Tensor, Tensor] | None = None,
        head_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Any, ...] | XLNetModelOutput:
        """HF's forward, and what it does not know.

        Args:
            target_positions: (B, I') int, instead of ``target_mapping``: the position of each
                prediction, negative for none.
            permutation_ranks: two (B, I) integer tensors instead of ``perm_mask``: token j is
                visible to i iff ``ranks[0][:, i] > ranks[1][:, j]``.
            attention_mask: (B, I), or (B, M + I) where the memory has padding as well.
            mems: as in HF; a :class:`~xlnet_fast.Memory` remembers its padding.
            head_mask: (N,) or (layers, N), what the probabilities of each head are multiplied
                with, as in Hugging Face's XLNet before version 5.
            kwargs: not read; a warning names what is unknown.

        Raises:
            ShapeError, ArgumentError, IndexError: name the argument and what is expected.
        """
        if patched(XLNetModel, "forward"):
            given = {
                "input_ids": input_ids, "attention_mask": attention_mask, "mems": mems,
                "perm_mask": perm_mask, "target_mapping": target_mapping,
                "token_type_ids": token_type_ids, "input_mask": input_mask,
                "inputs_embeds": inputs_embeds, "use_mems": use_mems,
                "output_attentions": output_attentions,
                "output_hidden_states": output_hidden_states, "return_dict": return_dict,
                "target_positions": target_positions, "permutation_ranks": permutation_ranks,
                "head_mask": head_mask,
            }  # fmt: skip
            given = {name: value for name, value in given.items() if value is not None}
            theirs: tuple[Any, ...] | XLNetModelOutput = XLNetModel.forward(self, **given, **kwargs)
            return theirs
        inputs.warn_of_unknown(name for name, value in kwargs.items() if value is not None)
        config = self.config
        if output_attentions is None:
            output_attentions = config.output_attentions
        if output_hidden_states is None:
            output_hidden_states = config.output_hidden_states
        if return_dict is None:
            return_dict = returns_dict(config)
        if use_mems is None:
            use_mems = config.use_mems_train if self.training else config.use_mems_eval

        embedded = self.__embed(input_ids, inputs_embeds)
        queries, batch = embedded.shape[:2]
        carries_padding = isinstance(mems, Memory)
        memory_padding = mems.padding if carries_padding else None
        mems, memory_length = inputs.check_mems(mems, len(self.layer), embedded)
        target_mapping, target_positions = inputs.check_targets(
            target_mapping, target_positions, batch, queries, embedded.device
        )
        ours = [takes_context(layer) for layer in self.layer]
        targets = target_mapping is not None or target_positions is not None
        context = self.__context(
            target_mapping, target_positions, token_type_ids, embedded, memory_length,
            dense=output_attentions
            or not all(ours)
            or (targets and not (self.__fuse_dropout() and self.__saves_by_positions(embedded))),
            mask_arguments={
                "memory_padding": memory_padding,
                "attention_mask": attention_mask,
                "input_mask": input_mask,
                "perm_mask": perm_mask,
                "permutation_ranks": permutation_ranks,
            },
        )  # fmt: skip
        contexts = self.__per_layer(context, head_mask, ours, embedded.device)
        output_h = drop(self.dropout, embedded)
        output_g = self.__query_stream(context, batch, output_h)
        table = self.__position_table(queries, queries + memory_length, batch, embedded.device)
        states = self.__run_layers(
            output_h, output_g, contexts, table, mems, memory_length, ours,
            use_mems, output_attentions, output_hidden_states,
        )  # fmt: skip
        if carries_padding and use_mems:
            padding = padding_kept(
                context.mask.key_padding, memory_length, self.mem_len, self.reuse_len
            )
            states["mems"] = Memory(states["mems"], padding)
        if not return_dict:
            return tuple(value for value in states.values() if value is not None)
        return XLNetModelOutput(**states)

    def __embed(self, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
        """(I, B, H) embeddings of either argument."""
        if input_ids is not None and inputs_embeds is not None:
            raise ArgumentError("give one of input_ids and inputs_embeds, not both")
        if input_ids is not None:
            embedded = inputs.embed_tokens(self.word_embedding, input_ids)
        elif inputs_embeds is not None:
            inputs.check_embeds(inputs_embeds, self.word_embedding, self.d_model)
            embedded = inputs_embeds.transpose(0, 1)
        else:
            raise ArgumentError("give input_ids or inputs_embeds")
        if embedded.shape[0] == 0:
            raise ShapeError("the input has length 0, expected at least one token")
        return embedded.contiguous()

    def __context(
        self,
        target_mapping: Tensor | None,
        target_positions: Tensor | None,
        token_type_ids: Tensor | None,
        embedded: Tensor,
        memory_length: int,
        *,
        dense: bool,
        mask_arguments: dict[str, Any],
    ) -> AttentionContext:
        """Everything the layers share; ``dense`` asks for HF's form of the targets."""
        queries, batch = embedded.shape[:2]
        if target_mapping is not None and not dense:
            target_positions = inputs.compact_targets(target_mapping)
        elif target_positions is not None and dense:
            target_mapping = inputs.dense_mapping(target_positions, queries)
            target_positions = None
        mapping = None
        if target_mapping is not None and target_positions is None:
            mapping = target_mapping.permute(1, 2, 0)  # (I', I, B)
        if self.attn_type not in ("bi", "uni"):
            raise ArgumentError(f"attn_type is {self.attn_type!r}, expected 'bi' or 'uni'")
        causal, created = self.attn_type == "uni", None
        if causal and overrides(self, "create_mask"):
            created = self.create_mask(queries, memory_length)
        mask = inputs.build_mask(
            batch=batch,
            queries=queries,
            memory_length=memory_length,
            created=created,
            causal=causal,
            same_length=self.same_length and created is None,
            device=embedded.device,
            **mask_arguments,
        )
        return AttentionContext(
            mask=mask,
            segments=inputs.build_segments(
                token_type_ids, batch, queries, memory_length, embedded.device
            ),
            positions=target_positions,
            target_mapping=mapping,
            backend=self._xlnet_fast_options.backend,
            settled=Settled() if nobody_looks_on() else None,
        )

    def __fuse_dropout(self) -> bool:
        """Whether all layers, which are ours, can attend with the predicted rows alone."""
        return all(map(fuses_dropout, self.layer))

    def __saves_by_positions(self, embedded: Tensor) -> bool:
        backend = self._xlnet_fast_options.backend
        return inputs.saves_by_positions(embedded, self.config.d_head, backend)

    def __per_layer(
        self,
        context: AttentionContext,
        head_mask: Any,
        ours: list[bool],
        device: torch.device,
    ) -> list[AttentionContext]:
        """The context of each layer, which differ in the mask of the heads alone."""
        if isinstance(head_mask, (list, tuple)) and all(mask is None for mask in head_mask):
            head_mask = None  # as version 4 of transformers wrote it
        if head_mask is None:
            return [context] * len(ours)
        if not all(ours):
            raise ArgumentError(
                f"head_mask cannot reach layer {ours.index(False)}, which runs its own code "
                "(xlnet_fast.explain says why)"
            )
        masks = inputs.check_head_mask(head_mask, len(ours), self.config.n_head, device)
        return [replace(context, head_mask=mask) for mask in masks.unbind()]

    def __query_stream(
        self, context: AttentionContext, batch: int, output_h: Tensor
    ) -> Tensor | None:
        """(I', B, H) mask embeddings, one per prediction, or None without targets."""
        if context.positions is not None:
            count = context.positions.shape[1]
        elif context.target_mapping is not None:
            count = context.target_mapping.shape[0]
        else:
            return None
        return drop(self.dropout, self.mask_emb.to(output_h.dtype).expand(count, batch, -1))

    def __unused_parameters(self, context: AttentionContext) -> list[Tensor]:
        """What these arguments leave out: ``mask_emb`` and the segments' parameters."""
        targets = context.positions is not None or context.target_mapping is not None
        names: tuple[str, ...] = () if targets else ("mask_emb",)
        if context.segments is None:
            names += ("r_s_bias", "seg_embed")
        return [
            parameter
            for name, parameter in self.named_parameters()
            if parameter.requires_grad and name.endswith(names)
        ]

    def __position_table(self, queries: int, keys: int, batch: int, device: torch.device) -> Tensor:
        """(P, G, H) fp32 table after dropout."""
        if self.bi_data and batch % 2:
            raise ShapeError(
                f"config.bi_data splits the batch into two halves, but it has {batch} elements: "
                "expected an even batch size"
            )
        if overrides(self, "relative_positional_encoding", "positional_embedding"):
            options = TABLE_OPTIONS(device)
            table = self.relative_positional_encoding(queries, keys, bsz=batch, **options)
            table = table.to(device)
        else:
            table = relative_positions(
                queries,
                keys,
                self.d_model,
                attn_type=self.attn_type,
                bi_data=self.bi_data,
                clamp_len=self.clamp_len,
                device=device,
            )
        rate = rate_of(self.dropout)
        if rate is None or (rate > 0.0 and self._xlnet_fast_options.exact_dropout):
            table = table.repeat_interleave(batch // table.shape[1], dim=1)
        return drop(self.dropout, table)

    def __run_layers(
        self,
        output_h: Tensor,
        output_g: Tensor | None,
        contexts: list[AttentionContext],
        table: Tensor,
        mems: list[Tensor] | None,
        memory_length: int,
        ours: list[bool],
        use_mems: bool,
        output_attentions: bool,
        output_hidden_states: bool,
    ) -> dict[str, Any]:
        """All layers, ``ours`` by the context; the fields of ``XLNetModelOutput`` in order."""
        compact: dict[str, Any] = {
            "attn_mask_g": None,
            "r": table,
            "seg_mat": None,
            "target_mapping": None,
        }
        new_mems: list[Tensor] = []
        at_once = use_mems and all(ours) and self.__caches_at_once()
        remembered: list[Tensor] = []  # the hidden states that become memory after the last layer
        attentions: list[Any] = []
        hidden_states: list[Tensor] = []
        for number, layer in enumerate(self.layer):
            memory = None if mems is None else mems[number]
            if at_once:
                remembered.append(output_h)
            elif use_mems:
                new_mems.append(self.cache_mem(output_h, memory))
            if output_hidden_states:
                hidden_states += _streams(output_h, output_g)
            if ours[number]:
                arguments = {"attn_mask_h": contexts[number], **compact}
            else:
                arguments = dense_arguments(contexts[number], table, output_h, memory_length)
            outputs = layer(
                output_h, output_g, **arguments, mems=memory, output_attentions=output_attentions
            )
            output_h, output_g = outputs[:2]
            if output_attentions:
                attentions.append(_batch_first(outputs[2]))
        if waits_for_every_gradient():
            unused = self.__unused_parameters(contexts[0])
            if output_g is None:
                output_h = with_zero_gradients(output_h, unused)
            else:
                output_g = with_zero_gradients(output_g, unused)
        if at_once:
            new_mems += self.__cache_layers(remembered, mems)
            remembered.clear()
        if output_hidden_states:
            hidden_states += _streams(output_h, output_g)
        output = drop(self.dropout, output_h if output_g is None else output_g)
        return {
            "last_hidden_state": output.transpose(0, 1).contiguous(),
            "mems": tuple(new_mems) if use_mems else None,
            "hidden_states": tuple(x.transpose(0, 1).contiguous() for x in hidden_states)
            if output_hidden_states
            else None,
            "attentions": tuple(attentions) if output_attentions else None,
        }


def _streams(output_h: Tensor, output_g: Tensor | None) -> list[Tensor]:
    return [output_h] if output_g is None else [output_h, output_g]


def _alike(layers: list[Tensor]) -> bool:
    """Whether one tensor per layer is the same in shape, dtype and device for all layers."""
    first = layers[0]
    return all(
        x.shape == first.shape and x.dtype == first.dtype and x.device == first.device
        for x in layers
    )


def _batch_first(attention: Any) -> Any:
    """(I, J, B, N) probabilities, or a pair of them, to (B, N, I, J)."""
    if isinstance(attention, tuple):
        return tuple(_batch_first(stream) for stream in attention)
    return attention.permute(2, 3, 0, 1).contiguous()


def overrides(model: XLNetModel, *methods: str) -> bool:
    """True if one of HF's methods is another in a user's subclass, the instance or HF's class."""
    return patched(XLNetModel, *methods) is not None or any(
        name in model.__dict__ or getattr(type(model), name) is not getattr(XLNetModel, name)
        for name in methods
    )
