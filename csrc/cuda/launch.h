// Launching a kernel on a stream that arrives as an integer, or on the host where it is emulated.
#pragma once

#include <cstdint>

namespace xlnet_fast::cuda {

// A CUDA stream as PyTorch's `stream.cuda_stream` gives it.
using Stream = uint64_t;

struct Grid {
  int64_t blocks;  // 1 .. 2^31 - 1
  int threads;     // of a block
  int shared_bytes;
};

// Throws std::runtime_error with the driver's words where a launch fails. A kernel whose shared
// memory is a constant has its bytes as the last template argument, for the report of
// `kernels-report`.
template <class Parameters>
void launch(void (*kernel)(Parameters), const Grid& grid, Stream stream,
            const Parameters& parameters);

}  // namespace xlnet_fast::cuda

#ifdef XLNET_FAST_EMULATION
#include "emulation/launch.h"
#elif defined(__CUDACC__)  // others know the name only
#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

namespace xlnet_fast::cuda {

inline void check_cuda(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status) + " (CUDA error " +
                           std::to_string(static_cast<int>(status)) + ")");
}

template <class Parameters>
void launch(void (*kernel)(Parameters), const Grid& grid, Stream stream,
            const Parameters& parameters) {
  constexpr int kSharedWithoutAsking = 48 * 1024;
  if (grid.blocks < 1 || grid.blocks > INT32_MAX) {
    throw std::runtime_error("a grid cannot have " + std::to_string(grid.blocks) + " blocks");
  }
  if (grid.shared_bytes > kSharedWithoutAsking) {
    check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    grid.shared_bytes),
               "reserving shared memory");
  }
  const void* arguments[] = {&parameters};
  const auto function = reinterpret_cast<const void*>(kernel);
  check_cuda(cudaLaunchKernel(function, dim3(static_cast<unsigned>(grid.blocks)),
                              dim3(static_cast<unsigned>(grid.threads)),
                              const_cast<void**>(arguments), static_cast<size_t>(grid.shared_bytes),
                              reinterpret_cast<cudaStream_t>(stream)),
             "launching a kernel");
}

}  // namespace xlnet_fast::cuda
#endif
