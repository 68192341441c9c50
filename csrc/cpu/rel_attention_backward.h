// Backward pass, formulas in docs/maths.md. The scores are computed again, a tile of query rows
// against all keys, so nothing need be saved; with P and dP of whole rows at hand, D = sum_j P dP
// is exact (the sum over dO O would carry the rounding of O).
//
// A task is one head of some batch elements of one group of r. It alone adds to the gradients of
// its keys, and to a copy of its own of the gradients of r and of the bias vectors; those copies
// are added up in order afterwards. Tasks do not depend on the number of threads: nor do results.
//
// Gradients of position scores are laid out by p instead of j, once, so that their products with r
// and with the queries are plain ones.
#pragma once

#include "rel_attention_scores.h"

namespace xlnet_fast::cpu::XLNET_FAST_ISA {
namespace {

constexpr int64_t kWantedTasks = 32;  // enough to keep that many threads busy

// How the batch is cut into tasks, and what one leaves for the final sum.
struct Tasks {
  int64_t per_group;   // tasks of one head and one group of r
  int64_t count;       // in all
  int64_t dim_stride;  // from one row of fp32 gradients to the next
  int64_t table_words, vector_words;

  explicit Tasks(const AttentionKeys& keys) {
    const Sizes sizes(keys);
    const int64_t elements = keys.batch / keys.groups, alike = keys.heads * keys.groups;
    per_group = max_of(1, min_of(elements, (kWantedTasks + alike - 1) / alike));
    count = alike * per_group;
    dim_stride = round_up(sizes.dim, kLanes);
    table_words = round_up(sizes.table, kTileRows) * dim_stride;
    vector_words = 4 * dim_stride;
  }

  float* table_sum(char* shared, int64_t task) const {
    return reinterpret_cast<float*>(shared) + task * (table_words + vector_words);
  }
  // [4, D]: of r_w_bias, r_r_bias, r_s_bias and seg_embed[1] - seg_embed[0].
  float* vector_sum(char* shared, int64_t task) const {
    return table_sum(shared, task) + table_words;
  }
  int64_t shared_bytes() const {
    return count * (table_words + vector_words) * static_cast<int64_t>(sizeof(float));
  }
};

// A matrix of scores [rows, columns] that products read along either direction.
template <class Words>
class Factor {
 public:
  Factor(int64_t rows, int64_t columns, bool both, Arena& arena) {
    stride_ = round_up(columns, 16) + 16;
    if (stride_ % 256 == 0) stride_ += 16;
    elements =
        arena.take<Element<Words>>(both || Words::kElements == 1 ? rows * stride_ : 2 * stride_);
    keeps_rows_ = both;
    if (Words::kElements > 1) pairs_ = arena.take<uint32_t>((rows + 1) / 2 * stride_);
  }

  // Where row i is to be written. Without `both`, row i - 2 is overwritten: call `row_done` first.
  Element<Words>* row(int64_t i) {
    return elements + (keeps_rows_ || Words::kElements == 1 ? i : i % 2) * stride_;
  }

  // Row i of `rows` is complete in its first `columns`.
  void row_done(int64_t i, int64_t rows, int64_t columns) {
    if (Words::kElements == 1 || (i % 2 == 0 && i + 1 < rows)) return;
    uint32_t* out = pairs_ + i / 2 * stride_;
    const Element<Words>*even = row(i - i % 2), *odd = row(i);
    for (int64_t j = 0; j < columns; ++j) {
      const auto low = static_cast<uint32_t>(even[j]);
      out[j] = i % 2 == 0 ? low : low | static_cast<uint32_t>(odd[j]) << 16;
    }
  }

  Left by_rows() const {
    return {reinterpret_cast<const float*>(elements), stride_ / Words::kElements, 1};
  }
  Left by_columns() const {
    if (Words::kElements == 1) return {reinterpret_cast<const float*>(elements), 1, stride_};
    return {reinterpret_cast<const float*>(pairs_), 1, stride_};
  }

  Element<Words>* elements;

