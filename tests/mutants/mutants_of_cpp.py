"""Faults of the CPU's C++ kernels. One instruction set is compiled anew, and its tests run."""

from __future__ import annotations

from mutant_fault import faults_of

ATTENTION = "kernels/test_cpu_rel_attention.py kernels/test_cpu_entries.py kernels/test_window.py"
SCORES = "csrc/cpu/rel_attention_scores.h"
BACKWARD = "csrc/cpu/rel_attention_backward.h"
SOFTMAX = "csrc/cpu/masked_softmax_rows.h"

FAULTS = [
    *faults_of(
        "csrc/cpu/simd.h",
        "kernels/test_cpu_rel_attention.py",
        (
            "cpu: what a huge maximum lost by rounding comes back",
            "const bool fused = -0x1p28f < most && most < 0x1p28f;",
            "const bool fused = true;",
        ),
        select="any_size and avx2",
        objects=("rel_attention_avx2",),
    ),
    *faults_of(
        SCORES,
        ATTENTION,
        (
            "cpu: p one too large",
            "shift[i] = columns.begin - position[i] + sizes_.current;",
            "shift[i] = columns.begin - position[i] + sizes_.current + 1;",
        ),
        (
            "cpu: a padded row does not see itself",
            "if (!has_more && !(sees_self && head_.padding()[self] != 0)) {",
            "if (!has_more) {",
        ),
        (
            "cpu: a window's tile begins at its last row's key",
            "seen.begin = max_of(seen.begin, window(lowest).begin);",
            "seen.begin = max_of(seen.begin, window(highest).begin);",
        ),
        (
            "cpu: a causal tile ends at its first row's key",
            "seen.end = min_of(seen.end, keys_.memory + highest + 1);",
            "seen.end = min_of(seen.end, keys_.memory + lowest + 1);",
        ),
        (
            "cpu: a row that sees nothing is uniform over its tile's keys alone",
            "if (!exponentials(rounded, rounded_stride) && !is_whole) {",
            "if (!exponentials(rounded, rounded_stride) && columns.size() == 0) {",
        ),
        select="baseline",
        objects=("rel_attention_baseline",),
    ),
    *faults_of(
        "csrc/cpu/rel_attention_head.h",
        ATTENTION,
        (
            "cpu: the last key that is not padded is left out",
            "visible_ = {min_of(visible_.begin, j), j + 1};",
            "visible_ = {min_of(visible_.begin, j), j};",
        ),
        select="baseline",
        objects=("rel_attention_baseline",),
    ),
    *faults_of(
        BACKWARD,
        ATTENTION,
        (
            "cpu: dS is not scaled",
            "store(dp + j, load(p + j) * (load(dp + j) - mean) * scale);",
            "store(dp + j, load(p + j) * (load(dp + j) - mean));",
        ),
        (
            "cpu: dr of a group's last task is lost",
            "for (int64_t t = first + 1; t < first + tasks.per_group; ++t) {",
            "for (int64_t t = first + 1; t < first + tasks.per_group - 1; ++t) {",
        ),
        (
            "cpu: dc keeps D's rounding",
            "return differing.value() - all.value() * share.value();",
            "return differing.value();",
        ),
        select="baseline",
        objects=("rel_attention_baseline",),
    ),
    *faults_of(
        "csrc/cpu/rel_attention_forward.h",
        ATTENTION,
        (
            "cpu: dropout does not scale",
            "const float keep_scale = keys_.dropout ? keys_.keep_scale : 1.0f;",
            "const float keep_scale = 1.0f;",
        ),
        select="baseline and (drop or definition)",
        objects=("rel_attention_baseline",),
    ),
    *faults_of(
        SOFTMAX,
        "kernels/test_cpu_small_ops.py",
        (
            "cpu: columns of the table that no key meets keep what lay there",
            "      clear_outside(d_positions);\n",
            "",
        ),
        (
            "cpu: what lies beyond a window keeps what lay there",
            "      clear_beyond(out);\n",
            "",
        ),
        (
            "cpu: a uniform row's gradient stays in its window",
            "if (beyond != 0.0f) columns_ = {0, p_.keys};",
            "(void)beyond;",
        ),
        select="baseline",
        objects=("masked_softmax_baseline",),
    ),
    *faults_of(
        "csrc/cpu/dropout_rows.h",
        "kernels/test_cpu_dropout.py",
        (
            "cpu: the parts of a long row are dropped alike",
            "at.group = static_cast<uint32_t>(key / 4);",
            "at.group = 0;",
        ),
        (
            "cpu: what is dropped is multiplied by zero",
            "to.store(j, select(mask, from.load(j) * scale, zero));",
            "to.store(j, from.load(j) * select(mask, scale, zero));",
        ),
        select="baseline",
        objects=("dropout_baseline",),
    ),
    *faults_of(
        "csrc/cpu/linear_operands.h",
        "kernels/test_cpu_linear.py",
        (
            "cpu: a residual read by the rows of the output",
            "row_of(p.residual, i * p.residual_row)",
            "row_of(p.residual, i * p.out_row)",
        ),
        select="baseline",
        objects=("linear_baseline",),
    ),
    *faults_of(
        "csrc/cpu/linear_few_rows.h",
        "kernels/test_cpu_linear.py",
        (
            "cpu: a long sum of few rows forgets its first words",
            "k == 0, apart, to + j",
            "k == depth.begin, apart, to + j",
        ),
        (
            "cpu: short sums added to what the memory held",
            "at.last && !alone ?",
            "at.last ?",
        ),
        select="baseline",
        objects=("linear_baseline",),
    ),
    *faults_of(
        "csrc/cpu/philox.cpp",
        "test_philox.py",
        (
            "cpu: a thread's rows begin at the batch's first",
            "at.row = static_cast<uint32_t>(p.rows.begin + flat % p.rows.size());",
            "at.row = static_cast<uint32_t>(flat % p.rows.size());",
        ),
    ),
]
