// Dropout's random words: Philox4x32-10 (Salmon et al., SC 2011). The same function as
// xlnet_fast/philox.py and csrc/cpu/philox_core.h:
//   word(b, n, i, j) = word j % 4 of philox(key = seed, counter = (j / 4, i, b * N + n, 0))
#pragma once

#include "primitives.cuh"

namespace xlnet_fast::cuda {

// Keys of attention that share one counter.
constexpr int kPhiloxGroup = 4;

struct PhiloxKey {
  uint32_t low, high;
};

struct PhiloxWords {
  uint32_t word[kPhiloxGroup];
};

// The seed's two words; it is one number in the device's memory, so that nobody waits for it.
XLNET_FAST_DEVICE PhiloxKey philox_key(const int64_t* seed_at) {
  const auto seed = static_cast<uint64_t>(load(seed_at));
  return {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)};
}

XLNET_FAST_DEVICE PhiloxWords philox(PhiloxKey key, uint32_t group, uint32_t row,
                                     uint32_t head_flat) {
  constexpr uint32_t kMultiplier0 = 0xD2511F53u, kMultiplier1 = 0xCD9E8D57u;
  constexpr uint32_t kWeyl0 = 0x9E3779B9u, kWeyl1 = 0xBB67AE85u;  // added to the key a round
  uint32_t c0 = group, c1 = row, c2 = head_flat, c3 = 0;
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const uint32_t high0 = multiply_high(kMultiplier0, c0), low0 = kMultiplier0 * c0;
    const uint32_t high1 = multiply_high(kMultiplier1, c2), low1 = kMultiplier1 * c2;
    c0 = high1 ^ c1 ^ key.low, c1 = low1;
    c2 = high0 ^ c3 ^ key.high, c3 = low0;
    key.low += kWeyl0, key.high += kWeyl1;
  }
  return {{c0, c1, c2, c3}};
}

// Bit e: key 4 * group + e of query row `row` is kept; head_flat is b * N + n.
XLNET_FAST_DEVICE uint32_t keep_bits(PhiloxKey key, uint32_t group, uint32_t row,
                                     uint32_t head_flat, uint32_t keep_from) {
  const PhiloxWords words = philox(key, group, row, head_flat);
  uint32_t keep = 0;
#pragma unroll
  for (int e = 0; e < kPhiloxGroup; ++e) keep |= uint32_t{words.word[e] >= keep_from} << e;
  return keep;
}

}  // namespace xlnet_fast::cuda