 private:
  int64_t stride_;
  bool keeps_rows_;
  uint32_t* pairs_ = nullptr;
};

template <class Words>
class BackwardWorker {
 public:
  BackwardWorker(const AttentionCall& call, char* shared, Arena& arena)
      : call_(call),
        keys_(call.keys),
        tasks_(call.keys),
        shared_(shared),
        head_(call.keys, true, arena),
        tile_(call.keys, head_, call.keep_row, arena),
        tile_rows_(rows_of_tile(head_.sizes().padded_keys)),
        dropped_(tile_rows_, head_.sizes().padded_keys, false, arena),
        d_scores_(tile_rows_, head_.sizes().padded_keys, true, arena),
        d_table_(tile_rows_, head_.sizes().table + kPanel, true, arena) {
    const Sizes& sizes = head_.sizes();
    const int64_t elements = head_.depth() * Words::kElements;
    const int64_t row_panels = panel_words(words_of<Words>(tile_rows_), sizes.dim);
    d_keys_ = arena.take<float>((sizes.padded_keys + kTileRows) * tasks_.dim_stride);
    d_values_ = arena.take<float>((sizes.padded_keys + kTileRows) * tasks_.dim_stride);
    d_out_ = arena.take<Element<Words>>(tile_rows_ * elements);
    zeros_ = arena.take<Element<Words>>(elements);
    row_ = arena.take<float>(max_of(sizes.dim, sizes.padded_keys));
    factor_ = arena.take<float>(keys_.dropout ? sizes.padded_keys : 0);
    d_probability_ = arena.take<float>(tile_rows_ * tile_.stride);
    d_out_rows_ = arena.take<float>(row_panels);
    q_w_rows_ = arena.take<float>(row_panels);
    q_r_rows_ = arena.take<float>(row_panels);
    dq_w_ = arena.take<float>(tile_rows_ * tasks_.dim_stride);
    dq_r_ = arena.take<float>(tile_rows_ * tasks_.dim_stride);
    dc_ = arena.take<float>(tile_rows_);
    tile_sum_ = arena.take<float>(tasks_.vector_words);
    if (arena.counting()) return;
    for (int64_t d = 0; d < elements; ++d) zeros_[d] = 0;
  }

  void run(int64_t task) {
    const int64_t chunk = task % tasks_.per_group, rest = task / tasks_.per_group;
    const int64_t group = rest % keys_.groups, n = rest / keys_.groups;
    const int64_t elements = keys_.batch / keys_.groups;
    table_sum_ = tasks_.table_sum(shared_, task);
    vector_sum_ = tasks_.vector_sum(shared_, task);
    clear(table_sum_, tasks_.table_words + tasks_.vector_words);
    const int64_t first = group * elements;
    for (int64_t b = first + elements * chunk / tasks_.per_group;
         b < first + elements * (chunk + 1) / tasks_.per_group; ++b) {
      head_.select(b, n);
      clear(d_keys_, head_.sizes().keys * tasks_.dim_stride);
      clear(d_values_, head_.sizes().keys * tasks_.dim_stride);
      for (int s = 0; s < call_.streams; ++s) run_stream(call_.stream[s], b, n);
      write_keys(d_keys_, call_.gradients.k_memory, call_.gradients.k, b, n);
      write_keys(d_values_, call_.gradients.v_memory, call_.gradients.v, b, n);
    }
  }

 private:
  static void clear(float* x, int64_t count) {
    __builtin_memset(x, 0, static_cast<size_t>(count) * sizeof(float));
  }

  void run_stream(const AttentionStream& stream, int64_t b, int64_t n) {
    for (int64_t first = 0; first < stream.rows; first += tile_rows_) {
      tile_.begin(stream, b, n, first, min_of(tile_rows_, stream.rows - first));
      tile_.softmax();
      read_d_out(stream, b, n);
      const int64_t depth = head_.depth();
      const Right values{head_.v_columns().data + tile_.columns.begin * depth, depth};
      multiply<Words>(tile_.rows, tile_.columns.size(), depth,
                      {reinterpret_cast<const float*>(d_out_), depth, 1}, values, d_probability_,
                      tile_.stride, false);
      place_table();
      for (int64_t i = 0; i < tile_.rows; ++i) score_gradients(i);
      add_products();
      write_queries(stream, b, n);
    }
  }

