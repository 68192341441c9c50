// The attention kernels of one dtype and tile, as a module of their own: cheap enough to compile
// again for each deliberate fault in them.
#include "bindings_attention.h"
#include "cuda/elements.cuh"
#include "cuda/rel_attention.h"
#include "cuda/shapes.cuh"

PYBIND11_MODULE(_cuda_mutant, m) {
  namespace py = pybind11;
  using namespace xlnet_fast;
  m.def("cuda_rel_attention_forward",
        [](const py::dict& keys, const py::list& streams, cuda::Stream stream) {
          const AttentionCall call = attention_call(keys, streams, py::dict());
          cuda::launch_rel_attention_forward<cuda::ForwardShapes<cuda::BFloat16, 32>::Ample>(
              call, stream);
        });
  m.def("set_regions", [](const std::vector<std::tuple<uintptr_t, uintptr_t, bool>>& regions) {
    cuda::emulation::session().regions.clear();
    for (const auto& [begin, end, writable] : regions) {
      cuda::emulation::session().regions.push_back({begin, end, writable});
    }
  });
}
