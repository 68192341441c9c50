#include "../rel_attention_backward_q.cuh"

namespace xlnet_fast::cuda {

template void launch_rel_attention_backward_q<BackwardQShapes<BFloat16, 64>::Scarce>(
    const AttentionCall&, Stream);

}  // namespace xlnet_fast::cuda
