"""Faults of the ops: their autograd, the choice of a backend, what is proved of one, dropout."""

from __future__ import annotations

from mutant_fault import faults_of

REGISTRY = "xlnet_fast/ops/_contracts/_registry.py"
CONTRACTS = "xlnet_fast/ops/_contracts/rel_attention.py"
DISPATCH = "xlnet_fast/ops/_dispatch.py"
TWO_STREAMS = "ops/test_backend_interface.py ops/test_contracts.py"

FAULTS = [
    *faults_of(
        "xlnet_fast/ops/settled.py",
        "ops/test_settled.py",
        (
            "settled: operands of another shape pass unchecked",
            "(type(x), x.shape, x.dtype,",
            "(type(x), x.dtype,",
        ),
        (
            "settled: a gradient that is asked for later is lost",
            "x.layout, x.requires_grad)",
            "x.layout)",
        ),
        (
            "settled: another mask is taken for the first",
            "numbers, *map(_identity, objects),",
            "numbers,",
        ),
        (
            "settled: a mask that was changed before the backward pass is not told",
            "ctx.save_for_backward(seed, *results, *operands, *call.inputs)",
            "ctx.save_for_backward(seed, *results, *operands)",
        ),
        (
            "settled: gradients without a derivative",
            "looked_at = torch.is_grad_enabled() or not transforms",
            "looked_at = not transforms",
        ),
        (
            "settled: the op of a backward pass is not called under a mode",
            " or not transforms.nobody_looks_on()\n",
            "\n",
        ),
        (
            "settled: subclasses of tensors lose their class",
            "        if not transforms.are_plain(operands):\n            return self\n",
            "",
        ),
        (
            "settled: positions beyond the table are read",
            "            check_positions(streams[-1].positions, keys.current)\n",
            "",
        ),
    ),
    *faults_of(
        "xlnet_fast/files.py",
        "test_files.py",
        (
            "files: written in its place, half of it for a moment",
            'temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")',
            "temporary = path",
        ),
        (
            "files: what was half written stays",
            "        temporary.unlink(missing_ok=True)",
            "        pass",
        ),
    ),
    *faults_of(
        REGISTRY,
        "ops/test_contracts.py ops/test_backend_interface.py",
        (
            "autograd: unwanted gradients are returned",
            "return [v if want else None for v, want in zip(values, wanted, strict=True)]",
            "return list(values)",
        ),
        (
            "autograd: a stream without gradient gets ones",
            "torch.zeros_like(out) if grad is None else grad",
            "torch.ones_like(out) if grad is None else grad",
        ),
        (
            "autograd: statistics are differentiable",
            "        ctx.mark_non_differentiable(*outs[op.queries :])\n",
            "",
        ),
        select="two_streams or only_where_asked or statistics",
    ),
    *faults_of(
        REGISTRY,
        "ops/test_transforms.py",
        (
            "autograd: no derivative of a gradient",
            "if torch.is_grad_enabled() or transforms.active():",
            "if transforms.active():",
        ),
    ),
    *faults_of(
        REGISTRY,
        "ops/test_qualification_proof.py ops/test_dispatch.py",
        (
            "launch: memory that ran out revokes a backend",
            "except (torch.OutOfMemoryError, ArgumentError):",
            "except ArgumentError:",
        ),
        (
            "launch: what failed is not remembered",
            "proof.revoke(first, error)",
            "pass",
        ),
    ),
    *faults_of(
        CONTRACTS,
        TWO_STREAMS,
        (
            "two streams: the content stream does not see itself",
            "for see_self in (True, False))",
            "for see_self in (False, False))",
        ),
        (
            "two streams: the same seed for both",
            "seed + s if s else seed",
            "seed",
        ),
        (
            "two streams: gradients of the second stream lost",
            "[*(asked[s] for s in live), *asked[len(queries) :]],",
            "[asked[live[0]], *(None for s in live[1:]), *asked[len(queries) :]],",
        ),
        (
            "attention: determinism is not told",
            "torch.are_deterministic_algorithms_enabled(),",
            "False,",
        ),
        (
            "attention: no gradient of the memory's values",
            "likes = (*queries, *shared, *segment_operands)",
            "likes = (*queries, *shared[:3], None, *shared[4:], *segment_operands)",
        ),
        select="two_streams or backend_interface",
    ),
    *faults_of(
        "xlnet_fast/ops/_contracts/masked_softmax.py",
        "ops/test_contracts.py",
        (
            "softmax: gradients with the strides of the scores",
            "return tuple(inputs.scores.new_empty(0 if x is None else x.shape) for x in "
            "inputs.terms)",
            "return tuple(\n"
            "        inputs.scores.new_empty(0) if x is None else torch.empty_like(x)\n"
            "        for x in inputs.terms\n    )",
        ),
        select="probabilities",
    ),
    *faults_of(
        "xlnet_fast/ops/rel_attention.py",
        "ops/test_asked_of_the_dispatcher.py ops/test_contracts.py qualifier/test_checks.py",
        (
            "attention: float64 is cast under autocast",
            "if isinstance(x, Tensor) and x.is_floating_point() and x.dtype != torch.float64",
            "if isinstance(x, Tensor) and x.is_floating_point()",
        ),
        (
            "attention: segments of the memory for the content rows",
            "content_segments = None if segments is None else segments[:, memory_length:]",
            "content_segments = None if segments is None else segments[:, : q_h.shape[1]]",
        ),
        (
            "attention: the scale of heads that are twice as wide",
            "scale = q.shape[3] ** -0.5 if scale is None else scale",
            "scale = (2 * q.shape[3]) ** -0.5 if scale is None else scale",
        ),
        (
            "attention: a call with dropout asks for a record without",
            '        "dropout": dropout_p > 0.0,\n        "memory"',
            '        "dropout": False,\n        "memory"',
        ),
        (
            "attention: a frozen query needs no backward pass",
            "x is not None and x.requires_grad for x in operands\n",
            "x is not None and x.requires_grad for x in operands[:1]\n",
        ),
        select="asked or autocast or two_streams or calls_of_a_class",
    ),
    *faults_of(
        "xlnet_fast/ops/_validation.py",
        "ops/test_validation.py ops/test_validation_small_ops.py",
        (
            "validation: a table of positions that is a row short",
            "needed = (keys + 1 if causal else keys + keys - memory_length) - start",
            "needed = (keys if causal else keys + keys - memory_length) - start",
        ),
        (
            "validation: a row of a table that starts later is not spared",
            "needed = (keys + 1 if causal else keys + keys - memory_length) - start",
            "needed = keys + 1 if causal else keys + keys - memory_length",
        ),
        (
            "validation: a position behind the segment",
            "if int(positions.max()) >= current:",
            "if int(positions.max()) > current:",
        ),
    ),
    *faults_of(
        DISPATCH,
        "ops/test_dispatch.py ops/test_dispatch_cuda.py ops/test_qualification_proof.py",
        (
            "dispatch: the slowest that was proved",
            "        if speed > fastest:",
            "        if best is None or speed < fastest:",
        ),
        (
            "dispatch: a GPU kernel without a record",
            "    if not capability.gpu_kernel:\n        return None\n    verdict",
            "    if not capability.gpu_kernel or not request.proved:\n        return None\n"
            "    verdict",
        ),
        (
            "dispatch: a GPU kernel that was proved and not timed",
            "return None if verdict[2] is not None else verdict[3]",
            "return None",
        ),
        (
            "dispatch: what was proved wrong",
            "return None if verdict is None or verdict[1] else verdict[3]",
            "return None",
        ),
        (
            "dispatch: what was revoked is taken",
            "revoked = proof.REVOKED.get(capability.name)",
            "revoked = None",
        ),
        (
            "dispatch: a named backend falls back",
            "                if obstacle is not None:\n"
            "                    raise BackendUnavailable(\n"
            '                        f"backend {backend!r} cannot run {request.op}: {obstacle}"\n'
            "                    )\n",
            "                if obstacle is not None:\n"
            "                    return _choose_best(request)\n",
        ),
        (
            "dispatch: nothing takes over from a GPU kernel",
            'return f"{choice.backend}|sdpa"',
            "return choice.backend",
        ),
        (
            "dispatch: a named backend with one that takes over",
            'if backend == "auto" and choice.backend in GPU_KERNELS:',
            "if choice.backend in GPU_KERNELS:",
        ),
        (
            "dispatch: misaligned rows are not looked at",
            'wanted = backend == "cuda" or request.verdict("cuda") is not None',
            'wanted = backend == "cuda"',
        ),
    ),
    *faults_of(
        "xlnet_fast/ops/qualification/record.py",
        "ops/test_qualification_record.py ops/test_qualification_proof.py",
        (
            "record: the largest class that covers",
            "return min(fitting)[1] if fitting else None",
            "return max(fitting)[1] if fitting else None",
        ),
        (
            "record: a class that lacks a feature covers",
            "if wanted <= has]",
            "if wanted & has or not wanted]",
        ),
        (
            "record: the checksum is not looked at",
            'if found != checksum({"schema": schema, **content}):',
            "if found is None:",
        ),
        (
            "record: the driver does not count",
            "            if own != others:",
            '            if own != others and field.name != "driver":',
        ),
    ),
    *faults_of(
        "xlnet_fast/ops/qualification/proof.py",
        "ops/test_qualification_proof.py ops/test_qualification_jobs.py",
        (
            "proof: the row of the forward pass for a call that needs gradients",
            "direction = BACKWARD if needs_grad else FORWARD",
            "direction = FORWARD",
        ),
        (
            "proof: a job qualifies at first use",
            "    if is_job():\n        return pinned(identity)\n",
            "",
        ),
    ),
    *faults_of(
        "xlnet_fast/ops/qualification/files.py",
        "ops/test_qualification_proof.py ops/test_qualification_jobs.py",
        (
            "files: a record that ships speaks for compiled kernels",
            'rows = tuple(row for row in record.rows if row.backend in ("triton", "sdpa"))',
            "rows = record.rows",
        ),
        (
            "files: a named file that is stale gives way to the cache",
            '            warn_once(f"{FILE_VARIABLE}: {found.reason}; nothing counts as proved")\n'
            "        return found",
            '            warn_once(f"{FILE_VARIABLE}: {found.reason}; nothing counts as proved")\n'
            "        else:\n            return found",
        ),
    ),
    *faults_of(
        "xlnet_fast/ops/qualification/jobs.py",
        "ops/test_qualification_proof.py ops/test_qualification_jobs.py",
        (
            "jobs: the pin of a launcher's last job counts",
            'return first if _lives(first["process"], first["start"]) else None',
            "return first",
        ),
        (
            "jobs: the pin of a job that lives is removed for its age",
            "if file.stat().st_mtime < limit and _read(file) is None:",
            "if file.stat().st_mtime < limit:",
        ),
    ),
    *faults_of(
        "xlnet_fast/ops/dropout.py",
        "nn/test_nn_dropout.py kernels/test_cpu_dropout.py",
        (
            "dropout: not made up for",
            ".contiguous().mul_(1.0 / (1.0 - p))",
            ".contiguous()",
        ),
        (
            "dropout: another mask in the backward pass",
            "return dropout(grad, ctx.p, seed), None, None",
            "return dropout(grad, ctx.p, seed + 1), None, None",
        ),
    ),
    *faults_of(
        "xlnet_fast/ops/linear.py",
        "ops/test_linear.py ops/test_linear_library.py",
        (
            "linear: GELU taken twice in its gradient",
            "before = _product(x, weight, bias)",
            "before = F.gelu(_product(x, weight, bias))",
        ),
        (
            "linear: ours where the record calls it wrong",
            "    if not right:\n",
            "    if not right and speed is not None:\n",
        ),
    ),
    *faults_of(
        "xlnet_fast/ops/concat_memory.py",
        "ops/test_contracts.py ops/test_properties.py kernels/test_sdpa.py",
        (
            "memory: a row too few",
            "start = max(0, total - mem_len) if mem_len else 0",
            "start = max(0, total - mem_len + 1) if mem_len else 0",
        ),
        (
            "memory: reuse_len beyond the segment",
            "kept = min(first.shape[0], reuse_len) if reuse_len else first.shape[0]",
            "kept = reuse_len or first.shape[0]",
        ),
        select="memor",
    ),
]
