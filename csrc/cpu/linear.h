// Linear layers on the CPU: the entry and the table of kernels behind it. The kernels are in
// linear_tiles.h, compiled once for each instruction set by linear_<isa>.cpp.
#pragma once

#include <string>

#include "../params.h"
#include "rel_attention.h"

namespace xlnet_fast::cpu {

// Rows from which on the weight is packed; fewer are multiplied straight from where it lies, a
// block of so many at once.
constexpr int64_t kLeastPackedRows = 97, kFewRows = 48;
// Results of a block of few rows at most, and the panels whose multiple its columns are.
constexpr int64_t kFewResults = 1 << 14;
constexpr int64_t kFewPanels = 3;
// Rows of a block at most: its results stay in the second-level cache.
constexpr int64_t kLinearRows = 512;

// The kernels of one instruction set. Columns are counted in panels of `panel`.
struct LinearKernels {
  const char* isa;
  bool multiplies_bfloat16;  // takes bfloat16 tensors, and no other
  int64_t panel;
  int64_t scratch_bytes;  // that a thread needs, 64-byte aligned
  // Whole panels, or to the last column; of many rows at most kLinearRows.
  void (*forward)(const LinearParams&, Range rows, Range columns, char* scratch);
};

#if defined(XLNET_FAST_VECTOR_KERNELS)
extern const LinearKernels linear_baseline;
#endif
#if defined(XLNET_FAST_X86_KERNELS)
extern const LinearKernels linear_avx2, linear_avx512, linear_avx512_bf16;
#endif

// Whether `isa` ("auto" or one of attention_isa_available()) has a kernel for this dtype here.
bool linear_takes(Dtype dtype, const std::string& isa);

// Fills params.out; the same bits on any number of threads.
// Throws std::invalid_argument for sizes, strides, a dtype or an `isa` that cannot be used.
void linear(const LinearParams& params, int threads, const std::string& isa);

}  // namespace xlnet_fast::cpu
