"""Faults of the foundation (masks, dropout's bits, the tolerance) and of the reference."""

from __future__ import annotations

from mutant_fault import faults_of

FAULTS = [
    *faults_of(
        "xlnet_fast/masks.py",
        "test_masks.py test_reference.py",
        (
            "masks: bits packed into a byte too few",
            "groups = padded.view(batch, queries, (keys + 7) // 8, 8)",
            "groups = padded[..., : keys // 8 * 8].view(batch, queries, keys // 8, 8)",
        ),
        (
            "masks: equal ranks see each other",
            "self.rank_q[:, rows, None] <= self.rank_k",
            "self.rank_q[:, rows, None] < self.rank_k",
        ),
        (
            "masks: causal hides the key at its own position",
            "parts.append(key > position + memory_length)",
            "parts.append(key >= position + memory_length)",
        ),
        (
            "masks: the window of same_length a key too short",
            "parts.append(key < position)",
            "parts.append(key <= position)",
        ),
        (
            "masks: a window a key too wide to the left",
            "[key < start - left]",
            "[key < start - left - 1]",
        ),
        (
            "masks: a window a key too wide to the right",
            "[key >= start + (chunk + right)]",
            "[key > start + (chunk + right)]",
        ),
        (
            "masks: chunks counted from the memory's first key",
            'position.div(chunk, rounding_mode="floor") * chunk',
            "(position + memory_length) // chunk * chunk - memory_length",
        ),
        (
            "masks: a window not asked whether a mask hides nothing",
            "not self.causal and not self.has_window and all(",
            "not self.causal and all(",
        ),
        (
            "masks: see_self forgets the memory",
            "hidden = hidden & (key != position + memory_length)",
            "hidden = hidden & (key != position)",
        ),
        (
            "masks: padding of another batch element",
            "return part.narrow(0, start, length)",
            "return part.narrow(0, 0, length)",
        ),
        (
            "masks: ranks not asked whether a mask hides nothing",
            "parts = (self.key_padding, self.rank_q, self.bits)",
            "parts = (self.key_padding, self.bits)",
        ),
        (
            "masks: same_length allowed without causal",
            "if self.same_length and not self.causal:",
            "if self.same_length and not self.causal and self.see_self:",
        ),
    ),
    *faults_of(
        "xlnet_fast/reference.py",
        "test_reference.py",
        (
            "reference: p one too large",
            "first = keys - memory_length - start",
            "first = keys - memory_length - start + 1",
        ),
        (
            "reference: what lies outside of the table is read at its end",
            ".expand(batch, heads, queries, keys)\n"
            "    return position_scores.gather(-1, index).masked_fill(outside, 0)",
            ".expand(batch, heads, queries, keys)\n    return position_scores.gather(-1, index)",
        ),
        (
            "reference: the sign of the segment term",
            "seg_embed[1] - seg_embed[0]",
            "seg_embed[0] - seg_embed[1]",
        ),
        (
            "reference: the content bias in the position term",
            'torch.einsum("bind,bpnd->bnip", q + r_r_bias, r_of_batch)',
            'torch.einsum("bind,bpnd->bnip", q + r_w_bias, r_of_batch)',
        ),
        (
            "reference: a scale that leaves the segment term out",
            "total = total + segment_scores.to(wide)[..., None] * differ",
            "total = total + segment_scores.to(wide)[..., None] * differ / scale",
        ),
        (
            "reference: groups of r dealt in turn",
            "r.repeat_interleave(batch // r.shape[0], dim=0)",
            "r.repeat(batch // r.shape[0], 1, 1, 1)",
        ),
        (
            "reference: a row that sees nothing is NaN",
            "torch.where(hidden, HIDDEN_SCORE, 0.0)",
            'torch.where(hidden, float("-inf"), 0.0)',
        ),
        (
            "reference: hidden scores filled in, so their gradient is lost",
            "total = total + torch.where(hidden, HIDDEN_SCORE, 0.0).to(wide)[:, None]",
            "total = total.masked_fill(hidden[:, None], HIDDEN_SCORE)",
        ),
        (
            "reference: the query stream sees itself",
            "query_mask = content_segments, replace(mask, see_self=False)",
            "query_mask = content_segments, replace(mask, see_self=True)",
        ),
        (
            "reference: absent rows are not zero",
            "out = out.masked_fill((positions < 0)[:, :, None, None], 0)",
            "out = out.masked_fill((positions < -1)[:, :, None, None], 0)",
        ),
        (
            "reference: memory behind the current keys",
            "torch.cat([memory, current], dim=1)",
            "torch.cat([current, memory], dim=1)",
        ),
        (
            "reference: the memory keeps its first rows",
            "return (joined[-mem_len:] if mem_len else joined)",
            "return (joined[:mem_len] if mem_len else joined)",
        ),
    ),
    *faults_of(
        "xlnet_fast/reference.py",
        "test_reference.py test_philox.py ops/test_properties.py kernels/test_sdpa.py",
        (
            "reference: dropout not made up for",
            "probabilities = probabilities * keep / (1.0 - dropout_p)",
            "probabilities = probabilities * keep",
        ),
    ),
    *faults_of(
        "xlnet_fast/philox.py",
        "test_philox.py",
        ("philox: nine rounds", "_ROUNDS = 10", "_ROUNDS = 9"),
        (
            "philox: what equals the threshold is dropped",
            "torch.stack([word >= threshold for word in words], dim=-1)",
            "torch.stack([word > threshold for word in words], dim=-1)",
        ),
        (
            "philox: a range of the batch begins at 0",
            "heads_flat = torch.arange(first * heads, last * heads, device=device)",
            "heads_flat = torch.arange((last - first) * heads, device=device)",
        ),
        (
            "philox: a carry is lost",
            "high = (upper + (lower >> 16)) >> 16",
            "high = upper >> 16",
        ),
        (
            "philox: the upper half of a seed is not used",
            "(seed & _LOW32, (seed >> 32) & _LOW32),",
            "(seed & _LOW32, 0 * seed),",
        ),
        (
            "philox: p = 1 is taken",
            "if not 0.0 <= p < 1.0:",
            "if not 0.0 <= p <= 1.0:",
        ),
    ),
    *faults_of(
        "xlnet_fast/tolerance.py",
        "test_tolerance.py",
        ("tolerance: four times eager's error", "FACTOR = 2.0", "FACTOR = 4.0"),
        (
            "tolerance: a broken eager widens the bound",
            "errors_of_eager.masked_fill(~errors_of_eager.isfinite(), 0.0).max()",
            "errors_of_eager.max()",
        ),
        (
            "tolerance: NaN counts as no error",
            "torch.where(comparable, errors, torch.where(same, 0.0, torch.inf))",
            "torch.where(comparable, errors, 0.0)",
        ),
        (
            "tolerance: one finite element speaks for all",
            "if bool(comparable.all()):",
            "if bool(comparable.any()):",
        ),
    ),
    *faults_of(
        "xlnet_fast/masks.py",
        "kernels/test_sdpa.py hf/test_hf_masks.py",
        (
            "masks: infinite padded keys stay",
            "torch.nan_to_num(x, 0.0, 0.0, 0.0)",
            "torch.nan_to_num(x, 0.0)",
        ),
        select="may_hold_anything or infinity",
    ),
    *faults_of(
        "xlnet_fast/reference.py",
        "ops/test_contracts.py",
        (
            "reference: both streams with the same dropout",
            "seed=None if seed is None else seed + 1,",
            "seed=seed,",
        ),
        select="two_streams",
    ),
]
