// Forward pass. The tiles of all rows are numbered head by head, within a head element by element;
// a thread takes a stretch of that list, so it packs a head's keys once, or twice at its ends. What
// a tile gives depends on the tile alone, so results do not depend on the number of threads.
#pragma once

#include "rel_attention_scores.h"

namespace xlnet_fast::cpu::XLNET_FAST_ISA {
namespace {

// Tiles of all streams of one head of one batch element.
inline int64_t tiles_of_head(const AttentionCall& call, int64_t tile_rows) {
  int64_t tiles = 0;
  for (int s = 0; s < call.streams; ++s) {
    tiles += (call.stream[s].rows + tile_rows - 1) / tile_rows;
  }
  return tiles;
}

template <class Words>
class ForwardWorker {
 public:
  ForwardWorker(const AttentionCall& call, Arena& arena)
      : call_(call),
        keys_(call.keys),
        head_(call.keys, false, arena),
        tile_(call.keys, head_, call.keep_row, arena),
        tile_rows_(rows_of_tile(head_.sizes().padded_keys)) {
    const Sizes& sizes = head_.sizes();
    value_stride_ = round_up(sizes.dim, kLanes);
    values_ = arena.take<float>(tile_rows_ * value_stride_);
    if (Words::kElements > 1) {
      probability_stride_ = sizes.padded_keys + 2 * kLanes;
      probabilities_ = arena.take<Element<Words>>(tile_rows_ * probability_stride_);
    }
  }

  void run(int64_t index) {
    const int64_t per_head = tiles_of_head(call_, tile_rows_);
    const int64_t b = index / per_head % keys_.batch, n = index / per_head / keys_.batch;
    int64_t rest = index % per_head;
    for (int s = 0; s < call_.streams; ++s) {
      const AttentionStream& stream = call_.stream[s];
      const int64_t tiles = (stream.rows + tile_rows_ - 1) / tile_rows_;
      if (rest < tiles) {
        head_.select(b, n);
        const int64_t first = rest * tile_rows_;
        tile_.begin(stream, b, n, first, min_of(tile_rows_, stream.rows - first));
        attend(stream, b, n);
        return;
      }
      rest -= tiles;
    }
  }

 private:
  void attend(const AttentionStream& stream, int64_t b, int64_t n) {
    const bool rounds_at_once = Words::kElements > 1 && !keys_.dropout;
    tile_.softmax(rounds_at_once ? probabilities_ : nullptr, probability_stride_);
    const int64_t width = tile_.columns.size(), dim = head_.sizes().dim;
    if (!rounds_at_once) {
      for (int64_t i = 0; i < tile_.rows; ++i) finish_row(i, width);
    }
    multiply<Words>(tile_.rows, dim, words_of<Words>(width), probabilities(),
                    head_.v_rows(tile_.columns.begin), values_, value_stride_, false);
    const float keep_scale = keys_.dropout ? keys_.keep_scale : 1.0f;
    for (int64_t i = 0; i < tile_.rows; ++i) {
      float* row = values_ + i * value_stride_;
      const float factor = tile_.is_absent(i) ? 0.0f : keep_scale * tile_.inverse_sum[i];
      for (int64_t d = 0; d < dim; ++d) row[d] = factor == 0.0f ? 0.0f : row[d] * factor;
      write_floats(row, dim, keys_.dtype, at(stream.out, keys_.dtype, b, tile_.first() + i, n));
    }
  }

  // Drops what dropout drops, and rounds to the elements of a product.
  void finish_row(int64_t i, int64_t width) {
    float* row = tile_.scores + i * tile_.stride;
    if (keys_.dropout) {
      const uint8_t* keep = tile_.keep(i);
      for (int64_t j = 0; j < width; ++j) row[j] = keep[j] != 0 ? row[j] : 0.0f;
    }
    if (Words::kElements > 1) {
      write_elements<Words>(row, width, probabilities_ + i * probability_stride_);
    }
  }

  Left probabilities() const {
    if (Words::kElements == 1) return {tile_.scores, tile_.stride, 1};
    return {reinterpret_cast<const float*>(probabilities_), probability_stride_ / Words::kElements,
            1};
  }

  const AttentionCall& call_;
  const AttentionKeys& keys_;
  Head<Words> head_;
  Tile<Words> tile_;
  const int64_t tile_rows_;
  int64_t value_stride_ = 0, probability_stride_ = 0;
  float* values_;
  Element<Words>* probabilities_ = nullptr;
};

template <class Words>
int64_t forward_bytes(const AttentionCall& call) {
  Arena arena(nullptr);
  ForwardWorker<Words> worker(call, arena);
  return arena.used();
}

template <class Words>
void forward_part(const AttentionCall& call, char* memory, int part, int parts) {
  Arena arena(memory);
  ForwardWorker<Words> worker(call, arena);
  const int64_t tiles = call.keys.batch * call.keys.heads *
                        tiles_of_head(call, rows_of_tile(Sizes(call.keys).padded_keys));
  const TileRegisters registers;
  for (int64_t t = tiles * part / parts; t < tiles * (part + 1) / parts; ++t) worker.run(t);
}

}  // namespace
}  // namespace xlnet_fast::cpu::XLNET_FAST_ISA
