// One plain struct per op: what a kernel needs, a shape beside each pointer. Letters as in
// docs/maths.md: b batch, n head, i query, j key; B, N, I, J their numbers.
#pragma once

#include <cstdint>

namespace xlnet_fast {

// Half-open: [begin, end).
struct Range {
  int64_t begin;
  int64_t end;

  int64_t size() const { return end - begin; }
};

enum class Dtype : int { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

// Memory of a tensor of up to four dimensions whose last one is contiguous: its address, and the
// strides of the others, in elements.
struct View {
  char* data = nullptr;
  int64_t stride[3] = {0, 0, 0};
};

struct KeepMaskParams {
  uint8_t* keep;  // [batch.size(), heads, rows.size(), keys], contiguous; 1 = kept, 0 = dropped
  int64_t seed;   // the Philox key: low word, high word
  uint32_t threshold;  // kept where the word is at least this
  int64_t heads;       // N: element (b, n) counts as b * N + n
  Range batch;         // of the whole batch, the elements to fill
  Range rows;          // of the I query rows, those to fill
  int64_t keys;        // J
};

// What all query rows of an attention call share. M memory keys, J keys in all, L = J - M current
// ones; P rows of r in G groups: batch element b reads group b * G / B.
struct AttentionKeys {
  Dtype dtype = Dtype::kFloat32;  // of every floating tensor
  int64_t batch = 0, heads = 0, head_dim = 0, keys = 0, memory = 0, groups = 1, table = 0;
  int64_t table_start = 0;  // row p of the index identity is row p - table_start of r
  View k, v;                // [b, j, n, d], the last J - apart keys
  View k_memory, v_memory;  // [b, j, n, d], the first `apart` keys
  int64_t apart = 0;
  View r;                                // [g, p, n, d]
  View r_w_bias, r_r_bias;               // [n, d]
  View r_s_bias, seg_embed;              // [n, d], [2, n, d]; null without segments
  const int32_t* segments = nullptr;     // [b, j] or null
  const uint8_t* key_padding = nullptr;  // [b, j] or null; 1 hides the key
  const int32_t* rank_k = nullptr;       // [b, j] or null
  float scale = 1.0f;
  float keep_scale = 1.0f;  // 1 / (1 - p)
  uint32_t keep_from = 0;   // kept where the Philox word is at least this
  bool dropout = false;
};

// One stream's query rows. Where `by_position`, the row of `segments`, `rank_q` and `bits` is the
// query's position, otherwise its index; each has `table` rows an element.
struct AttentionStream {
  int64_t rows = 0;                    // I
  int64_t table = 0;                   // rows of segments, rank_q, bits
  View q;                              // [b, i, n, d]
  View out;                            // [b, i, n, d], of the forward pass
  View d_out;                          // [b, i, n, d], of the backward pass
  View d_q;                            // [b, i, n, d] or null
  const int32_t* positions = nullptr;  // [b, i] or null: row i sits at position i; negative: absent
  const int32_t* segments = nullptr;   // [b, table] or null
  const int32_t* rank_q = nullptr;     // [b, table] or null
  const uint8_t* bits = nullptr;       // [b or 1, table, ceil(J / 8)] or null; bit j hides key j
  int64_t bits_batch_stride = 0;       // bytes from one batch element to the next
  uint64_t seed = 0;
  bool by_position = false, causal = false, same_length = false, see_self = false;
  // With start = M + position / chunk * chunk, key j is hidden but for
  // start - window_left <= j < start + chunk + window_right; -1: no limit there.
  int64_t window_left = -1, window_right = -1, chunk = 1;
  // Of the GPU kernels: statistics of the rows, [b, n, i] each, null where a pass needs none.
  const int64_t* seed_at = nullptr;  // in place of `seed`: one number in the device's memory
  float* stats = nullptr;            // log2 of the softmax's denominator, +inf: sees no key
  float* delta = nullptr;            // sum over j of P dP
  float* norm = nullptr;             // one over the sum of P as the backward pass makes it again
  float* c = nullptr;                // the segment score, in units of log2
  float* d_c = nullptr;              // its gradient, times the scale
};

// Where the gradients of what the streams share go; null: not wanted. Shapes as in AttentionKeys,
// contiguous but for the strides given; the vectors' gradients are fp32.
struct AttentionGradients {
  View k, v, k_memory, v_memory;  // as the keys and values
  View r;                         // [g, p, n, d]
  float* r_w_bias = nullptr;      // [n, d]
  float* r_r_bias = nullptr;      // [n, d]
  float* r_s_bias = nullptr;      // [n, d]
  float* seg_embed = nullptr;     // [n, d], of seg_embed[1] - seg_embed[0]
  // Of the GPU kernels: parts that somebody adds up in order, in place of the gradients above.
  int64_t splits = 1;               // of the batch elements of a group of r
  float* r_parts = nullptr;         // [split, g, n, p, d]
  float* r_w_bias_parts = nullptr;  // [tile of keys, b, n, d]
  float* r_r_bias_parts = nullptr;  // [split, tile of rows of r, g, n, d]
};

struct AttentionCall {
  AttentionKeys keys;
  AttentionStream stream[2];
  int streams = 1;
  AttentionGradients gradients;  // of the backward pass
};

// Attention probabilities and their gradients. I query rows, P columns of the position table, M
// memory keys of J; the position score of key j is in column j - position + J - M, 0 outside.
struct MaskedSoftmaxParams {
  Dtype dtype = Dtype::kFloat32;  // of every floating tensor
  int64_t batch = 0, heads = 0, rows = 0, keys = 0, memory = 0, table = 0;
  View scores;                           // [b, n, i, j]
  View position_scores;                  // [b, n, i, p] or null
  View segment_scores;                   // [b, n, i] or null
  const int32_t* segments_q = nullptr;   // [b, i], null where segment_scores is
  const int32_t* segments_k = nullptr;   // [b, j], null where segment_scores is
  const int32_t* positions = nullptr;    // [b, i] or null: row i sits at position i
  const uint8_t* key_padding = nullptr;  // [b, j] or null; 1 hides the key
  const int32_t* rank_q = nullptr;       // [b, i] or null
  const int32_t* rank_k = nullptr;       // [b, j] or null
  const uint8_t* bits = nullptr;         // [b or 1, i, ceil(J / 8)] or null; bit j hides key j
  int64_t bits_batch_stride = 0;         // bytes from one batch element to the next
  bool causal = false, same_length = false, see_self = false;
  int64_t window_left = -1, window_right = -1, chunk = 1;  // as of AttentionStream
  float scale = 1.0f;
  float keep_scale = 1.0f;  // 1 / (1 - p)
  uint32_t keep_from = 0;   // kept where the Philox word is at least this
  uint64_t seed = 0;
  const int64_t* seed_at = nullptr;  // of the GPU kernels in place of `seed`: in device memory
  bool dropout = false;
  View out;                                            // [b, n, i, j]
  View d_out;                                          // [b, n, i, j], of the backward pass
  View d_scores, d_position_scores, d_segment_scores;  // as the scores, of the backward pass
};

// The next memory of a model's layers: rows start .. of [memory; first rows of hidden], each layer
// one run of elements because rows are dense. M rows of memory, W elements a row.
struct ConcatMemoryParams {
  static constexpr int kMaxLayers = 32;  // of one call
  int layers = 0;
  int64_t first = 0;              // start * W: elements of [memory; hidden] left out
  int64_t boundary = 0;           // M * W: where hidden begins
  int64_t count = 0;              // elements of a layer's output
  Dtype dtype = Dtype::kFloat32;  // of hidden and out
  Dtype memory_dtype = Dtype::kFloat32;
  const char* hidden[kMaxLayers] = {};  // [i, b, h] each
  const char* memory[kMaxLayers] = {};  // [m, b, h] each, or null
  char* out = nullptr;                  // [layer, count]
};

// Attention of R query rows over cached keys (b, n, j, d); row p of the table is that of the
// distance far - p between the positions of row and key. All strides count elements, the last one
// is 1.
struct CachedAttentionParams {
  Dtype dtype = Dtype::kFloat32;  // of every floating tensor: fp32 or bfloat16
  int64_t rows = 0, batch = 0, heads = 0, head_dim = 0, keys = 0, table_rows = 0;
  View q;                              // [x, b, n, d]
  View k, v;                           // [b, n, j, d]
  View table;                          // [n, p, d]
  View r_w_bias, r_r_bias;             // [n, d]
  char* out = nullptr;                 // [x, b, n, d], contiguous
  int64_t far = 0;                     // distance of row 0 of the table
  int64_t rows_at = 0;                 // position of row 0, row x at rows_at + x; or
  const int64_t* positions = nullptr;  // [x], of all rows
  const int64_t* keys_at = nullptr;    // [j] or null: key j is at j
  const uint8_t* hidden = nullptr;     // [b or 1, x or 1, j] or null; 1 hides the key
  int64_t hidden_stride[2] = {0, 0};   // bytes from one batch element, one row to the next
  float scale = 1.0f;
};

// out = X W^T + b, then GELU of it or a residual added. All strides count elements.
struct LinearParams {
  Dtype dtype = Dtype::kFloat32;  // of every tensor: fp32, or bfloat16 with an even number of terms
  int64_t rows = 0, terms = 0, columns = 0;
  const char* x = nullptr;         // [row, term], either of them contiguous
  const char* weight = nullptr;    // [column, term], either of them contiguous
  const char* bias = nullptr;      // [column] or null
  const char* residual = nullptr;  // [row, column] or null, the columns contiguous
  char* out = nullptr;             // [row, column], the columns contiguous
  int64_t x_row = 0, x_term = 1, weight_column = 0, weight_term = 1, residual_row = 0, out_row = 0;
  bool gelu = false;  // the exact one, x Phi(x); without a residual
};

// out = x keep / (1 - p). Row i, key j is kept as element (0, 0, i, j) of a keep mask is.
struct DropoutParams {
  Dtype dtype = Dtype::kFloat32;  // of both tensors
  int64_t rows = 0, width = 0;
  const char* x = nullptr;  // [row, width], contiguous
  char* out = nullptr;      // [row, width], contiguous
  float keep_scale = 1.0f;  // 1 / (1 - p)
  uint32_t keep_from = 0;   // kept where the Philox word is at least this
  uint64_t seed = 0;
};

}  // namespace xlnet_fast
