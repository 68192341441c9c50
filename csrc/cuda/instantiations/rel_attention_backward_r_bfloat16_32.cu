#include "../rel_attention_backward_r.cuh"

namespace xlnet_fast::cuda {

template void launch_rel_attention_backward_r<BackwardRShapes<BFloat16, 32>::Ample>(
    const AttentionCall&, Stream);

}  // namespace xlnet_fast::cuda
