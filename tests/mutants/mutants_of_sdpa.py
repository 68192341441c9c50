"""Faults of the chunks (CPU) and blocks (GPU) of backend sdpa."""

from __future__ import annotations

from mutant_fault import faults_of

CHUNKS = "xlnet_fast/kernels/sdpa/rel_attention.py"
BLOCKS = "xlnet_fast/kernels/sdpa/few_launches.py"
BLOCKS_BACKWARD = "xlnet_fast/kernels/sdpa/few_launches_backward.py"

FAULTS = [
    *faults_of(
        CHUNKS,
        "kernels/test_sdpa.py",
        (
            "chunks: the window of r a row off",
            "first = chunk.j0 - chunk.highest + self.current - self.r_start\n",
            "first = chunk.j0 - chunk.highest + self.current - self.r_start - 1\n",
        ),
        (
            "chunks: all groups read the first table",
            "r = self.r[chunk.group].narrow(1, start, length)  # (N, W, D)\n        table",
            "r = self.r[0].narrow(1, start, length)  # (N, W, D)\n        table",
        ),
        (
            "chunks: dropout's mask of the first rows",
            "            (chunk.i0, chunk.i1),\n            chunk.j1,",
            "            (0, chunk.i1 - chunk.i0),\n            chunk.j1,",
        ),
        (
            "chunks: dropout does not scale",
            "return keep.to(self.score_dtype).mul_(1.0 / (1.0 - self.dropout_p))",
            "return keep.to(self.score_dtype)",
        ),
        (
            "chunks: dv from the probabilities before dropout",
            "accumulate_bmm(d_v, dropped.to(dtype).transpose(1, 2), d_chunk)",
            "accumulate_bmm(d_v, probabilities.to(dtype).transpose(1, 2), d_chunk)",
        ),
        (
            "chunks: dS without dropout",
            "            d_scores *= factor.flatten(0, 1)\n",
            "",
        ),
        (
            "chunks: dq lacks the position part",
            "    dq = dq_w + dq_r\n",
            "    dq = dq_w.clone()\n",
        ),
        (
            "chunks: dq lacks the segment part",
            "        dq += dc * difference[:, None, :]\n",
            "",
        ),
        (
            "chunks: the biases' gradients swapped",
            "    totals.vectors[0] += dq_w.sum((0, 2))\n",
            "    totals.vectors[0] += dq_r.sum((0, 2))\n",
        ),
        (
            "chunks: seg_embed's gradient has one sign",
            "torch.stack([-totals.vectors[3], totals.vectors[3]])",
            "torch.stack([totals.vectors[3], totals.vectors[3]])",
        ),
        (
            "chunks: dr of a group overwritten by its last chunk",
            "narrow(1, start, length).add_(torch.bmm(d_table.transpose(1, 2), q_r))",
            "narrow(1, start, length).copy_(torch.bmm(d_table.transpose(1, 2), q_r))",
        ),
        (
            "chunks: dk of the second stream alone",
            "accumulate_bmm(attention.of_keys(totals.k, chunk), d_scores",
            "accumulate_bmm(attention.of_keys(totals.k, chunk).zero_(), d_scores",
        ),
        (
            "chunks: rows of r that nobody reads keep what lay there",
            "        r.zero_()\n        r[:, :used]",
            "        r[:, :used]",
        ),
        (
            "chunks: sums over chunks in the working dtype",
            "return torch.zeros_like(like, dtype=wide_dtype(like))",
            "return torch.zeros_like(like)",
        ),
        (
            "chunks: absent rows have a gradient",
            "            grad_out = grad_out.masked_fill("
            "(queries.positions < 0)[:, :, None, None], 0)\n        attention",
            "            grad_out = grad_out.clone()\n        attention",
        ),
        (
            "chunks: fp16 scores in fp16",
            "self.score_dtype = torch.float32 if q.dtype == torch.float16 else q.dtype",
            "self.score_dtype = q.dtype",
        ),
    ),
    *faults_of(
        CHUNKS,
        "kernels/test_window.py",
        (
            "chunks: a row that sees none of its window is uniform over it",
            "(self.mask.may_hide_all and self._hides_all(chunk))",
            "self._hides_all(chunk) and chunk.j0 == 0",
        ),
        (
            "chunks: dropout's mask of the first keys",
            ")[..., chunk.j0 :]",
            ")[..., : chunk.width]",
        ),
        (
            "chunks: a window computes all keys",
            "span = self._span(lowest, highest)",
            "span = range(self.keys)",
        ),
        select="sdpa",
    ),
    *faults_of(
        BLOCKS,
        "kernels/test_window.py",
        (
            "blocks: a window leaves out keys that uniform rows see",
            "self.mask.has_window and not self.mask.may_hide_all",
            "self.mask.has_window",
        ),
        select="sdpa",
    ),
    *faults_of(
        CHUNKS,
        "kernels/test_sdpa.py",
        (
            "chunks: nobody keeps to the size of a chunk",
            "            rows = min(self.queries, max(1, CHUNK_ELEMENTS // columns))\n",
            "            rows = min(self.queries, 4 * max(1, CHUNK_ELEMENTS // columns))\n",
        ),
        select="chunk",
    ),
    *faults_of(
        "xlnet_fast/kernels/sdpa/common.py",
        "kernels/test_sdpa.py",
        (
            "chunks: infinity in the memory's padding",
            "padding = None if key_padding is None else key_padding[:, keys]",
            "padding = None if key_padding is None or keys.stop else key_padding[:, keys]",
        ),
    ),
    *faults_of(
        "xlnet_fast/kernels/sdpa/masked_softmax.py",
        "kernels/test_sdpa.py ops/test_properties.py",
        (
            "softmax: the gradient is not scaled",
            "        total *= inputs.scale\n        d_scores[part] = total",
            "        d_scores[part] = total",
        ),
        (
            "softmax: the last of two keys that read one row of the table counts",
            "d_table.scatter_add_(-1, index.expand(-1, grad.shape[1], -1, -1), grad * inside)",
            "d_table.scatter_(-1, index.expand(-1, grad.shape[1], -1, -1), grad * inside)",
        ),
        select="softmax or probabilities",
    ),
    *faults_of(
        "xlnet_fast/kernels/sdpa/concat_memory.py",
        "kernels/test_sdpa.py ops/test_properties.py ops/test_contracts.py",
        (
            "memory: a cut that passes over the whole old memory",
            "x[max(0, start - length) : kept]",
            "x[:kept]",
        ),
        select="memor",
    ),
    *faults_of(
        BLOCKS,
        "kernels/test_sdpa_few_launches.py",
        (
            "blocks: the skewed view forgets the block's rows",
            "return block.j0 - block.i0 - row + self.shared.current - self.shared.r_start",
            "return block.j0 - row + self.shared.current - self.shared.r_start",
        ),
        (
            "blocks: the diagonal of the first block in every block",
            "hidden.diagonal(memory + block.i0 - block.j0, 1, 2).fill_(False)",
            "hidden.diagonal(memory - block.j0, 1, 2).fill_(False)",
        ),
        (
            "blocks: a padding that is one row for all lets all see one key",
            "hidden = hidden.repeat(1, block.i1 - block.i0, 1)",
            "hidden = hidden.clone()",
        ),
        (
            "blocks: spare columns before the table",
            "spare = spare if spare <= start else 0",
            "spare = min(spare, start + 1)",
        ),
        (
            "blocks: a hidden score that fp16 cannot hold",
            "self.lowest = HIDDEN_SCORE if finite.min < HIDDEN_SCORE else finite.min",
            "self.lowest = HIDDEN_SCORE if finite.min < 0 else finite.min",
        ),
    ),
    *faults_of(
        BLOCKS_BACKWARD,
        "kernels/test_sdpa_few_launches.py",
        (
            "blocks: a second block overwrites the keys' gradient",
            "once = len(work) == 1 and all(",
            "once = all(",
        ),
        (
            "blocks: dv without dropout's scale",
            "totals.v.add(block, dropped.transpose(1, 2), d_out, shared.factor)",
            "totals.v.add(block, dropped.transpose(1, 2), d_out, 1.0)",
        ),
        (
            "blocks: the segment's gradient is not scaled",
            "dtype=wide_dtype(grad_out)) * shared.scale",
            "dtype=wide_dtype(grad_out))",
        ),
    ),
]
