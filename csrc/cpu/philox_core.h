// Philox4x32-10 on one counter, and the keep mask of one row in plain C++ (Salmon et al., SC 2011).
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__GNUC__)
#define XLNET_FAST_INLINE inline __attribute__((always_inline))
#elif defined(_MSC_VER)
#define XLNET_FAST_INLINE __forceinline
#else
#define XLNET_FAST_INLINE inline
#endif

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "keep masks are packed four bytes to a little-endian word; this target is big-endian"
#endif

namespace xlnet_fast::cpu {

constexpr uint32_t kMultiplier0 = 0xD2511F53u;
constexpr uint32_t kMultiplier1 = 0xCD9E8D57u;
constexpr uint32_t kWeyl0 = 0x9E3779B9u;  // added to the key after each round
constexpr uint32_t kWeyl1 = 0xBB67AE85u;
constexpr int kRounds = 10;

struct Words {
  uint32_t x0, x1, x2, x3;
};

XLNET_FAST_INLINE Words philox(Words c, uint32_t k0, uint32_t k1) {
  for (int round = 0; round < kRounds; ++round) {
    const uint64_t product0 = static_cast<uint64_t>(kMultiplier0) * c.x0;
    const uint64_t product1 = static_cast<uint64_t>(kMultiplier1) * c.x2;
    c = {static_cast<uint32_t>(product1 >> 32) ^ c.x1 ^ k0, static_cast<uint32_t>(product1),
         static_cast<uint32_t>(product0 >> 32) ^ c.x3 ^ k1, static_cast<uint32_t>(product0)};
    k0 += kWeyl0;
    k1 += kWeyl1;
  }
  return c;
}

struct RowCounter {
  uint32_t row;        // i
  uint32_t head_flat;  // b * N + n
  uint32_t key0, key1;
  uint32_t threshold;  // kept where the word is at least this
  uint32_t group = 0;  // j / 4 of the first key that is filled, which is a multiple of 4
};

// The keep bytes of keys 4 * group .. 4 * group + 3, the first in the lowest byte.
XLNET_FAST_INLINE uint32_t keep_four(int64_t group, const RowCounter& at) {
  const Words w = philox({static_cast<uint32_t>(group), at.row, at.head_flat, 0}, at.key0, at.key1);
  return static_cast<uint32_t>(w.x0 >= at.threshold) |
         static_cast<uint32_t>(w.x1 >= at.threshold) << 8 |
         static_cast<uint32_t>(w.x2 >= at.threshold) << 16 |
         static_cast<uint32_t>(w.x3 >= at.threshold) << 24;
}

// Fills the bytes 4 * first_group .. keys - 1 of keep, which is (keys,) and begins at `at.group`.
XLNET_FAST_INLINE void keep_row_from(uint8_t* keep, int64_t first_group, int64_t keys,
                                     const RowCounter& at_reference) {
  const RowCounter at = at_reference;  // a local copy: no store through `keep` can change it
  const int64_t groups = keys / 4;
  for (int64_t group = first_group; group < groups; ++group) {
    const uint32_t four = keep_four(at.group + group, at);
    std::memcpy(keep + 4 * group, &four, 4);
  }
  if (const int64_t rest = keys % 4; rest != 0) {
    const uint32_t four = keep_four(at.group + groups, at);
    std::memcpy(keep + 4 * groups, &four, static_cast<size_t>(rest));
  }
}

}  // namespace xlnet_fast::cpu
