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

struct KeepMaskParams {
  uint8_t* keep;  // [batch.size(), heads, rows.size(), keys], contiguous; 1 = kept, 0 = dropped
  int64_t seed;   // the Philox key: low word, high word
  uint32_t threshold;  // kept where the word is at least this
  int64_t heads;       // N: element (b, n) counts as b * N + n
  Range batch;         // of the whole batch, the elements to fill
  Range rows;          // of the I query rows, those to fill
  int64_t keys;        // J
};

}  // namespace xlnet_fast
