// Bindings only: checks live beside each entry, kernels take raw pointers, tensors arrive as
// integers.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bindings_attention.h"
#include "bindings_cached_attention.h"
#include "bindings_dropout.h"
#include "bindings_linear.h"
#include "bindings_masked_softmax.h"
#include "build_info.h"
#include "cpu/dropout.h"
#include "cpu/masked_softmax.h"
#include "cpu/philox.h"
#include "cpu/rel_attention.h"
#include "cpu/threads.h"
#ifdef XLNET_FAST_CUDA
#include "bindings_cuda.h"
#endif

namespace py = pybind11;
using namespace xlnet_fast;

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled kernels of xlnet_fast; xlnet_fast._extension holds the typed entries.";

  m.def("build_info", [] {
    py::dict info;
    info["version"] = build::kVersion;
    info["compiler"] = build::compiler();
    info["flags"] = build::flags();
    info["isa_compiled"] = cpu::isa_compiled();
    info["isa_used"] = cpu::isa_available().back();
    info["attention_isa"] = cpu::attention_isa_available();
    info["thread_runtime"] = cpu::thread_runtime();
    info["cuda_archs"] = build::cuda_archs();
    info["cuda_compiler"] = build::kCudaCompiler;
    info["pybind11"] = build::pybind11_version();
    return info;
  });
  m.def("isa_available", &cpu::isa_available);
  m.def("philox4x32", &cpu::philox4x32, py::arg("counter"), py::arg("key"));
  m.def(
      "philox_keep_mask",
      [](uintptr_t keep, int64_t seed, uint32_t threshold, int64_t heads,
         std::pair<int64_t, int64_t> batch, std::pair<int64_t, int64_t> rows, int64_t keys,
         int threads, const std::string& isa) {
        const KeepMaskParams params{
            reinterpret_cast<uint8_t*>(keep), seed, threshold, heads, {batch.first, batch.second},
            {rows.first, rows.second},        keys};
        const py::gil_scoped_release release;
        cpu::philox_keep_mask(params, threads, isa);
      },
      py::arg("keep"), py::arg("seed"), py::arg("threshold"), py::arg("heads"), py::arg("batch"),
      py::arg("rows"), py::arg("keys"), py::arg("threads"), py::arg("isa"));
  m.def("attention_isa_available", &cpu::attention_isa_available);
  m.def("attention_isa_emulated", &cpu::attention_isa_emulated);
  m.def("thread_runtime", &cpu::thread_runtime);
  m.def(
      "rel_attention_forward",
      [](const py::dict& keys, const py::list& streams, int threads, const std::string& isa) {
        const AttentionCall call = attention_call(keys, streams, py::dict());
        const py::gil_scoped_release release;
        cpu::rel_attention_forward(call, threads, isa);
      },
      py::arg("keys"), py::arg("streams"), py::arg("threads"), py::arg("isa"));
  m.def(
      "rel_attention_backward",
      [](const py::dict& keys, const py::list& streams, const py::dict& gradients, int threads,
         const std::string& isa) {
        const AttentionCall call = attention_call(keys, streams, gradients);
        const py::gil_scoped_release release;
        cpu::rel_attention_backward(call, threads, isa);
      },
      py::arg("keys"), py::arg("streams"), py::arg("gradients"), py::arg("threads"),
      py::arg("isa"));
  m.def("cached_attention", &cached_attention_of);
  m.def("dropout", &run_with<&dropout_params, &cpu::dropout, int, const std::string&>,
        py::arg("arguments"), py::arg("threads"), py::arg("isa"));
  define_linear(m);
  m.def("masked_softmax_forward",
        &run_with<&masked_softmax_params, &cpu::masked_softmax_forward, int, const std::string&>,
        py::arg("arguments"), py::arg("threads"), py::arg("isa"));
  m.def("masked_softmax_backward",
        &run_with<&masked_softmax_params, &cpu::masked_softmax_backward, int, const std::string&>,
        py::arg("arguments"), py::arg("threads"), py::arg("isa"));
#ifdef XLNET_FAST_CUDA
  define_cuda(m);
#endif
}
