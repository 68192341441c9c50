#include "../rel_attention_forward.cuh"

namespace xlnet_fast::cuda {

template void launch_rel_attention_forward<Float16, 32>(const AttentionCall&, Stream);

}  // namespace xlnet_fast::cuda
