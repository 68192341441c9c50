#include <stdexcept>
#include <string>
#include <type_traits>

#include "device.h"
#include "kernels.h"
#include "rel_attention.h"
#include "shapes.cuh"

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
  require(k.table_start >= 0, "table_start must not be negative");
  for (int s = 0; s < call.streams; ++s) {
    require(call.stream[s].rows >= 1 && call.stream[s].stats != nullptr,
            "a stream must have rows and statistics");
    const AttentionStream& stream = call.stream[s];
    require(stream.window_left <= k.keys && stream.window_right <= k.keys && 1 <= stream.chunk &&
                stream.chunk <= k.keys,
            "the numbers of a window must be at most that of the keys, and a chunk at least 1");
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

// Calls run(shape) with the first of a kernel's two shapes that a block of the device has room for.
// Whoever calls has asked `attention_shapes` before; that none fits is said here for all others.
template <class Shapes, class Run>
void with_room(const Run& run) {
  using Ample = typename Shapes::Ample;
  using Scarce = typename Shapes::Scarce;
  if constexpr (Ample::kSharedBytes <= kSharedEverywhere) {
    run(Ample{});
  } else {
    const auto limit = static_cast<uint32_t>(shared_limit());
    if (Ample::kSharedBytes <= limit) return run(Ample{});
    if constexpr (!std::is_same_v<Ample, Scarce>) {
      if (Scarce::kSharedBytes <= limit) return run(Scarce{});
    }
    throw std::runtime_error("a block of this GPU may have " + std::to_string(limit) +
                             " bytes of shared memory, and the kernel needs " +
                             std::to_string(Scarce::kSharedBytes) + " for head dims up to " +
                             std::to_string(Ample::D));
  }
}

// Both half precisions have the same shapes.
template <int D>
void add_shapes(std::vector<AttentionShape>& all) {
  const auto add = [&](const char* kernel, bool backward, auto shapes) {
    using Shapes = decltype(shapes);
    all.push_back({kernel, backward, D, Shapes::Ample::kSharedBytes, Shapes::Scarce::kSharedBytes});
  };
  add("forward", false, ForwardShapes<BFloat16, D>{});
  add("forward_positions", false, ForwardShapes<BFloat16, D>{});
  add("backward_q", true, BackwardQShapes<BFloat16, D>{});
  add("backward_kv", true, BackwardKvShapes<BFloat16, D>{});
  add("backward_r", true, BackwardRShapes<BFloat16, D>{});
}

}  // namespace

void rel_attention_forward(const AttentionCall& call, Stream stream) {
  check(call);
  with_kernels(call.keys, [&](auto element, auto d) {
    with_room<ForwardShapes<decltype(element), decltype(d)::value>>([&](auto shape) {
      launch_rel_attention_forward<decltype(shape)>(call, stream);
      launch_rel_attention_forward_positions<decltype(shape)>(call, stream);
    });
  });
}

void rel_attention_backward(const AttentionCall& call, Stream stream) {
  check(call);
  const AttentionGradients& wanted = call.gradients;
  with_kernels(call.keys, [&](auto element, auto d) {
    using Element = decltype(element);
    constexpr int D = decltype(d)::value;
    with_room<BackwardQShapes<Element, D>>(
        [&](auto shape) { launch_rel_attention_backward_q<decltype(shape)>(call, stream); });
    if (wanted.r_w_bias_parts != nullptr) {
      with_room<BackwardKvShapes<Element, D>>(
          [&](auto shape) { launch_rel_attention_backward_kv<decltype(shape)>(call, stream); });
    }
    if (wanted.r_parts != nullptr) {
      with_room<BackwardRShapes<Element, D>>(
          [&](auto shape) { launch_rel_attention_backward_r<decltype(shape)>(call, stream); });
    }
  });
}

std::vector<AttentionShape> attention_shapes() {
  std::vector<AttentionShape> all;
  add_shapes<32>(all), add_shapes<64>(all), add_shapes<128>(all);
  return all;
}

}  // namespace xlnet_fast::cuda
