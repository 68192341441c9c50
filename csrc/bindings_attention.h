// From Python's keyword arguments to the structs of params.h: each field by its name, a tensor as
// (address, strides in elements of all dimensions but the last), None for an absent one.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>

#include "params.h"

namespace xlnet_fast {

inline View view_of(const pybind11::handle& value) {
  View view;
  if (value.is_none()) return view;
  const auto parts = pybind11::cast<pybind11::tuple>(value);
  if (parts.size() < 1 || parts.size() > 4) {
    throw std::invalid_argument("a tensor is its address and up to three strides");
  }
  view.data = reinterpret_cast<char*>(pybind11::cast<uintptr_t>(parts[0]));
  for (size_t i = 1; i < parts.size(); ++i) {
    view.stride[i - 1] = pybind11::cast<int64_t>(parts[i]);
  }
  return view;
}

// An entry that reads a struct from a dict of fields and runs without Python's lock.
template <auto Read, auto Run, class... Rest>
void run_with(const pybind11::dict& fields, Rest... rest) {
  const auto params = Read(fields);
  const pybind11::gil_scoped_release release;
  Run(params, rest...);
}

// Takes fields out of a dict one by one; what is left over at the end was misspelt.
class Fields {
 public:
  explicit Fields(const pybind11::dict& fields) : fields_(fields) {}

  template <class T>
  void operator()(const char* name, T& field) {
    if (!fields_.contains(name)) return;
    ++taken_;
    const pybind11::object value = fields_[name];
    if constexpr (std::is_same_v<T, View>) {
      field = view_of(value);
    } else if constexpr (std::is_pointer_v<T>) {
      field = value.is_none() ? nullptr : reinterpret_cast<T>(pybind11::cast<uintptr_t>(value));
    } else if constexpr (std::is_same_v<T, Dtype>) {
      field = static_cast<Dtype>(pybind11::cast<int>(value));
    } else {
      field = pybind11::cast<T>(value);
    }
  }

  void done() const {
    if (taken_ != fields_.size()) throw std::invalid_argument("a field has no such name");
  }

 private:
  const pybind11::dict& fields_;
  size_t taken_ = 0;
};

inline AttentionKeys attention_keys(const pybind11::dict& dict) {
  AttentionKeys k;
  Fields take(dict);
  take("dtype", k.dtype), take("batch", k.batch), take("heads", k.heads);
  take("head_dim", k.head_dim), take("keys", k.keys), take("memory", k.memory);
  take("groups", k.groups), take("table", k.table), take("apart", k.apart);
  take("table_start", k.table_start);
  take("k", k.k), take("v", k.v), take("k_memory", k.k_memory), take("v_memory", k.v_memory);
  take("r", k.r), take("r_w_bias", k.r_w_bias), take("r_r_bias", k.r_r_bias);
  take("r_s_bias", k.r_s_bias), take("seg_embed", k.seg_embed), take("segments", k.segments);
  take("key_padding", k.key_padding), take("rank_k", k.rank_k), take("scale", k.scale);
  take("dropout", k.dropout), take("keep_scale", k.keep_scale), take("keep_from", k.keep_from);
  take.done();
  return k;
}

inline AttentionStream attention_stream(const pybind11::dict& dict) {
  AttentionStream s;
  Fields take(dict);
  take("rows", s.rows), take("table", s.table), take("q", s.q), take("out", s.out);
  take("d_out", s.d_out), take("d_q", s.d_q), take("positions", s.positions);
  take("segments", s.segments), take("rank_q", s.rank_q), take("bits", s.bits);
  take("bits_batch_stride", s.bits_batch_stride), take("seed", s.seed);
  take("by_position", s.by_position), take("causal", s.causal);
  take("same_length", s.same_length), take("see_self", s.see_self), take("seed_at", s.seed_at);
  take("window_left", s.window_left), take("window_right", s.window_right), take("chunk", s.chunk);
  take("stats", s.stats), take("delta", s.delta), take("norm", s.norm);
  take("c", s.c), take("d_c", s.d_c);
  take.done();
  return s;
}

inline AttentionGradients attention_gradients(const pybind11::dict& dict) {
  AttentionGradients g;
  Fields take(dict);
  take("k", g.k), take("v", g.v), take("k_memory", g.k_memory), take("v_memory", g.v_memory);
  take("r", g.r), take("r_w_bias", g.r_w_bias), take("r_r_bias", g.r_r_bias);
  take("r_s_bias", g.r_s_bias), take("seg_embed", g.seg_embed), take("splits", g.splits);
  take("r_parts", g.r_parts), take("r_w_bias_parts", g.r_w_bias_parts);
  take("r_r_bias_parts", g.r_r_bias_parts);
  take.done();
  return g;
}

inline AttentionCall attention_call(const pybind11::dict& keys, const pybind11::list& streams,
                                    const pybind11::dict& gradients) {
  AttentionCall call;
  call.keys = attention_keys(keys);
  if (streams.size() < 1 || streams.size() > 2) {
    throw std::invalid_argument("there must be one stream or two");
  }
  call.streams = static_cast<int>(streams.size());
  for (int s = 0; s < call.streams; ++s) {
    call.stream[s] = attention_stream(streams[static_cast<size_t>(s)]);
  }
  call.gradients = attention_gradients(gradients);
  return call;
}

}  // namespace xlnet_fast