  // The upstream gradient and the queries, as rows and as panels.
  void read_d_out(const AttentionStream& stream, int64_t b, int64_t n) {
    const int64_t elements = head_.depth() * Words::kElements, dim = head_.sizes().dim;
    for (int64_t i = 0; i < tile_.rows; ++i) {
      Element<Words>* row = d_out_ + i * elements;
      if (tile_.is_absent(i)) {
        for (int64_t d = 0; d < elements; ++d) row[d] = 0;
      } else {
        const char* data = at(stream.d_out, keys_.dtype, b, tile_.first() + i, n);
        read_row<Words>(data, keys_.dtype, dim, false, row_, row);
      }
    }
    put_rows<Words>(d_out_, tile_.rows, elements, dim, zeros_, d_out_rows_);
    put_rows<Words>(tile_.q_w, tile_.rows, elements, dim, zeros_, q_w_rows_);
    put_rows<Words>(tile_.q_r, tile_.rows, elements, dim, zeros_, q_r_rows_);
  }

  // Which rows of r the tile's rows touch: table_.
  void place_table() {
    int64_t lowest = tile_.shift[0], highest = tile_.shift[0];
    for (int64_t i = 1; i < tile_.rows; ++i) {
      lowest = min_of(lowest, tile_.shift[i]);
      highest = max_of(highest, tile_.shift[i]);
    }
    table_ = {lowest / Words::kElements * Words::kElements, highest + tile_.columns.size()};
  }

  // From scores and dP of row i: P with dropout, dS by key, dS by row of r, and dc.
  void score_gradients(int64_t i) {
    const int64_t width = tile_.columns.size();
    float* p = tile_.scores + i * tile_.stride;
    float* dp = d_probability_ + i * tile_.stride;
    const Vec inverse = splat(tile_.inverse_sum[i]), scale = splat(keys_.scale);
    const bool drops = keys_.dropout;
    if (drops) {
      const uint8_t* keep = tile_.keep(i);
      for (int64_t j = 0; j < width; ++j) factor_[j] = keep[j] != 0 ? keys_.keep_scale : 0.0f;
    }
    BlockSum sum;
    for (int64_t j = 0; j < width; j += kLanes) {
      const Vec probability = load(p + j) * inverse;
      Vec gradient = load(dp + j);
      if (j + kLanes > width) {  // beyond the last key lies anything
        const VecInt inside = lane_numbers() < splat_int(static_cast<int32_t>(width - j));
        gradient = select(inside, gradient, splat(0.0f));
        if (drops) gradient *= select(inside, load(factor_ + j), splat(0.0f));
      } else if (drops) {
        gradient *= load(factor_ + j);
      }
      sum.add(probability * gradient);
      store(p + j, probability);
      store(dp + j, gradient);
    }
    const Vec mean = splat(sum.value());
    for (int64_t j = 0; j < width; j += kLanes) {
      store(dp + j, load(p + j) * (load(dp + j) - mean) * scale);
    }
    dc_[i] = tile_.has_segments() ? sum_where_segments_differ(i, p, dp, width) : 0.0f;
    if (drops) {
      for (int64_t j = 0; j < width; ++j) p[j] *= factor_[j];
    }
    keep_factors(i, p, dp, width);
  }

  // The sum of dS over all keys is zero but for D's rounding, which is taken out again in
  // proportion to P: terms that nearly cancel would carry it into the gradient of r_s_bias.
  float sum_where_segments_differ(int64_t i, const float* p, const float* dp, int64_t width) const {
    const int32_t* segments = head_.segments() + tile_.columns.begin;
    const VecInt own = splat_int(tile_.segment(i));
    BlockSum differing, share, all;
    for (int64_t j = 0; j < width; j += kLanes) {  // p and dp are zero beyond the last key
      const VecInt differs = load_int(segments + j) != own;
      const Vec gradient = load(dp + j);
      all.add(gradient);
      differing.add(select(differs, gradient, splat(0.0f)));
      share.add(select(differs, load(p + j), splat(0.0f)));
    }
    return differing.value() - all.value() * share.value();
  }

