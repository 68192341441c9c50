// From Python's arguments to the struct of linear. They come by position, an address of 0 for an
// absent tensor: reading a dict, as bindings_attention.h does, would take longer than a small
// layer.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

#include "cpu/linear.h"

namespace xlnet_fast {

inline void linear_by_position(int dtype, int64_t rows, int64_t terms, int64_t columns, uintptr_t x,
                               int64_t x_row, int64_t x_term, uintptr_t weight,
                               int64_t weight_column, int64_t weight_term, uintptr_t bias,
                               uintptr_t residual, int64_t residual_row, uintptr_t out,
                               int64_t out_row, bool gelu, int threads, const std::string& isa) {
  LinearParams p;
  p.dtype = static_cast<Dtype>(dtype);
  p.rows = rows, p.terms = terms, p.columns = columns;
  p.x = reinterpret_cast<const char*>(x), p.x_row = x_row, p.x_term = x_term;
  p.weight = reinterpret_cast<const char*>(weight);
  p.weight_column = weight_column, p.weight_term = weight_term;
  p.bias = reinterpret_cast<const char*>(bias);
  p.residual = reinterpret_cast<const char*>(residual), p.residual_row = residual_row;
  p.out = reinterpret_cast<char*>(out), p.out_row = out_row;
  p.gelu = gelu;
  const pybind11::gil_scoped_release release;
  cpu::linear(p, threads, isa);
}

inline void define_linear(pybind11::module_& m) {
  using pybind11::arg;
  m.def(
      "linear_takes",
      [](int dtype, const std::string& isa) {
        return cpu::linear_takes(static_cast<Dtype>(dtype), isa);
      },
      arg("dtype"), arg("isa"));
  m.def("linear", &linear_by_position, arg("dtype"), arg("rows"), arg("terms"), arg("columns"),
        arg("x"), arg("x_row"), arg("x_term"), arg("weight"), arg("weight_column"),
        arg("weight_term"), arg("bias"), arg("residual"), arg("residual_row"), arg("out"),
        arg("out_row"), arg("gelu"), arg("threads"), arg("isa"));
}

}  // namespace xlnet_fast
