// The kernels of masked_softmax for one dtype; each is compiled by a file of instantiations/.
#pragma once

#include "../params.h"
#include "launch.h"

namespace xlnet_fast::cuda {

template <class Element>
void launch_masked_softmax_forward(const MaskedSoftmaxParams& params, Stream stream);

template <class Element>
void launch_masked_softmax_backward(const MaskedSoftmaxParams& params, Stream stream);

}  // namespace xlnet_fast::cuda
