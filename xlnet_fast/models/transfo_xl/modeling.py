"""The bare Transformer-XL model.

Letters: B batch, I tokens, M rows of memory, J = M + I, N heads, H width.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from xlnet_fast.errors import ArgumentError, ShapeError
from xlnet_fast.masks import AttentionMask
from xlnet_fast.models.transfo_xl.attention import Segment
from xlnet_fast.models.transfo_xl.base import TransfoXLPreTrainedModel
from xlnet_fast.models.transfo_xl.configuration import TransfoXLConfig, check_memory
from xlnet_fast.models.transfo_xl.embedding import AdaptiveEmbedding, PositionalEmbedding
from xlnet_fast.models.transfo_xl.layers import RelPartialLearnableDecoderLayer
from xlnet_fast.models.transfo_xl.memory import Keeping, KeptRows, Memory, Store
from xlnet_fast.models.transfo_xl.outputs import TransfoXLModelOutput
from xlnet_fast.models.transfo_xl.padding import Padding, padding_of
from xlnet_fast.nn.linear import is_plain_linear
from xlnet_fast.ops.settled import Settled
from xlnet_fast.transforms import are_plain, nobody_looks_on


class TransfoXLModel(TransfoXLPreTrainedModel):
    """Transformer-XL without a head (Dai et al. 2019); arguments and outputs as Hugging Face's.

    Attributes:
        mem_len, same_length, clamp_len: as in the config; what stands here holds.
        backend: "auto", or the name of the backend that attention must run on.
    """

    def __init__(self, config: TransfoXLConfig) -> None:
        super().__init__(config)
        self.n_token, self.n_layer = config.vocab_size, config.n_layer
        self.d_embed, self.d_model = config.d_embed, config.d_model
        self.n_head, self.d_head = config.n_head, config.d_head
        self.mem_len, self.same_length = config.mem_len, config.same_length
        self.clamp_len, self.attn_type = config.clamp_len, config.attn_type
        self.backend = "auto"
        self.word_emb = AdaptiveEmbedding(
            config.vocab_size, config.d_embed, config.d_model, config.cutoffs, config.div_val
        )
        self.drop = nn.Dropout(config.dropout)
        shared: dict[str, nn.Parameter] = {}
        if not config.untie_r:
            self.r_w_bias = nn.Parameter(torch.empty(config.n_head, config.d_head))
            self.r_r_bias = nn.Parameter(torch.empty(config.n_head, config.d_head))
            shared = {"r_w_bias": self.r_w_bias, "r_r_bias": self.r_r_bias}
        self.layers = nn.ModuleList(
            RelPartialLearnableDecoderLayer(config, **shared) for _ in range(config.n_layer)
        )
        self.pos_emb = PositionalEmbedding(config.d_model)
        self._tied_weights_keys = self.tied_names()
        self.post_init()

    def get_input_embeddings(self) -> AdaptiveEmbedding:
        """The embeddings of words."""
        return self.word_emb

    def set_input_embeddings(self, value: Any) -> None:
        """Replace the embeddings of words."""
        self.word_emb = value

    def reset_memory_length(self, mem_len: int) -> None:
        """Remember so many rows from now on."""
        if not isinstance(mem_len, int) or mem_len < 0:
            raise ArgumentError(f"mem_len is {mem_len!r}, expected a whole number, at least 0")
        check_memory(mem_len, self.same_length)
        self.mem_len = mem_len

    def init_mems(self, bsz: int) -> list[Tensor] | None:
        """The memory that a text starts with: ``mem_len`` rows of zeros, or none of them.

        Returns:
            (M, B, H) for each layer; None where ``mem_len`` is 0.
        """
        if self.mem_len == 0:
            return None
        like = next(self.parameters())
        rows = self.mem_len if self.config.initial_memory == "zeros" else 0
        return [like.new_zeros(rows, bsz, self.d_model) for _ in self.layers]

    def forward(
        self,
        input_ids: Tensor | None = None,
        mems: Sequence[Tensor] | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        *,
        attention_mask: Tensor | None = None,
        use_cache: bool | None = None,
    ) -> TransfoXLModelOutput | tuple[Any, ...]:
        """Read a segment of text.

        Args:
            input_ids: (B, I) int64, or inputs_embeds: (B, I, H).
            mems: of the segment before, one (M, B, H) for each layer; None: a text starts.
            head_mask: (N,) or (layers, N), what each head's probabilities are multiplied with.
            output_attentions, output_hidden_states, return_dict: as the config where None.
            attention_mask: (B, I), or (B, M + I) with ``mems``; 0 is padding.
            use_cache: keep the keys and values of the memory with it, in inference: None does so
                where ``mems`` is of an earlier call.

        Raises:
            ArgumentError, ShapeError: name the argument, what it is and what is expected.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ArgumentError("give one of input_ids and inputs_embeds")
        check_memory(self.mem_len, self.same_length)
        for name, x in (("input_ids", input_ids), ("inputs_embeds", inputs_embeds)):
            if x is not None and not isinstance(x, Tensor):
                raise ArgumentError(f"{name} is {type(x).__name__}, expected a tensor")
        if input_ids is not None and input_ids.dim() != 2:
            raise ShapeError(f"input_ids has shape {tuple(input_ids.shape)}, expected (B, I)")
        h = self.drop(self.word_emb(input_ids) if inputs_embeds is None else inputs_embeds)
        if h.dim() != 3 or h.shape[2] != self.d_model or h.shape[1] == 0:
            raise ShapeError(
                f"the text has shape {tuple(h.shape)}, expected (B, I, {self.d_model}) with I >= 1"
            )
        attends = _chosen(output_attentions, self.config.output_attentions)
        shows = _chosen(output_hidden_states, self.config.output_hidden_states)
        memory, rows = self._checked(mems, h)
        padding = padding_of(
            attention_mask, (h.shape[0], h.shape[1]), rows, starts=memory is None,
            from_zeros=self.config.initial_memory == "zeros" and self.mem_len > 0,
            padding=getattr(mems, "padding", None), begun=getattr(mems, "begun", None),
        )  # fmt: skip
        keeping = None
        if not attends and self.mem_len and self._keeps(mems, use_cache, h):
            keeping = self._keeping(mems, rows, h)
        segment = self._segment(h, rows, memory is None, padding, keeping)
        read, probabilities = self._read(h, memory, segment, padding, head_mask, attends)
        h = self.drop(read[-1])
        remembered: list[Tensor] | None = None
        if keeping is not None:
            remembered = keeping.done().as_memory(*_remembered_padding(padding, self.mem_len))
        elif mems is not None or self.mem_len:
            remembered = self._remember(read[:-1], memory, rows, padding)
        states = (*read[:-1], h) if shows else None
        if not _chosen(return_dict, returns_dict(self.config)):
            found = (h, remembered, states, probabilities if attends else None)
            return tuple(x for x in found if x is not None)
        return TransfoXLModelOutput(
            last_hidden_state=h,
            mems=remembered,
            hidden_states=states,
            attentions=probabilities if attends else None,
        )

    def _read(
        self,
        h: Tensor,
        memory: Sequence[Tensor] | None,
        segment: Segment,
        padding: Padding,
        head_mask: Tensor | None,
        attends: bool,
    ) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        """What each layer read and, last, the last one's output; all probabilities."""
        heads = _head_masks(head_mask, self.n_layer, self.n_head)
        kept = segment.keeping is not None and segment.keeping.source is not None
        read, probabilities = [_cleared(h, padding)], []
        for number, layer in enumerate(self.layers):
            own = None if memory is None or kept else memory[number]
            h, probability = layer(read[-1], own, segment, number, heads[number], attends)
            read.append(_cleared(h, padding))
            if probability is not None:
                probabilities.append(probability)
        return read, tuple(probabilities)

    def _segment(
        self, h: Tensor, rows: int, starts: bool, padding: Padding, keeping: Keeping | None
    ) -> Segment:
        keys = rows + h.shape[1]
        window = (self.mem_len - 1, None) if self.same_length and keys > self.mem_len else None
        made: dict[int, Tensor] = {}

        def table(count: int) -> Tensor:
            """Dropped once for all layers."""
            if count not in made:
                made[count] = self.drop(self.pos_emb(count, self.clamp_len, h))
            return made[count]

        if keeping is None:
            table(keys)  # a layer that runs again, checkpointed, must not find drawn what it drew
        return Segment(
            mask=AttentionMask(causal=True, key_padding=padding.hidden, window=window),
            memory_rows=rows,
            starts=starts,
            table=table,
            mem_len=None if window is None else self.mem_len,
            keeping=keeping,
            backend=self.backend,
            settled=Settled() if nobody_looks_on() else None,
        )

    def _checked(
        self, mems: Sequence[Tensor] | None, h: Tensor
    ) -> tuple[Sequence[Tensor] | None, int]:
        """The memory in the dtype of h, None where a text starts; and M.

        Raises:
            ShapeError: it has not one (M, B, H) tensor for each layer.
        """
        if mems is None:
            return None, self.mem_len if self.config.initial_memory == "zeros" else 0
        if not isinstance(mems, (list, tuple)) or not all(isinstance(x, Tensor) for x in mems):
            raise ArgumentError(
                f"mems is {type(mems).__name__}, expected a list of one tensor for each layer"
            )
        if len(mems) != len(self.layers):
            raise ShapeError(
                f"mems has {len(mems)} tensors, expected {len(self.layers)}, one for each layer"
            )
        rows = mems[0].shape[0]
        wanted = (rows, h.shape[0], h.shape[2])
        for number, x in enumerate(mems):
            if tuple(x.shape) != wanted:
                raise ShapeError(
                    f"mems[{number}] has shape {tuple(x.shape)}, expected {wanted}, (M, B, H): is "
                    "it of another batch?"
                )
        return [x.to(device=h.device, dtype=h.dtype) for x in mems], rows

    def _remember(
        self,
        read: Sequence[Tensor],
        memory: Sequence[Tensor] | None,
        rows: int,
        padding: Padding,
    ) -> list[Tensor]:
        """The last ``mem_len`` rows of what each layer has read, without a gradient."""
        batch, tokens, width = read[0].shape
        kept, new = min(rows, max(self.mem_len - tokens, 0)), min(tokens, self.mem_len)
        remembered = []
        with torch.no_grad():
            for number, x in enumerate(read):
                own = x.detach()[:, tokens - new :].transpose(0, 1)
                old = own.new_zeros(kept, batch, width)
                if memory is not None:
                    old = memory[number][rows - kept :]
                remembered.append(torch.cat([old, own]))
        if not nobody_looks_on():
            return remembered  # a program returns lists
        return Memory(remembered, *_remembered_padding(padding, self.mem_len))

    def _keeps(self, mems: Sequence[Tensor] | None, use_cache: bool | None, h: Tensor) -> bool:
        """Whether keys and values are to be kept, and nothing could tell but by the time."""
        wanted = isinstance(mems, Memory) if use_cache is None else use_cache
        if not wanted or self.training or not nobody_looks_on():
            return False
        if torch.is_autocast_enabled(h.device.type):
            return False
        if torch.is_grad_enabled() and (
            h.requires_grad or any(p.requires_grad for p in self.parameters())
        ):
            return False
        return all(
            is_plain_linear(projection) and are_plain([projection.weight])
            for attention in self._attentions()
            for projection in (attention.qkv_net, attention.r_net)
        )

    def _attentions(self) -> list[Any]:
        return [layer.dec_attn for layer in self.layers]

    def _keeping(self, mems: Sequence[Tensor] | None, rows: int, h: Tensor) -> Keeping:
        stamp = self._stamp(h)
        source = mems.keys_as_of(stamp) if isinstance(mems, Memory) else None

        def store(count: int) -> Store:
            if isinstance(source, KeptRows):
                return source.store.sibling(h.shape[0], count, 2 * h.shape[1])
            heads, capacity = (self.n_head, self.d_head), count + max(64, count // 4, h.shape[1])
            return Store(self.n_layer, h.shape[0], heads, self.d_model, capacity, h, stamp)

        return Keeping(source, store, rows, h.shape[1], self.mem_len)

    def _stamp(self, h: Tensor) -> Hashable:
        """All that keys, values and projected positions depend on, beside the memory's rows."""
        tensors = []
        for attention in self._attentions():
            tensors += [attention.qkv_net.weight, attention.r_net.weight]
            if attention.pre_lnorm:
                tensors += [attention.layer_norm.weight, attention.layer_norm.bias]
        found = tuple((x.data_ptr(), 0 if x.is_inference() else x._version) for x in tensors)
        return (*found, h.dtype, h.device, self.clamp_len)


def _cleared(h: Tensor, padding: Padding) -> Tensor:
    cleared = padding.cleared
    return h if cleared is None else h.masked_fill(cleared[..., None], 0.0)


def _remembered_padding(padding: Padding, mem_len: int) -> tuple[Tensor | None, Tensor | None]:
    """Hidden rows of the memory (B, M), None where there are none; which texts have begun."""
    rows, begun = padding.rows, padding.begun
    rows = None if rows is None else rows[:, -mem_len:] if mem_len else rows[:, :0]
    on_cpu = all(x is None or x.device.type == "cpu" for x in (rows, begun))
    if on_cpu and nobody_looks_on():
        rows = None if rows is None or not bool(rows.any()) else rows
        begun = None if begun is None or bool(begun.all()) else begun
    return rows, begun


def _head_masks(head_mask: Tensor | None, layers: int, heads: int) -> list[Tensor | None]:
    """(N,) for each layer of (N,) or (layers, N)."""
    if head_mask is None:
        return [None] * layers
    if tuple(head_mask.shape) not in ((heads,), (layers, heads)):
        raise ShapeError(
            f"head_mask has shape {tuple(head_mask.shape)}, expected ({heads},) or "
            f"({layers}, {heads})"
        )
    return list(head_mask.expand(layers, heads))


def _chosen(given: bool | None, otherwise: bool) -> bool:
    return otherwise if given is None else given


def returns_dict(config: Any) -> bool:
    """Whether a model returns no tuple."""
    return bool(getattr(config, "return_dict", True))
