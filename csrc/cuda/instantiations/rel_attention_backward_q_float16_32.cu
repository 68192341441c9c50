#include "../rel_attention_backward_q.cuh"

namespace xlnet_fast::cuda {

template void launch_rel_attention_backward_q<BackwardQShapes<Float16, 32>::Ample>(
    const AttentionCall&, Stream);

}  // namespace xlnet_fast::cuda
