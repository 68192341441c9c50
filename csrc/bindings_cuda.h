// Python's names of the CUDA kernels: in the extension where they were compiled, and in the
// emulation that the tests build. The last argument is a CUDA stream as an integer.
#pragma once

#include "bindings_attention.h"
#include "bindings_masked_softmax.h"
#include "cuda/device.h"
#include "cuda/kernels.h"

namespace xlnet_fast {

inline ConcatMemoryParams concat_memory_params(const pybind11::dict& dict) {
  ConcatMemoryParams p;
  std::vector<uintptr_t> hidden, memory;
  Fields take(dict);
  take("first", p.first), take("boundary", p.boundary), take("count", p.count);
  take("dtype", p.dtype), take("memory_dtype", p.memory_dtype), take("out", p.out);
  take("hidden", hidden), take("memory", memory);
  take.done();
  if (hidden.empty() || hidden.size() > ConcatMemoryParams::kMaxLayers ||
      (!memory.empty() && memory.size() != hidden.size())) {
    throw std::invalid_argument("there must be 1 to 32 layers, and as many of memory or none");
  }
  p.layers = static_cast<int>(hidden.size());
  for (size_t l = 0; l < hidden.size(); ++l) {
    p.hidden[l] = reinterpret_cast<const char*>(hidden[l]);
    p.memory[l] = memory.empty() ? nullptr : reinterpret_cast<const char*>(memory[l]);
  }
  return p;
}

inline void define_cuda(pybind11::module_& m) {
  namespace py = pybind11;
  m.def(
      "cuda_rel_attention_forward",
      [](const py::dict& keys, const py::list& streams, cuda::Stream stream) {
        const AttentionCall call = attention_call(keys, streams, py::dict());
        const py::gil_scoped_release release;
        cuda::rel_attention_forward(call, stream);
      },
      py::arg("keys"), py::arg("streams"), py::arg("stream"));
  m.def(
      "cuda_rel_attention_backward",
      [](const py::dict& keys, const py::list& streams, const py::dict& gradients,
         cuda::Stream stream) {
        const AttentionCall call = attention_call(keys, streams, gradients);
        const py::gil_scoped_release release;
        cuda::rel_attention_backward(call, stream);
      },
      py::arg("keys"), py::arg("streams"), py::arg("gradients"), py::arg("stream"));
  m.def("cuda_masked_softmax_forward",
        &run_with<&masked_softmax_params, &cuda::masked_softmax_forward, cuda::Stream>,
        py::arg("arguments"), py::arg("stream"));
  m.def("cuda_masked_softmax_backward",
        &run_with<&masked_softmax_params, &cuda::masked_softmax_backward, cuda::Stream>,
        py::arg("arguments"), py::arg("stream"));
  m.def("cuda_concat_memory_forward",
        &run_with<&concat_memory_params, &cuda::concat_memory_forward, cuda::Stream>,
        py::arg("arguments"), py::arg("stream"));
  m.def("cuda_attention_shapes", [] {
    py::list all;
    for (const cuda::AttentionShape& shape : cuda::attention_shapes()) {
      py::dict one;
      one["kernel"] = shape.kernel;
      one["backward"] = shape.backward;
      one["head_dim"] = shape.head_dim;
      one["ample"] = shape.ample;
      one["scarce"] = shape.scarce;
      all.append(one);
    }
    return all;
  });
  m.def("cuda_shared_limit", &cuda::shared_limit);
  m.def("cuda_versions", [] {
    const cuda::Versions versions = cuda::versions();
    return py::make_tuple(versions.driver, versions.runtime);
  });
}

}  // namespace xlnet_fast
