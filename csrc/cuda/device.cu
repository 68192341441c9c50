#include "device.h"

#ifndef XLNET_FAST_EMULATION

#include <cuda_runtime.h>

#include "launch.h"

namespace xlnet_fast::cuda {

int shared_limit() {
  int device = 0, limit = 0;
  check_cuda(cudaGetDevice(&device), "asking for the current device");
  check_cuda(cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
             "asking for the shared memory of a block");
  return limit;
}

Versions versions() {
  int driver = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess) driver = 0;
  return {driver, CUDART_VERSION};
}

}  // namespace xlnet_fast::cuda

#endif
