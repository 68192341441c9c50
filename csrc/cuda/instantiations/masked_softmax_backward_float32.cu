#include "../masked_softmax.cuh"

namespace xlnet_fast::cuda {

template void launch_masked_softmax_backward<Float32>(const MaskedSoftmaxParams&, Stream);

}  // namespace xlnet_fast::cuda
