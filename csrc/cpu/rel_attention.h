// Relative attention on the CPU: entries and the table of kernels behind them. The maths is in
// docs/maths.md, the kernels in rel_attention_{head,scores,forward,backward}.h, compiled once for
// each instruction set by rel_attention_<isa>.cpp.
#pragma once

#include <string>
#include <vector>

#include "../params.h"
#include "philox.h"

#if defined(__GNUC__)  // gcc and clang: the kernels are written in their vector extension
#define XLNET_FAST_VECTOR_KERNELS 1
#if defined(__x86_64__)
#define XLNET_FAST_X86_KERNELS 1
#endif
#endif

namespace xlnet_fast::cpu {

struct AttentionCall : xlnet_fast::AttentionCall {
  KeepRow keep_row = nullptr;
};

// The kernels of one instruction set. Each pass says how much memory a part of it needs, 64-byte
// aligned, and runs one of `parts` parts; all parts may run at the same time. `shared` is memory
// that all parts see.
struct AttentionKernels {
  const char* isa;
  bool multiplies_bfloat16;  // takes bfloat16 tensors, and no other
  int64_t (*forward_bytes)(const AttentionCall&);
  void (*forward_part)(const AttentionCall&, char* memory, int part, int parts);
  int64_t (*backward_bytes)(const AttentionCall&);
  int64_t (*backward_shared_bytes)(const AttentionCall&);
  void (*backward_part)(const AttentionCall&, char* memory, char* shared, int part, int parts);
  void (*backward_sums)(const AttentionCall&, char* shared, int part,
                        int parts);  // when all are done
};

#if defined(XLNET_FAST_VECTOR_KERNELS)
extern const AttentionKernels rel_attention_baseline;
#endif
#if defined(XLNET_FAST_X86_KERNELS)
extern const AttentionKernels rel_attention_avx2, rel_attention_avx512, rel_attention_avx512_bf16,
    rel_attention_amx_bf16, rel_attention_amx_emulated;
#endif

// Whether this CPU and its system let this process use AMX with bfloat16; asks the system for it.
bool amx_available();

// Instruction sets that this build has kernels for and that this CPU runs, slowest first. None from
// a compiler without the vector extension.
std::vector<std::string> attention_isa_available();

// Those that are taken by their exact name only: an emulation for tests, and, where the CPU has it,
// AMX, until a run on such a machine has shown it right and faster.
std::vector<std::string> attention_isa_emulated();

// Fills stream.out of every stream. `isa` is "auto" or the highest of attention_isa_available() to
// use.
// Throws std::invalid_argument for sizes or an `isa` that cannot be used.
void rel_attention_forward(const xlnet_fast::AttentionCall& call, int threads,
                           const std::string& isa);

// Fills stream.d_q of every stream and what `gradients` points to.
void rel_attention_backward(const xlnet_fast::AttentionCall& call, int threads,
                            const std::string& isa);

}  // namespace xlnet_fast::cpu
