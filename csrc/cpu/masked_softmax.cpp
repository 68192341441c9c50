#include "masked_softmax.h"

#include <algorithm>
#include <vector>

#include "entry.h"
#include "pick_kernels.h"
#include "threads.h"

namespace xlnet_fast::cpu {
namespace {

std::vector<const MaskedSoftmaxKernels*> all_kernels() {
  return {
#if defined(XLNET_FAST_VECTOR_KERNELS)
      &masked_softmax_baseline,
#endif
#if defined(XLNET_FAST_X86_KERNELS)
      &masked_softmax_avx2,
      &masked_softmax_avx512,
#endif
  };
}

// Shapes and dtypes are checked where the tensors are; this refuses what no tensor can be.
void check(const MaskedSoftmaxParams& p, int threads) {
  require(threads >= 1, "threads must be at least 1, got " + std::to_string(threads));
  require(p.batch >= 1 && p.heads >= 1 && p.rows >= 1 && p.keys >= 1,
          "batch, heads, rows and keys must be positive");
  require(0 <= p.memory && p.memory <= p.keys, "0 <= memory <= keys must hold");
  require(p.keys < int64_t{1} << 30, "keys must be below 2**30");
  require(p.scores.data != nullptr, "scores must not be null");
  require(p.table >= 0, "table must not be negative");
  require(p.chunk >= 1, "chunk must be positive");
  const bool segments = p.segment_scores.data != nullptr;
  require(segments == (p.segments_q != nullptr) && segments == (p.segments_k != nullptr),
          "segment_scores, segments_q and segments_k must be given together");
  require((p.rank_q == nullptr) == (p.rank_k == nullptr),
          "rank_q and rank_k must be given together");
}

template <class Pass>
void run(const MaskedSoftmaxParams& params, int threads, const std::string& isa, Pass pass) {
  check(params, threads);
  const MaskedSoftmaxKernels& kernels = pick_kernels(all_kernels(), isa);
  const MaskedSoftmaxCall call{params, keep_row_of("auto")};
  const int64_t rows = params.batch * params.heads * params.rows;
  // Starting a team takes microseconds: a thread should have more than that to do.
  constexpr int64_t kScoresOfAThread = 1 << 14;
  const int64_t useful = std::min(rows, 1 + rows * params.keys / kScoresOfAThread);
  threads = static_cast<int>(std::min<int64_t>(threads, useful));
  const int64_t bytes = whole_lines(kernels.scratch_bytes(params));
  const Memory scratch = allocate(bytes * threads);
  run_in_parallel(threads, [&](int part, int parts) {
    (kernels.*pass)(call, {rows * part / parts, rows * (part + 1) / parts},
                    scratch.get() + bytes * part);
  });
}

}  // namespace

void masked_softmax_forward(const MaskedSoftmaxParams& params, int threads,
                            const std::string& isa) {
  require(params.out.data != nullptr, "out must not be null");
  run(params, threads, isa, &MaskedSoftmaxKernels::forward);
}

void masked_softmax_backward(const MaskedSoftmaxParams& params, int threads,
                             const std::string& isa) {
  const auto alike = [](const View& x, const View& gradient) {
    return (x.data == nullptr) == (gradient.data == nullptr);
  };
  require(params.out.data != nullptr && params.d_out.data != nullptr,
          "out and d_out must not be null");
  require(alike(params.scores, params.d_scores) &&
              alike(params.position_scores, params.d_position_scores) &&
              alike(params.segment_scores, params.d_segment_scores),
          "each of the scores that is given needs its gradient, and no other");
  run(params, threads, isa, &MaskedSoftmaxKernels::backward);
}

}  // namespace xlnet_fast::cpu
