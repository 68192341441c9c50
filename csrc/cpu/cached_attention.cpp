#include "cached_attention.h"

#include <algorithm>
#include <vector>

#include "entry.h"
#include "pick_kernels.h"
#include "threads.h"

namespace xlnet_fast::cpu {
namespace {

const std::vector<const CachedAttentionKernels*>& all_kernels() {
  static const std::vector<const CachedAttentionKernels*> kernels = {
#if defined(XLNET_FAST_VECTOR_KERNELS)
      &cached_attention_baseline,
#endif
#if defined(XLNET_FAST_X86_KERNELS)
      &cached_attention_avx2,
      &cached_attention_avx512,
      &cached_attention_avx512_bf16,
#endif
  };
  return kernels;
}

// Shapes and dtypes are checked where the tensors are; this refuses what no tensor can be.
void check(const CachedAttentionParams& p, int threads) {
  require(threads >= 1, "threads must be at least 1, got " + std::to_string(threads));
  require(p.rows >= 1 && p.batch >= 1 && p.heads >= 1 && p.head_dim >= 1 && p.keys >= 1 &&
              p.table_rows >= 1,
          "rows, batch, heads, head_dim, keys and table_rows must be positive");
  require(p.keys < int64_t{1} << 30, "keys must be below 2**30");
  require(p.dtype == Dtype::kFloat32 || p.dtype == Dtype::kBFloat16,
          "dtype must be float32 or bfloat16");
  require(p.q.data != nullptr && p.k.data != nullptr && p.v.data != nullptr &&
              p.table.data != nullptr && p.r_w_bias.data != nullptr && p.r_r_bias.data != nullptr &&
              p.out != nullptr,
          "q, k, v, table, biases and out must not be null");
}

}  // namespace

void cached_attention(const CachedAttentionParams& params, int threads, const std::string& isa) {
  check(params, threads);
  const CachedAttentionKernels& kernels = pick_kernels(all_kernels(), isa);
  const int64_t pairs = params.heads * params.batch;
  // Starting a team takes microseconds: a thread should have more than that to do.
  constexpr int64_t kElementsOfAThread = 1 << 16;
  const int64_t useful =
      1 + pairs * params.keys * params.head_dim * (1 + params.rows / 4) / kElementsOfAThread;
  threads = static_cast<int>(std::min({int64_t{threads}, useful, pairs}));
  const int64_t bytes = whole_lines(kernels.scratch_bytes(params));
  const Memory scratch = allocate(bytes * threads);
  run_in_parallel(threads, [&](int part, int parts) {
    kernels.forward(params, {pairs * part / parts, pairs * (part + 1) / parts},
                    scratch.get() + bytes * part);
  });
}

}  // namespace xlnet_fast::cpu
