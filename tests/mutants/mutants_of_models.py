"""Faults of the layer and of the drop-in model: positions, memory, targets, undo."""

from __future__ import annotations

from mutant_fault import faults_of

LAYER = "xlnet_fast/nn/rel_attention.py"
INPUTS = "xlnet_fast/hf/families/xlnet/inputs.py"
MODULES = "xlnet_fast/hf/families/xlnet/modules.py"
PATCHING = "xlnet_fast/hf/patching.py"

FAULTS = [
    *faults_of(
        "xlnet_fast/nn/positions.py",
        "nn/test_nn_rel_attention.py",
        (
            "positions: distances from J - 1 on",
            "distance = torch.arange(keys, end, -1, device=device).float()[:, None]  # (P, 1)",
            "distance = torch.arange(keys - 1, end - 1, -1, device=device).float()[:, None]",
        ),
        (
            "positions: clamped above alone",
            "groups = groups.clamp(-clamp_len, clamp_len)",
            "groups = groups.clamp(max=clamp_len)",
        ),
        (
            "positions: both halves of bi_data run forwards",
            "torch.cat([distance, -distance], dim=1) if bi_data",
            "torch.cat([distance, distance], dim=1) if bi_data",
        ),
        select="position_table",
    ),
    *faults_of(
        LAYER,
        "nn/test_nn_rel_attention.py hf/test_hf_outputs.py hf/test_hf_targets.py",
        (
            "layer: segments of the first keys for the rows",
            "return segments[:, segments.shape[1] - queries :]",
            "return segments[:, :queries]",
        ),
        (
            "layer: probabilities of the query stream see themselves",
            "mask=stream_mask(context.mask, see_self=number == 0),",
            "mask=stream_mask(context.mask, see_self=True),",
        ),
        (
            "layer: the residual of the query stream is the content stream's",
            "output_g = self.post_attention(g, vector)",
            "output_g = self.post_attention(h[: g.shape[0]], vector)",
        ),
    ),
    *faults_of(
        LAYER,
        "hf/test_hf_dropout.py nn/test_nn_rel_attention.py",
        (
            "layer: the same dropout for both streams' probabilities",
            "seed=None if seed is None else seed + number,",
            "seed=seed,",
        ),
    ),
    *faults_of(
        "xlnet_fast/nn/dropout.py",
        "hf/test_hf_dropout.py nn/test_nn_rel_attention.py",
        (
            "layer: dropout in evaluation",
            "rate = module.p if isinstance(module, nn.Dropout) and module.training else 0.0",
            "rate = module.p if isinstance(module, nn.Dropout) else 0.0",
        ),
    ),
    *faults_of(
        "xlnet_fast/nn/dropout.py",
        "hf/test_hf_replaced.py",
        (
            "layer: a hook on dropout is passed over",
            "if type(module) not in (nn.Dropout, nn.Identity) or not is_bare(module):",
            "if type(module) not in (nn.Dropout, nn.Identity):",
        ),
        (
            "layer: a dropout of everything is fused",
            "return rate if rate < 1.0 else None",
            "return min(rate, 0.999)",
        ),
    ),
    *faults_of(
        "xlnet_fast/nn/rel_attention.py",
        "hf/test_hf_replaced.py hf/test_hf_arguments.py",
        (
            "layer: a dropout that is not plain is not called",
            "probability = self.dropout(probability)",
            "pass",
        ),
        (
            "layer: probabilities without the mask of the heads",
            "None if probability is None else probability * mask[..., None]",
            "probability",
        ),
    ),
    *faults_of(
        "xlnet_fast/nn/bare.py",
        "hf/test_hf_replaced.py ops/test_transforms.py hf/test_hf_transforms.py",
        (
            "layer: a patched forward of the library is passed over",
            "        _has_own_forward(type(module))\n        and not",
            "        not",
        ),
        (
            "layer: what notes names changes what runs",
            "return not all(isinstance(getattr(hook",
            "return True or all(isinstance(getattr(hook",
        ),
    ),
    *faults_of(
        "xlnet_fast/hf/patches.py",
        "hf/test_hf_replaced.py",
        (
            "patches: only the file is looked at",
            'if not own or method.__qualname__ != f"{base.__qualname__}.{name}":',
            "if not own:",
        ),
        (
            "patches: the first method alone",
            "    for name in methods:",
            "    for name in methods[:1]:",
        ),
    ),
    *faults_of(
        "xlnet_fast/hf/families/xlnet/layers.py",
        "hf/test_hf_replaced.py",
        (
            "model: a patched layer gets the context",
            "        and obstacle(layer) is None\n",
            "",
        ),
        (
            "model: predicted rows alone with a dropout that is called",
            "return rate_of(attention.dropout) is not None",
            "return True",
        ),
    ),
    *faults_of(
        "xlnet_fast/hf/families/xlnet/heads.py",
        "hf/test_hf_arguments.py hf/test_hf_unequal_texts.py",
        (
            "head: token classification keeps what it is given",
            "transformer=partial(self.transformer, **further)",
            "transformer=self.transformer",
        ),
        (
            "head: the summary of the first token for all kinds",
            'order.flip(0) if kind == "first" else order',
            "order.flip(0)",
        ),
    ),
    *faults_of(
        "xlnet_fast/hf/versions.py",
        "hf/test_hf_versions.py",
        (
            "versions: head_mask by position stays among the others",
            "args = args[:place] + args[place + 1 :]",
            "args = args[:place] + args[place:]",
        ),
        (
            "versions: memory by position is overlooked",
            'memory = kwargs.get("past_key_values", *args[:1])',
            'memory = kwargs.get("past_key_values")',
        ),
    ),
    *faults_of(
        "xlnet_fast/__init__.py",
        "ops/test_registered_at_import.py",
        (
            "import: the ops wait for the first call",
            'if "torch" in sys.modules:',
            'if "torch" not in sys.modules:',
        ),
        select="new_process",
    ),
    *faults_of(
        "xlnet_fast/hf/families/xlnet/memory.py",
        "hf/test_hf_unequal_texts.py",
        (
            "memory: all padding is carried on",
            "return seen[:, -mem_len:] if mem_len else seen",
            "return seen",
        ),
        (
            "memory: the texts that ended keep their padding",
            "None if self.padding is None else self.padding[chosen]",
            "None if self.padding is None else self.padding[: len(chosen)]",
        ),
    ),
    *faults_of(
        "xlnet_fast/hf/families/xlnet/modules.py",
        "hf/test_hf_tracing.py",
        (
            "memory: a trace keeps what was cut of the example",
            "not traced and kept <= (self.mem_len or kept)",
            "kept <= (self.mem_len or kept)",
        ),
    ),
    *faults_of(
        "xlnet_fast/nn/dropout.py",
        "nn/test_nn_dropout.py",
        (
            "dropout: in place of a module that a user changed",
            "        and is_bare(module)\n        and not is_transformed",
            "        and not is_transformed",
        ),
    ),
    *faults_of(
        "xlnet_fast/nn/bare.py",
        "hf/test_hf_linear.py nn/test_nn_dropout.py",
        (
            "bare: hooks before the forward are not seen",
            "(module._forward_hooks or module._forward_pre_hooks)",
            "module._forward_hooks",
        ),
    ),
    *faults_of(
        INPUTS,
        "hf/test_hf_masks.py hf/test_hf_targets.py hf/test_hf_bad_input.py",
        (
            "arguments: input_mask read as attention_mask",
            'padding = mask < 1 if name == "attention_mask" else mask > 0',
            "padding = mask < 1",
        ),
        (
            "arguments: fractions of attention_mask show",
            'padding = mask < 1 if name == "attention_mask" else mask > 0',
            'padding = mask <= 0 if name == "attention_mask" else mask > 0',
        ),
        (
            "arguments: the memory is padding",
            "padding = F.pad(padding, (memory_length, 0))  # all may see the memory",
            "padding = F.pad(padding, (memory_length, 0), value=True)",
        ),
        (
            "arguments: ranks hide the memory",
            "rank_k = F.pad(rank_k, (memory_length, 0), value=_LOWEST_RANK)",
            "rank_k = F.pad(rank_k, (memory_length, 0))",
        ),
        (
            "arguments: a zero row of a mapping is position 0",
            "return torch.where(one.any(2), one.int().argmax(2), -1)",
            "return one.int().argmax(2)",
        ),
    ),
    *faults_of(
        INPUTS,
        "hf/test_hf_options.py hf/test_hf_masks.py",
        (
            "arguments: same_length is forgotten",
            "same_length=causal and same_length,",
            "same_length=False,",
        ),
        select="all_arguments or data_mask",
    ),
    *faults_of(
        MODULES,
        "hf/test_hf_mems.py",
        (
            "memory: all layers keep the first layer's",
            "remembered.append(output_h)",
            "remembered.append(remembered[0] if remembered else output_h)",
        ),
        (
            "memory: kept though use_mems is False",
            '"mems": tuple(new_mems) if use_mems else None,',
            '"mems": tuple(new_mems),',
        ),
        (
            "memory: a cut by reuse_len is passed over",
            "kept <= (self.mem_len or kept) and kept <= (self.reuse_len or kept)",
            "kept <= (self.mem_len or kept)",
        ),
        (
            "memory: has a gradient",
            "return tuple(state.detach() for state in hidden)",
            "return tuple(hidden)",
        ),
    ),
    *faults_of(
        MODULES,
        "hf/test_hf_outputs.py hf/test_hf_targets.py",
        (
            "model: hidden states without the query stream",
            "return [output_h] if output_g is None else [output_h, output_g]",
            "return [output_h]",
        ),
        (
            "model: the last hidden state is the content stream's",
            "output = drop(self.dropout, output_h if output_g is None else output_g)",
            "output = drop(self.dropout, output_h)",
        ),
    ),
    *faults_of(
        MODULES,
        "hf/test_hf_dropout.py",
        (
            "model: exact dropout with one table for all",
            "table = table.repeat_interleave(batch // table.shape[1], dim=1)",
            "table = table.contiguous()",
        ),
        (
            "model: the query stream's first input is not dropped",
            "return drop(self.dropout, self.mask_emb.to(output_h.dtype).expand(count, batch, -1))",
            "return self.mask_emb.to(output_h.dtype).expand(count, batch, -1)",
        ),
    ),
    *faults_of(
        MODULES,
        "hf/test_hf_options.py",
        (
            "model: clamp_len is not handed on",
            "clamp_len=self.clamp_len,",
            "clamp_len=-1,",
        ),
        select="all_arguments",
    ),
    *faults_of(
        "xlnet_fast/hf/families/xlnet/layers.py",
        "hf/test_hf_mechanics.py hf/test_hf_subclasses.py hf/test_hf_checkpointing.py",
        (
            "model: checkpoints do nothing",
            "class FastLayer(GradientCheckpointingLayer, XLNetLayer):",
            "class FastLayer(XLNetLayer):",
        ),
    ),
    *faults_of(
        PATCHING,
        "hf/test_hf_mechanics.py hf/test_hf_enable.py hf/test_hf_checkpointing.py",
        (
            "restore: leaves the options",
            '            module.__dict__.pop("_xlnet_fast_options", None)\n',
            "",
        ),
        (
            "restore: says nothing of a class that was changed again",
            'if "_xlnet_fast_original" not in vars(type(module)):',
            'if "_xlnet_fast_original" not in vars(type(module)) and False:',
        ),
    ),
    *faults_of(
        "xlnet_fast/hf/families/xlnet/family.py",
        "hf/test_hf_mechanics.py hf/test_hf_enable.py",
        (
            "accelerate: a second call keeps the first's options",
            '            transformer.__dict__["_xlnet_fast_options"] = options\n',
            '            transformer.__dict__.setdefault("_xlnet_fast_options", options)\n',
        ),
    ),
    *faults_of(
        "xlnet_fast/hf/families/xlnet/projections.py",
        "hf/test_hf_linear_attention.py",
        (
            "linear attention: a projection is a copy, not the parameter",
            "        module.weight = parameter\n",
            "        module.weight = nn.Parameter(parameter.detach().clone())\n",
        ),
        (
            "linear attention: restored in another order",
            "attention._parameters.update(ours | kept)",
            "attention._parameters.update(kept | ours)",
        ),
        (
            "linear attention: a parameter that is both q and o changes its shape",
            'part = "o" if name == "o" else "q, k, v and r"',
            'part = "any"',
        ),
        (
            "linear attention: a gradient keeps the old shape",
            "            parameter.grad = change(grad)\n",
            "            pass\n",
        ),
    ),
    *faults_of(
        "xlnet_fast/nn/projection.py",
        "hf/test_hf_linear_attention.py",
        (
            "linear attention: a called module multiplies in the dtype of x",
            "output = module(x.to(own))",
            "output = module(x)",
        ),
    ),
    *faults_of(
        "xlnet_fast/hf/families/xlnet/dense.py",
        "hf/test_hf_subclasses.py",
        (
            "dense: both streams see themselves",
            "for see_self in (True, False):",
            "for see_self in (True, True):",
        ),
    ),
    *faults_of(
        "xlnet_fast/hf/activations.py",
        "hf/test_hf_linear.py",
        (
            "feed forward: the approximate GELU is fused as the exact one",
            'exact = exact or (type(activation) is nn.GELU and activation.approximate == "none")',
            "exact = exact or type(activation) is nn.GELU",
        ),
    ),
    *faults_of(
        "xlnet_fast/hf/explanation.py",
        "hf/test_hf_explain.py",
        (
            "explain: the row of training says what inference takes",
            'training = mode == "training"',
            "training = False",
        ),
    ),
    *faults_of(
        LAYER,
        "hf/test_hf_classes.py",
        (
            "layer: fp32 parameters widen a bf16 layer",
            "    return parameter if parameter.dtype == x.dtype else parameter.to(x.dtype)\n",
            "    return parameter\n",
        ),
        select="float32",
    ),
    *faults_of(
        LAYER,
        "hf/test_hf_masks.py",
        (
            "layer: NaN in padding where probabilities are wanted",
            '                _both(operands.get(f"{name}_memory"), operands[name]), '
            "context.mask.key_padding\n",
            '                _both(operands.get(f"{name}_memory"), operands[name]), None\n',
        ),
        select="padding",
    ),
    *faults_of(
        INPUTS,
        "hf/test_hf_subclasses.py",
        (
            "arguments: an own causal mask is lost beside a permutation",
            "hidden = permuted if hidden is None else hidden | permuted",
            "hidden = permuted",
        ),
        select="causal_mask",
    ),
    *faults_of(
        MODULES,
        "hf/test_hf_outputs.py",
        (
            "model: an odd batch under bi_data",
            "if self.bi_data and batch % 2:",
            "if self.bi_data and batch < 2:",
        ),
        select="bi_data",
    ),
    *faults_of(
        MODULES,
        "hf/test_hf_subclasses.py",
        (
            "model: an own layer of a compact target",
            "dense=output_attentions or not all(ours) or (targets and not self.__fuse_dropout()),",
            "dense=output_attentions,",
        ),
    ),
    *faults_of(
        "xlnet_fast/hf/adoption.py",
        "hf/test_hf_mechanics.py hf/test_hf_subclasses.py",
        (
            "model: copies have the plain class",
            '        "__reduce_ex__": _reduce,\n',
            "",
        ),
    ),
]
