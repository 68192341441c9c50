// Entries of the CUDA kernels: they launch on a stream and return at once. Callers have checked
// shapes and alignment, and made the tensors' device the current one.
// Throws std::invalid_argument for what no kernel takes, std::runtime_error where a launch fails.
#pragma once

#include <vector>

#include "../params.h"
#include "launch.h"

namespace xlnet_fast::cuda {

// Fills stream.out and stream.stats of every stream.
void rel_attention_forward(const AttentionCall& call, Stream stream);

// Fills delta, norm, c, d_c and d_q of every stream, and whatever `gradients` points to.
void rel_attention_backward(const AttentionCall& call, Stream stream);

// Shared memory that a block of an attention kernel needs, bytes: what it takes where it can, and
// the least that it runs with. Head dims up to 32, up to 64 and up to 128 have tiles of their own.
struct AttentionShape {
  const char* kernel;
  bool backward;
  int head_dim;  // the largest of the tile
  uint32_t ample, scarce;
};
std::vector<AttentionShape> attention_shapes();

void masked_softmax_forward(const MaskedSoftmaxParams& params, Stream stream);
void masked_softmax_backward(const MaskedSoftmaxParams& params, Stream stream);

void concat_memory_forward(const ConcatMemoryParams& params, Stream stream);

}  // namespace xlnet_fast::cuda
