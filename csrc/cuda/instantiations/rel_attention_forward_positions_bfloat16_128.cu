#include "../rel_attention_forward_positions.cuh"

namespace xlnet_fast::cuda {

template void launch_rel_attention_forward_positions<ForwardShapes<BFloat16, 128>::Ample>(
    const AttentionCall&, Stream);

}  // namespace xlnet_fast::cuda
