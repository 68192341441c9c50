// Dropout of hidden states on the CPU: the entry and the table of kernels behind it. The kernels
// are in dropout_rows.h, compiled once for each instruction set by dropout_<isa>.cpp.
#pragma once

#include <string>

#include "../params.h"
#include "philox.h"
#include "rel_attention.h"

namespace xlnet_fast::cpu {

struct DropoutCall {
  DropoutParams params;
  KeepRow keep_row = nullptr;
};

// The kernels of one instruction set. A chunk is what one buffer holds: whole rows, or a part of
// one; chunks are numbered as they lie in memory.
struct DropoutKernels {
  const char* isa;
  int64_t (*chunks)(const DropoutParams&);
  void (*run)(const DropoutCall&, Range chunks);
};

#if defined(XLNET_FAST_VECTOR_KERNELS)
extern const DropoutKernels dropout_baseline;
#endif
#if defined(XLNET_FAST_X86_KERNELS)
extern const DropoutKernels dropout_avx2, dropout_avx512;
#endif

// Fills params.out. `isa` is "auto" or the highest of attention_isa_available() to use.
// Throws std::invalid_argument for sizes or an `isa` that cannot be used.
void dropout(const DropoutParams& params, int threads, const std::string& isa);

}  // namespace xlnet_fast::cpu
