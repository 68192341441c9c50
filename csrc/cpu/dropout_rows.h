// out = keep ? x / (1 - p) : 0, the mask made a buffer at a time, so that x is read and out written
// once and the mask never leaves the first-level cache. Chunks do not touch each other, so any
// number of threads gives the same bits.
//
// Computed in fp32 and rounded once. NaN and infinity stay where they are kept, and are 0 where
// not.
#pragma once

#include "row_io.h"

namespace xlnet_fast::cpu::XLNET_FAST_ISA {
namespace {

constexpr int64_t kBuffer = 4096;  // keep bytes; a multiple of 4, where a row may be cut

struct Chunks {
  explicit Chunks(const DropoutParams& p)
      : rows(p.width < kBuffer ? kBuffer / p.width : 1),
        parts((p.width + kBuffer - 1) / kBuffer),
        count((p.rows + rows - 1) / rows * parts) {}

  int64_t rows;   // of a chunk
  int64_t parts;  // chunks of a row
  int64_t count;  // in all
};

// Of `count` elements side by side; the bytes of keep are there to the end of the last vector.
template <class Type>
void drop(const char* x, const uint8_t* keep, int64_t count, float keep_scale, char* out) {
  const Row<Type> from{const_cast<char*>(x), 0, {0, count}}, to{out, 0, {0, count}};
  const Vec scale = splat(keep_scale), zero = splat(0.0f);
  for (int64_t j = 0; j < count; j += kLanes) {
    ByteVec kept;
    __builtin_memcpy(&kept, keep + j, sizeof kept);
    const VecInt mask = -__builtin_convertvector(kept, VecInt);
    to.store(j, select(mask, from.load(j) * scale, zero));
  }
}

template <class Type>
void run_typed(const DropoutCall& call, Range numbers) {
  const DropoutParams p = call.params;
  const Chunks chunks(p);
  alignas(64) uint8_t keep[kBuffer] = {};
  RowCounter at{0, 0, static_cast<uint32_t>(p.seed), static_cast<uint32_t>(p.seed >> 32),
                p.keep_from};
  for (int64_t number = numbers.begin; number < numbers.end; ++number) {
    const int64_t first = number / chunks.parts * chunks.rows;
    const int64_t key = number % chunks.parts * kBuffer;
    const int64_t rows = min_of(chunks.rows, p.rows - first);
    const int64_t keys = min_of(p.width - key, kBuffer);
    at.group = static_cast<uint32_t>(key / 4);
    for (int64_t i = 0; i < rows; ++i) {
      at.row = static_cast<uint32_t>(first + i);
      call.keep_row(keep + i * keys, keys, at);
    }
    constexpr auto kSize = static_cast<int64_t>(sizeof(typename Type::Element));
    const int64_t offset = (first * p.width + key) * kSize;
    drop<Type>(p.x + offset, keep, rows * keys, p.keep_scale, p.out + offset);
  }
}

inline int64_t chunks_of(const DropoutParams& p) { return Chunks(p).count; }

inline void run_chunks(const DropoutCall& call, Range numbers) {
  switch (call.params.dtype) {
    case Dtype::kFloat32:
      return run_typed<Float32Row>(call, numbers);
    case Dtype::kBFloat16:
      return run_typed<BFloat16Row>(call, numbers);
    case Dtype::kFloat16:
      return run_typed<Float16Row>(call, numbers);
  }
}

}  // namespace
}  // namespace xlnet_fast::cpu::XLNET_FAST_ISA