  void keep_factors(int64_t i, const float* p, const float* dp, int64_t width) {
    write_elements<Words>(p, width, dropped_.row(i));
    dropped_.row_done(i, tile_.rows, width);
    write_elements<Words>(dp, width, d_scores_.row(i));
    d_scores_.row_done(i, tile_.rows, width);
    const int64_t offset = tile_.shift[i] - table_.begin;
    Element<Words>* row = d_table_.row(i);
    const int64_t end = words_of<Words>(table_.size()) * Words::kElements;
    __builtin_memset(row, 0, static_cast<size_t>(offset) * sizeof(*row));
    __builtin_memcpy(row + offset, d_scores_.row(i), static_cast<size_t>(width) * sizeof(*row));
    __builtin_memset(row + offset + width, 0,
                     static_cast<size_t>(end - offset - width) * sizeof(*row));
    d_table_.row_done(i, tile_.rows, table_.size());
  }

  void add_products() {
    const int64_t dim = head_.sizes().dim, stride = tasks_.dim_stride;
    const int64_t width = tile_.columns.size(), key = tile_.columns.begin;
    const int64_t depth = words_of<Words>(tile_.rows);
    const auto rows_of = [&](const float* panels) { return Right{panels, depth}; };
    multiply<Words>(width, dim, depth, dropped_.by_columns(), rows_of(d_out_rows_),
                    d_values_ + key * stride, stride, true);
    multiply<Words>(width, dim, depth, d_scores_.by_columns(), rows_of(q_w_rows_),
                    d_keys_ + key * stride, stride, true);
    multiply<Words>(table_.size(), dim, depth, d_table_.by_columns(), rows_of(q_r_rows_),
                    table_sum_ + table_.begin * stride, stride, true);
    multiply<Words>(tile_.rows, dim, words_of<Words>(width), d_scores_.by_rows(), head_.k_rows(key),
                    dq_w_, stride, false);
    multiply<Words>(tile_.rows, dim, words_of<Words>(table_.size()), d_table_.by_rows(),
                    head_.r_rows(table_.begin), dq_r_, stride, false);
  }

  // The vectors' sums are those of a tile's rows first: a sum of short sums rounds less.
  void write_queries(const AttentionStream& stream, int64_t b, int64_t n) {
    clear(tile_sum_, tasks_.vector_words);
    const int64_t dim = head_.sizes().dim, stride = tasks_.dim_stride;
    const float *difference = tile_.segment_difference(), *bias = tile_.segment_bias();
    for (int64_t i = 0; i < tile_.rows; ++i) {
      const float *content = dq_w_ + i * stride, *position = dq_r_ + i * stride;
      const float *q = tile_.q + i * tile_.dim_stride, dc = dc_[i];
      for (int64_t d = 0; d < dim; ++d) {
        tile_sum_[d] += content[d];
        tile_sum_[stride + d] += position[d];
        row_[d] = content[d] + position[d];
      }
      if (tile_.has_segments()) {
        for (int64_t d = 0; d < dim; ++d) {
          tile_sum_[2 * stride + d] += dc * difference[d];
          tile_sum_[3 * stride + d] += dc * (q[d] + bias[d]);
          row_[d] += dc * difference[d];
        }
      }
      if (stream.d_q.data == nullptr) continue;
      write_floats(row_, dim, keys_.dtype, at(stream.d_q, keys_.dtype, b, tile_.first() + i, n));
    }
    for (int64_t d = 0; d < tasks_.vector_words; ++d) vector_sum_[d] += tile_sum_[d];
  }

  void write_keys(const float* sums, const View& memory, const View& current, int64_t b,
                  int64_t n) const {
    for (int64_t j = 0; j < keys_.keys; ++j) {
      const bool in_memory = j < keys_.apart;
      const View& view = in_memory ? memory : current;
      if (view.data == nullptr) continue;
      write_floats(sums + j * tasks_.dim_stride, keys_.head_dim, keys_.dtype,
                   at(view, keys_.dtype, b, in_memory ? j : j - keys_.apart, n));
    }
  }

