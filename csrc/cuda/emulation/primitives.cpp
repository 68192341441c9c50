#define XLNET_FAST_EMULATION 1
#include "../primitives.cuh"

#include <algorithm>
#include <array>

namespace xlnet_fast::cuda::emulation {

namespace {

float decode_float16(uint16_t bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  const float sign = (bits & 0x8000) != 0 ? -1.0f : 1.0f;
  if (exponent == 31) {
    return fraction == 0 ? sign * infinity() : std::numeric_limits<float>::quiet_NaN();
  }
  return sign * (exponent == 0 ? std::ldexp(static_cast<float>(fraction), -24)
                               : std::ldexp(static_cast<float>(fraction + 1024), exponent - 25));
}

uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}

// c += a b of one warp, from and to its fragments.
template <class Element>
void multiply_fragments(Block& block, void* const* lanes, Element element) {
  float a[16][16], b[16][8], c[16][8];
  const auto at = [&](int lane) { return static_cast<const Product*>(lanes[lane]); };
  for (int lane = 0; lane < kWarpSize; ++lane) {
    const int g = lane / 4, t = lane % 4;
    const Product& mine = *at(lane);
    for (int word = 0; word < 4; ++word) {
      const Pair pair = unpack(element, mine.a[word]);
      const int row = g + 8 * (word % 2), term = 2 * t + 8 * (word / 2);
      a[row][term] = pair.low, a[row][term + 1] = pair.high;
    }
    for (int word = 0; word < 2; ++word) {
      const Pair pair = unpack(element, mine.b[word]);
      const int term = 2 * t + 8 * word;
      b[term][g] = pair.low, b[term + 1][g] = pair.high;
    }
    for (int part = 0; part < 4; ++part) {
      c[g + 8 * (part / 2)][2 * t + part % 2] = mine.c[part];
    }
  }
  for (int row = 0; row < 16; ++row) {
    for (int term = 0; term < 16; ++term) {
      for (int column = 0; column < 8; ++column) c[row][column] += a[row][term] * b[term][column];
    }
  }
  for (int lane = 0; lane < kWarpSize; ++lane) {
    const int g = lane / 4, t = lane % 4;
    for (int part = 0; part < 4; ++part) {
      at(lane)->c[part] = c[g + 8 * (part / 2)][2 * t + part % 2];
    }
  }
  block.count_product();
}

}  // namespace

float from_bits(BFloat16, uint16_t bits) {
  const uint32_t word = uint32_t{bits} << 16;
  float x;
  std::memcpy(&x, &word, 4);
  return x;
}

float from_bits(Float16, uint16_t bits) {
  static const auto table = [] {
    std::array<float, 65536> values{};
    for (uint32_t i = 0; i < values.size(); ++i) {
      values[i] = decode_float16(static_cast<uint16_t>(i));
    }
    return values;
  }();
  return table[bits];
}

uint16_t to_bits(BFloat16, float x) {
  const uint32_t bits = bits_of(x);
  if (x != x) return 0x7fff;
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

uint16_t to_bits(Float16, float x) {
  const auto sign = static_cast<uint16_t>(bits_of(x) >> 16 & 0x8000);
  const float size = std::fabs(x);
  if (x != x) return 0x7fff;
  if (size == 0.0f) return sign;
  if (size >= 65520.0f) return sign | 0x7c00;
  // In units of the last place, an integer after rounding to even.
  int exponent = 0;
  std::frexp(size, &exponent);
  const int scale = std::max(exponent - 11, -24);
  const auto units = static_cast<uint32_t>(std::nearbyint(std::ldexp(size, -scale)));
  return static_cast<uint16_t>(sign + units + (static_cast<uint32_t>(scale + 24) << 10));
}

void mma(Block& block, void* const* lanes, BFloat16 element) {
  multiply_fragments(block, lanes, element);
}
void mma(Block& block, void* const* lanes, Float16 element) {
  multiply_fragments(block, lanes, element);
}

void ldmatrix(Block& block, void* const* lanes, bool transposed) {
  uint32_t offsets[kWarpSize];
  uint16_t row[kWarpSize][8];
  for (int lane = 0; lane < kWarpSize; ++lane) {
    offsets[lane] = static_cast<const Matrices*>(lanes[lane])->offset;
    std::memcpy(row[lane], block.read_matrix_row(offsets[lane]), 16);
  }
  block.count_matrices(offsets);
  for (int lane = 0; lane < kWarpSize; ++lane) {
    const int g = lane / 4, t = lane % 4;
    for (int m = 0; m < 4; ++m) {
      const uint16_t low = transposed ? row[8 * m + 2 * t][g] : row[8 * m + g][2 * t];
      const uint16_t high = transposed ? row[8 * m + 2 * t + 1][g] : row[8 * m + g][2 * t + 1];
      static_cast<Matrices*>(lanes[lane])->words[m] = low | uint32_t{high} << 16;
    }
  }
}

}  // namespace xlnet_fast::cuda::emulation
