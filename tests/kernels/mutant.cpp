// The attention forward of one dtype and tile, as a module of its own. The kernel itself is in
// mutant_kernel.cpp: it is compiled again for each deliberate fault, and pybind11 takes far longer.
#include "bindings_attention.h"
#include "cuda/launch.h"

namespace xlnet_fast::cuda {

void launch_mutant(const AttentionCall& call, Stream stream);

}  // namespace xlnet_fast::cuda

PYBIND11_MODULE(_cuda_mutant, m) {
  namespace py = pybind11;
  using namespace xlnet_fast;
  m.def("cuda_rel_attention_forward",
        [](const py::dict& keys, const py::list& streams, cuda::Stream stream) {
          cuda::launch_mutant(attention_call(keys, streams, py::dict()), stream);
        });
  m.def("set_regions", [](const std::vector<std::tuple<uintptr_t, uintptr_t, bool>>& regions) {
    cuda::emulation::session().regions.clear();
    for (const auto& [begin, end, writable] : regions) {
      cuda::emulation::session().regions.push_back({begin, end, writable});
    }
  });
}
