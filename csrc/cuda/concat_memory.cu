// Entry of concat_memory: a kernel for each pair of dtypes.
#include <stdexcept>

#include "concat_memory.cuh"
#include "kernels.h"

namespace xlnet_fast::cuda {
namespace {

template <class Hidden>
void launch_for(const ConcatMemoryParams& params, Stream stream) {
  switch (params.memory_dtype) {
    case Dtype::kFloat32:
      return launch_concat_memory<Float32, Hidden>(params, stream);
    case Dtype::kBFloat16:
      return launch_concat_memory<BFloat16, Hidden>(params, stream);
    case Dtype::kFloat16:
      return launch_concat_memory<Float16, Hidden>(params, stream);
  }
}

}  // namespace

void concat_memory_forward(const ConcatMemoryParams& params, Stream stream) {
  if (params.layers < 1 || params.layers > ConcatMemoryParams::kMaxLayers || params.count < 1 ||
      params.first < 0 || params.boundary < 0 || params.out == nullptr) {
    throw std::invalid_argument("concat_memory: layers, first, boundary, count or out is wrong");
  }
  switch (params.dtype) {
    case Dtype::kFloat32:
      return launch_for<Float32>(params, stream);
    case Dtype::kBFloat16:
      return launch_for<BFloat16>(params, stream);
    case Dtype::kFloat16:
      return launch_for<Float16>(params, stream);
  }
}

}  // namespace xlnet_fast::cuda
