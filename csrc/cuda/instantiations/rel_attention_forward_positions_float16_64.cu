#include "../rel_attention_forward_positions.cuh"

namespace xlnet_fast::cuda {

template void launch_rel_attention_forward_positions<ForwardShapes<Float16, 64>::Ample>(
    const AttentionCall&, Stream);

}  // namespace xlnet_fast::cuda
