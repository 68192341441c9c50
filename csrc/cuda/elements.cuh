// Runs of elements in global memory: as many as 16 bytes hold, a "piece", at a time. A run may
// begin anywhere; two aligned pieces and a shift make one that lies across. Elements travel as
// their bits, and are floats where a kernel computes.
#pragma once

#include <cstring>

#include "primitives.cuh"

namespace xlnet_fast::cuda {

struct Float32 {};

// The bits of one element in memory.
template <class Element>
struct BitsOf {
  using Type = uint16_t;
};
template <>
struct BitsOf<Float32> {
  using Type = uint32_t;
};
template <class Element>
using Bits = typename BitsOf<Element>::Type;

constexpr int kPieceBytes = 16;
template <class Element>
constexpr int kPiece = kPieceBytes / static_cast<int>(sizeof(Bits<Element>));

template <class To, class From>
XLNET_FAST_DEVICE To bit_cast(From x) {
  static_assert(sizeof(To) == sizeof(From), "a value of another size");
  To y;
  memcpy(&y, &x, sizeof y);
  return y;
}

// --- between bits and floats
// ----------------------------------------------------------------------

XLNET_FAST_DEVICE float decode(Float32, uint32_t bits) { return bit_cast<float>(bits); }
template <class Half>
XLNET_FAST_DEVICE float decode(Half, uint16_t bits) {
  return unpack(Half{}, uint32_t{bits}).low;
}

XLNET_FAST_DEVICE uint32_t encode(Float32, float x) { return bit_cast<uint32_t>(x); }
template <class Half>
XLNET_FAST_DEVICE uint16_t encode(Half, float x) {
  return static_cast<uint16_t>(pack(Half{}, x, 0.0f));
}

XLNET_FAST_DEVICE void decode_piece(Float32, const Chunk& piece, float* x) {  // [4]
#pragma unroll
  for (int w = 0; w < 4; ++w) x[w] = bit_cast<float>(piece.word[w]);
}
template <class Half>
XLNET_FAST_DEVICE void decode_piece(Half, const Chunk& piece, float* x) {  // [8]
#pragma unroll
  for (int w = 0; w < 4; ++w) {
    const Pair pair = unpack(Half{}, piece.word[w]);
    x[2 * w] = pair.low, x[2 * w + 1] = pair.high;
  }
}

XLNET_FAST_DEVICE Chunk encode_piece(Float32, const float* x) {  // [4]
  Chunk piece;
#pragma unroll
  for (int w = 0; w < 4; ++w) piece.word[w] = bit_cast<uint32_t>(x[w]);
  return piece;
}
template <class Half>
XLNET_FAST_DEVICE Chunk encode_piece(Half, const float* x) {  // [8]
  Chunk piece;
#pragma unroll
  for (int w = 0; w < 4; ++w) piece.word[w] = pack(Half{}, x[2 * w], x[2 * w + 1]);
  return piece;
}

// --- pieces that begin anywhere
// -------------------------------------------------------------------

// Bytes between an address and the aligned piece it lies in.
XLNET_FAST_DEVICE int misalignment(const void* address) {
  return static_cast<int>(reinterpret_cast<uintptr_t>(address) % kPieceBytes);
}

// The 16 bytes that begin `bytes` behind the beginning of two neighbouring pieces; bytes is even
// and below 16. Shifts by 8, 4 and 2 bytes, so that every word stays in a register.
XLNET_FAST_DEVICE Chunk shifted(const Chunk& lower, const Chunk& upper, int bytes) {
  uint32_t word[8];
#pragma unroll
  for (int w = 0; w < 4; ++w) word[w] = lower.word[w], word[w + 4] = upper.word[w];
#pragma unroll
  for (int w = 0; w < 6; ++w) word[w] = (bytes & 8) != 0 ? word[w + 2] : word[w];
#pragma unroll
  for (int w = 0; w < 5; ++w) word[w] = (bytes & 4) != 0 ? word[w + 1] : word[w];
  const int bits = (bytes & 2) * 8;
  Chunk piece;
#pragma unroll
  for (int w = 0; w < 4; ++w) {
    piece.word[w] = static_cast<uint32_t>((uint64_t{word[w + 1]} << 32 | word[w]) >> bits);
  }
  return piece;
}

// Elements begin .. end - 1 of a row may be read.
template <class Type>
struct Run {
  const Type* row;  // [element]
  int begin, end;
};

// Elements first .. of a run, a piece of them; zero where there are none.
template <class Type>
XLNET_FAST_DEVICE Chunk load_piece(const Run<Type>& run, int first) {
  constexpr int kSize = static_cast<int>(sizeof(Type)), kCount = kPieceBytes / kSize;
  const int bytes = misalignment(run.row + first);
  const int aligned = first - bytes / kSize;
  if (run.begin <= aligned && aligned + (bytes == 0 ? kCount : 2 * kCount) <= run.end) {
    const auto* pieces = reinterpret_cast<const Chunk*>(run.row + aligned);
    const Chunk lower = load(pieces);
    return bytes == 0 ? lower : shifted(lower, load(pieces + 1), bytes);
  }
  Chunk piece{};
#pragma unroll
  for (int e = 0; e < kCount; ++e) {
    if (run.begin <= first + e && first + e < run.end) {
      piece.word[e * kSize / 4] |= uint32_t{load(run.row + first + e)} << e * kSize % 4 * 8;
    }
  }
  return piece;
}

// Fills elements begin .. end - 1 of a row, `threads` threads together: aligned pieces from
// piece_at(element), which may lie across the row's beginning or end by less than a piece and is
// then taken apart.
template <class Type, class PieceAt>
XLNET_FAST_DEVICE void store_run(Type* row, int begin, int end, int thread, int threads,
                                 const PieceAt& piece_at) {
  constexpr int kSize = static_cast<int>(sizeof(Type)), kCount = kPieceBytes / kSize;
  const int first = begin - misalignment(row + begin) / kSize;
  for (int at = first + thread * kCount; at < end; at += threads * kCount) {
    const Chunk piece = piece_at(at);
    if (begin <= at && at + kCount <= end) {
      store(reinterpret_cast<Chunk*>(row + at), piece);
      continue;
    }
#pragma unroll
    for (int e = 0; e < kCount; ++e) {
      if (begin <= at + e && at + e < end) {
        store(row + at + e, static_cast<Type>(piece.word[e * kSize / 4] >> e * kSize % 4 * 8));
      }
    }
  }
}

}  // namespace xlnet_fast::cuda
