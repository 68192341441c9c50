// Attention probabilities and their gradients on the CPU: entries and the table of kernels behind
// them. The kernels are in masked_softmax_rows.h, compiled once for each instruction set by
// masked_softmax_<isa>.cpp.
#pragma once

#include <string>

#include "../params.h"
#include "philox.h"
#include "rel_attention.h"

namespace xlnet_fast::cpu {

struct MaskedSoftmaxCall {
  MaskedSoftmaxParams params;
  KeepRow keep_row = nullptr;
};

// The kernels of one instruction set, for rows counted as (b * N + n) * I + i.
struct MaskedSoftmaxKernels {
  const char* isa;
  int64_t (*scratch_bytes)(const MaskedSoftmaxParams&);  // that a call needs, 64-byte aligned
  void (*forward)(const MaskedSoftmaxCall&, Range rows, char* scratch);
  void (*backward)(const MaskedSoftmaxCall&, Range rows, char* scratch);
};

#if defined(XLNET_FAST_VECTOR_KERNELS)
extern const MaskedSoftmaxKernels masked_softmax_baseline;
#endif
#if defined(XLNET_FAST_X86_KERNELS)
extern const MaskedSoftmaxKernels masked_softmax_avx2, masked_softmax_avx512;
#endif

// Fills params.out. `isa` is "auto" or the highest of attention_isa_available() to use.
// Throws std::invalid_argument for sizes or an `isa` that cannot be used.
void masked_softmax_forward(const MaskedSoftmaxParams& params, int threads, const std::string& isa);

// Fills params.d_scores, and d_position_scores and d_segment_scores where there are such scores.
void masked_softmax_backward(const MaskedSoftmaxParams& params, int threads,
                             const std::string& isa);

}  // namespace xlnet_fast::cpu
