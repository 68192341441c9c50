// The CUDA kernels as a Python module for machines without a GPU: the same entries on CPU tensors,
// and what the emulation adds. Only the tests build it.
#include <dlfcn.h>
#include <pybind11/functional.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <stdexcept>
#include <tuple>

#include "../../bindings_cuda.h"
#include "launch.h"

namespace py = pybind11;
using xlnet_fast::cuda::emulation::Handed;
using xlnet_fast::cuda::emulation::session;

namespace {

using Launcher =
    std::function<void(uintptr_t place, int64_t blocks, int threads, int shared_bytes, py::bytes)>;

// Where a function lies in the file of this module, as a list of its symbols has it.
uintptr_t place_of(const void* function) {
  Dl_info info;
  if (dladdr(function, &info) == 0) throw std::runtime_error("a kernel lies in no module");
  return reinterpret_cast<uintptr_t>(function) - reinterpret_cast<uintptr_t>(info.dli_fbase);
}

}  // namespace

PYBIND11_MODULE(_cuda_emulation, m) {
  m.doc() = "The CUDA kernels of xlnet_fast, run on the host";
  xlnet_fast::define_cuda(m);
  // What the next launches may touch: (first address, one past the last, writable) each.
  m.def("set_regions", [](const std::vector<std::tuple<uintptr_t, uintptr_t, bool>>& regions) {
    session().regions.clear();
    for (const auto& [begin, end, writable] : regions) {
      session().regions.push_back({begin, end, writable});
    }
  });
  // Whether warps and blocks run from the last to the first.
  m.def("set_downwards", [](bool downwards) { session().downwards = downwards; });
  // What the GPU and its driver answer from now on; what is not given, a large and new one.
  m.def(
      "set_device",
      [](int shared_limit, int driver, int runtime) {
        session().shared_limit = shared_limit;
        session().driver = driver, session().runtime = runtime;
      },
      py::arg("shared_limit") = 227 * 1024, py::arg("driver") = 13000, py::arg("runtime") = 13000);
  // Who gets the launches from now on, with the place of the kernel in this module's file and the
  // bytes of its parameter; None: the emulation.
  m.def("set_launcher", [](std::optional<Launcher> launcher) {
    if (!launcher) {
      session().launcher = nullptr;
      return;
    }
    session().launcher = [launcher = std::move(*launcher)](const Handed& handed) {
      const py::gil_scoped_acquire acquire;
      launcher(place_of(handed.kernel), handed.blocks, handed.threads, handed.shared_bytes,
               py::bytes(static_cast<const char*>(handed.parameters), handed.parameter_bytes));
    };
  });
  // The shared memory of a block of each launch since this was asked last.
  m.def("take_shared_bytes", [] {
    std::vector<int> taken;
    taken.swap(session().shared_bytes);
    return taken;
  });
  // What the launches counted since this was asked last.
  m.def("take_counters", [] {
    const auto counted = session().counters;
    session().counters = {};
    py::dict all;
    all["products"] = counted.products;
    all["matrix_loads"] = counted.matrix_loads;
    all["matrix_wavefronts"] = counted.matrix_wavefronts;
    all["copied_bytes"] = counted.copied_bytes;
    all["block_barriers"] = counted.block_barriers;
    return all;
  });
}