  const AttentionCall& call_;
  const AttentionKeys& keys_;
  const Tasks tasks_;
  char* shared_;
  Head<Words> head_;
  Tile<Words> tile_;
  const int64_t tile_rows_;
  Factor<Words> dropped_, d_scores_;  // [rows, J]: P after dropout, dS
  Factor<Words> d_table_;             // [rows, table_.size()]: dS by row of r
  Range table_{0, 0};
  float *d_keys_, *d_values_;  // [J, D], of the element at hand
  Element<Words>*d_out_, *zeros_;
  float *row_, *factor_, *d_probability_;
  float *d_out_rows_, *q_w_rows_, *q_r_rows_;  // panels
  float *dq_w_, *dq_r_, *dc_, *tile_sum_;
  float *table_sum_ = nullptr, *vector_sum_ = nullptr;
};

template <class Words>
int64_t backward_bytes(const AttentionCall& call) {
  Arena arena(nullptr);
  BackwardWorker<Words> worker(call, nullptr, arena);
  return arena.used();
}

inline int64_t backward_shared_bytes(const AttentionCall& call) {
  return Tasks(call.keys).shared_bytes();
}

template <class Words>
void backward_part(const AttentionCall& call, char* memory, char* shared, int part, int parts) {
  Arena arena(memory);
  BackwardWorker<Words> worker(call, shared, arena);
  const int64_t count = Tasks(call.keys).count;
  const TileRegisters registers;
  for (int64_t task = part; task < count; task += parts) worker.run(task);
}

// Adds up what the tasks left, head by head.
inline void sum_vectors(const AttentionCall& call, char* shared, int64_t n) {
  const AttentionKeys& keys = call.keys;
  const Tasks tasks(keys);
  const int64_t first = n * keys.groups * tasks.per_group;
  float* const outs[] = {call.gradients.r_w_bias, call.gradients.r_r_bias, call.gradients.r_s_bias,
                         call.gradients.seg_embed};
  for (int which = 0; which < 4; ++which) {
    if (outs[which] == nullptr) continue;
    float* out = outs[which] + n * keys.head_dim;
    for (int64_t d = 0; d < keys.head_dim; ++d) out[d] = 0.0f;
    for (int64_t t = first; t < first + keys.groups * tasks.per_group; ++t) {
      const float* sum = tasks.vector_sum(shared, t) + which * tasks.dim_stride;
      for (int64_t d = 0; d < keys.head_dim; ++d) out[d] += sum[d];
    }
  }
}

inline void sum_table(const AttentionCall& call, char* shared, int64_t group, int64_t n) {
  const AttentionKeys& keys = call.keys;
  const Tasks tasks(keys);
  const int64_t first = (n * keys.groups + group) * tasks.per_group, used = Sizes(keys).table;
  float* total = tasks.table_sum(shared, first);
  for (int64_t t = first + 1; t < first + tasks.per_group; ++t) {
    const float* sum = tasks.table_sum(shared, t);
    for (int64_t i = 0; i < used * tasks.dim_stride; ++i) total[i] += sum[i];
  }
  for (int64_t p = 0; p < keys.table; ++p) {
    char* row = at(call.gradients.r, keys.dtype, group, p, n);
    if (const int64_t from = p + keys.table_start; from < used) {
      write_floats(total + from * tasks.dim_stride, keys.head_dim, keys.dtype, row);
    } else {
      __builtin_memset(row, 0, static_cast<size_t>(keys.head_dim * size_of(keys.dtype)));
    }
  }
}

inline void backward_sums(const AttentionCall& call, char* shared, int part, int parts) {
  const AttentionKeys& keys = call.keys;
  for (int64_t n = keys.heads * part / parts; n < keys.heads * (part + 1) / parts; ++n) {
    sum_vectors(call, shared, n);
    if (call.gradients.r.data == nullptr) continue;
    for (int64_t group = 0; group < keys.groups; ++group) sum_table(call, shared, group, n);
  }
}

}  // namespace
}  // namespace xlnet_fast::cpu::XLNET_FAST_ISA
