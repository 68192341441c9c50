#include <stdexcept>
#include <type_traits>

#include "kernels.h"
#include "primitives.cuh"
#include "rel_attention.h"

namespace xlnet_fast::cuda {
namespace {

void require(bool holds, const char* what) {
  if (!holds) throw std::invalid_argument(what);
}

// Shapes and layouts are checked where the tensors are; this refuses what no kernel could survive.
void check(const AttentionCall& call) {
  const AttentionKeys& k = call.keys;
  require(k.dtype == Dtype::kBFloat16 || k.dtype == Dtype::kFloat16,
          "the CUDA kernels take bfloat16 and float16");
  require(k.head_dim >= 8 && k.head_dim <= 128 && k.head_dim % 8 == 0,
          "head_dim must be a multiple of 8 from 8 to 128");
  require(k.batch >= 1 && k.heads >= 1 && k.keys >= 1 && k.table >= 1,
          "batch, heads, keys and rows of r must be positive");
  require(k.groups >= 1 && k.batch % k.groups == 0, "groups must divide the batch");
  require(0 <= k.apart && k.apart <= k.memory && k.memory <= k.keys,
          "0 <= apart <= memory <= keys must hold");
  for (int s = 0; s < call.streams; ++s) {
    require(call.stream[s].rows >= 1 && call.stream[s].stats != nullptr,
            "a stream must have rows and statistics");
    require(!k.dropout || call.stream[s].seed_at != nullptr, "dropout needs a seed");
  }
}

// Calls run(element, D) with the smallest tile that holds the head dim.
template <class Element, class Run>
void with_head_dim(int64_t head_dim, const Run& run) {
  if (head_dim <= 32) {
    run(Element{}, std::integral_constant<int, 32>{});
  } else if (head_dim <= 64) {
    run(Element{}, std::integral_constant<int, 64>{});
  } else {
    run(Element{}, std::integral_constant<int, 128>{});
  }
}

template <class Run>
void with_kernels(const AttentionKeys& keys, const Run& run) {
  if (keys.dtype == Dtype::kBFloat16) {
    with_head_dim<BFloat16>(keys.head_dim, run);
  } else {
    with_head_dim<Float16>(keys.head_dim, run);
  }
}

}  // namespace

void rel_attention_forward(const AttentionCall& call, Stream stream) {
  check(call);
  with_kernels(call.keys, [&](auto element, auto d) {
    launch_rel_attention_forward<decltype(element), decltype(d)::value>(call, stream);
  });
}

void rel_attention_backward(const AttentionCall& call, Stream stream) {
  check(call);
  const AttentionGradients& wanted = call.gradients;
  with_kernels(call.keys, [&](auto element, auto d) {
    using Element = decltype(element);
    constexpr int D = decltype(d)::value;
    launch_rel_attention_backward_q<Element, D>(call, stream);
    if (wanted.r_w_bias_parts != nullptr) {
      launch_rel_attention_backward_kv<Element, D>(call, stream);
    }
    if (wanted.r_parts != nullptr) launch_rel_attention_backward_r<Element, D>(call, stream);
  });
}

}  // namespace xlnet_fast::cuda
