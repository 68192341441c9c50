// Entries of masked_softmax: what no tensor can be is refused, the rest goes to the dtype's
// kernels.
#include <stdexcept>

#include "elements.cuh"
#include "kernels.h"
#include "masked_softmax.h"

namespace xlnet_fast::cuda {
namespace {

void require(bool holds, const char* otherwise) {
  if (!holds) throw std::invalid_argument(otherwise);
}

// Shapes and dtypes are checked where the tensors are.
void check(const MaskedSoftmaxParams& p) {
  constexpr int64_t kMost = int64_t{1} << 29;
  require(p.batch >= 1 && p.heads >= 1 && p.rows >= 1 && p.keys >= 1,
          "batch, heads, rows and keys must be positive");
  require(p.batch * p.heads * p.rows <= INT32_MAX, "batch * heads * rows must be below 2**31");
  require(p.keys < kMost && 0 <= p.table && p.table < kMost, "keys and table must be below 2**29");
  require(0 <= p.memory && p.memory <= p.keys, "0 <= memory <= keys must hold");
  require(p.window_left <= p.keys && p.window_right <= p.keys && 1 <= p.chunk && p.chunk <= p.keys,
          "the numbers of a window must be at most that of the keys, and a chunk at least 1");
  require(p.scores.data != nullptr, "scores must not be null");
  const bool segments = p.segment_scores.data != nullptr;
  require(segments == (p.segments_q != nullptr) && segments == (p.segments_k != nullptr),
          "segment_scores, segments_q and segments_k must be given together");
  require((p.rank_q == nullptr) == (p.rank_k == nullptr), "rank_q and rank_k belong together");
  require(!p.dropout || p.seed_at != nullptr, "dropout needs seed_at");
}

}  // namespace

void masked_softmax_forward(const MaskedSoftmaxParams& params, Stream stream) {
  check(params);
  require(params.out.data != nullptr, "out must not be null");
  switch (params.dtype) {
    case Dtype::kFloat32:
      return launch_masked_softmax_forward<Float32>(params, stream);
    case Dtype::kBFloat16:
      return launch_masked_softmax_forward<BFloat16>(params, stream);
    case Dtype::kFloat16:
      return launch_masked_softmax_forward<Float16>(params, stream);
  }
}

void masked_softmax_backward(const MaskedSoftmaxParams& params, Stream stream) {
  const auto alike = [](const View& x, const View& gradient) {
    return (x.data == nullptr) == (gradient.data == nullptr);
  };
  check(params);
  require(params.d_out.data != nullptr, "d_out must not be null");
  require(alike(params.scores, params.d_scores) &&
              alike(params.position_scores, params.d_position_scores) &&
              alike(params.segment_scores, params.d_segment_scores),
          "each of the scores that is given needs its gradient, and no other");
  switch (params.dtype) {
    case Dtype::kFloat32:
      return launch_masked_softmax_backward<Float32>(params, stream);
    case Dtype::kBFloat16:
      return launch_masked_softmax_backward<BFloat16>(params, stream);
    case Dtype::kFloat16:
      return launch_masked_softmax_backward<Float16>(params, stream);
  }
}

}  // namespace xlnet_fast::cuda
