#include "../rel_attention_forward.cuh"

namespace xlnet_fast::cuda {

template void launch_rel_attention_forward<ForwardShapes<Float16, 128>::Ample>(const AttentionCall&,
                                                                               Stream);

}  // namespace xlnet_fast::cuda
