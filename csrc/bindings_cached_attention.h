// From Python's positional arguments to the struct of cached attention, which a model calls once a
// layer and token: no dict, no copies.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

#include "cpu/cached_attention.h"

namespace xlnet_fast {

// `sizes` is (rows, batch, heads, head_dim, keys, table_rows); strides are those of
// `Tensor.stride()`, in elements; an absent tensor is address 0.
inline void cached_attention_of(
    int dtype, const pybind11::tuple& sizes, uintptr_t q, const pybind11::tuple& q_strides,
    uintptr_t k, const pybind11::tuple& k_strides, uintptr_t v, const pybind11::tuple& v_strides,
    uintptr_t table, const pybind11::tuple& table_strides, uintptr_t r_w_bias, int64_t w_stride,
    uintptr_t r_r_bias, int64_t r_stride, uintptr_t out, int64_t far, int64_t rows_at,
    uintptr_t positions, uintptr_t keys_at, uintptr_t hidden, int64_t hidden_batch,
    int64_t hidden_row, float scale, int threads, const std::string& isa) {
  const auto number = [](const pybind11::tuple& from, size_t i) {
    return pybind11::cast<int64_t>(from[i]);
  };
  const auto view = [&](uintptr_t data, const pybind11::tuple& strides) {
    View view;
    view.data = reinterpret_cast<char*>(data);
    for (size_t i = 0; i + 1 < strides.size() && i < 3; ++i) view.stride[i] = number(strides, i);
    return view;
  };
  if (sizes.size() != 6) throw std::invalid_argument("sizes must be six numbers");
  CachedAttentionParams p;
  p.dtype = static_cast<Dtype>(dtype);
  p.rows = number(sizes, 0), p.batch = number(sizes, 1), p.heads = number(sizes, 2);
  p.head_dim = number(sizes, 3), p.keys = number(sizes, 4), p.table_rows = number(sizes, 5);
  p.q = view(q, q_strides), p.k = view(k, k_strides), p.v = view(v, v_strides);
  p.table = view(table, table_strides);
  p.r_w_bias = {reinterpret_cast<char*>(r_w_bias), {w_stride, 0, 0}};
  p.r_r_bias = {reinterpret_cast<char*>(r_r_bias), {r_stride, 0, 0}};
  p.out = reinterpret_cast<char*>(out);
  p.far = far, p.rows_at = rows_at;
  p.positions = reinterpret_cast<const int64_t*>(positions);
  p.keys_at = reinterpret_cast<const int64_t*>(keys_at);
  p.hidden = reinterpret_cast<const uint8_t*>(hidden);
  p.hidden_stride[0] = hidden_batch, p.hidden_stride[1] = hidden_row;
  p.scale = scale;
  const pybind11::gil_scoped_release release;
  cpu::cached_attention(p, threads, isa);
}

}  // namespace xlnet_fast
