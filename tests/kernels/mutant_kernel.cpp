// What a deliberate fault is put into: the attention forward of one dtype and tile.
#include "cuda/rel_attention_forward.cuh"
#include "cuda/rel_attention_forward_positions.cuh"

namespace xlnet_fast::cuda {

void launch_mutant(const AttentionCall& call, Stream stream) {
  launch_rel_attention_forward<ForwardShapes<BFloat16, 32>::Ample>(call, stream);
  launch_rel_attention_forward_positions<ForwardShapes<BFloat16, 32>::Ample>(call, stream);
}

}  // namespace xlnet_fast::cuda
