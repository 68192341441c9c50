// The next segment's memory of all layers in one launch: a copy, without the longer tensor.
//
//   out[l, e] = memory_l[e + first]                where e + first < boundary
//               hidden_l[e + first - boundary]     elsewhere
//
// A block copies one part of one layer's output, 16 bytes a thread at a time wherever its sources
// begin: two aligned pieces are shifted together. Memory of another dtype is converted.
#pragma once

#include <type_traits>

#include "../params.h"
#include "elements.cuh"
#include "launch.h"

namespace xlnet_fast::cuda {

constexpr int kCopyThreads = 256;
constexpr int kCopyPieces = 4;  // of a thread

template <class Element>
constexpr int kCopyElements = kCopyThreads * kCopyPieces * kPiece<Element>;  // of a block

// A piece of elements of one dtype, made of a run of another. Zero where the run has none.
template <class From, class To>
XLNET_FAST_DEVICE Chunk converted_piece(const Run<Bits<From>>& run, int first) {
  if constexpr (std::is_same_v<From, To>) {
    return load_piece(run, first);
  } else {
    float x[kPiece<To> > kPiece<From> ? kPiece<To> : kPiece<From>];
#pragma unroll
    for (int e = 0; e < kPiece<To>; e += kPiece<From>) {
      decode_piece(From{}, load_piece(run, first + e), x + e);
    }
    return encode_piece(To{}, x);
  }
}

// The lower elements of a piece from one source, the upper ones from another: the rest is zero.
XLNET_FAST_DEVICE Chunk joined(const Chunk& lower, const Chunk& upper) {
  Chunk piece;
#pragma unroll
  for (int w = 0; w < 4; ++w) piece.word[w] = lower.word[w] | upper.word[w];
  return piece;
}

template <class Memory, class Hidden>
XLNET_FAST_KERNEL(kCopyThreads, 1)
concat_memory_kernel(XLNET_FAST_PARAMETER ConcatMemoryParams p) {
  const auto parts =
      static_cast<int>((p.count + kCopyElements<Hidden> - 1) / kCopyElements<Hidden>);
  const int layer = block_index() / parts;
  const int64_t begin = int64_t{block_index() % parts} * kCopyElements<Hidden>;
  const int64_t rest = p.count - begin;
  const int count = rest < kCopyElements<Hidden> ? static_cast<int>(rest) : kCopyElements<Hidden>;
  // Of the block's elements, those before `split` are memory.
  const int64_t joint = p.boundary - p.first - begin;
  const int split = joint < 0 ? 0 : joint < count ? static_cast<int>(joint) : count;
  const int64_t source = p.first + begin;
  const Run<Bits<Memory>> memory{reinterpret_cast<const Bits<Memory>*>(p.memory[layer]) + source, 0,
                                 split};
  const Run<Bits<Hidden>> hidden{
      reinterpret_cast<const Bits<Hidden>*>(p.hidden[layer]) + (source - p.boundary), split, count};
  auto* out = reinterpret_cast<Bits<Hidden>*>(p.out) + layer * p.count + begin;
  store_run(out, 0, count, thread_index(), kCopyThreads, [&](int e) {
    if (e >= split) return load_piece(hidden, e);
    const Chunk lower = converted_piece<Memory, Hidden>(memory, e);
    return e + kPiece<Hidden> <= split ? lower : joined(lower, load_piece(hidden, e));
  });
}

template <class Memory, class Hidden>
void launch_concat_memory(const ConcatMemoryParams& p, Stream stream) {
  const int64_t parts = (p.count + kCopyElements<Hidden> - 1) / kCopyElements<Hidden>;
  launch(concat_memory_kernel<Memory, Hidden>, Grid{p.layers * parts, kCopyThreads, 0}, stream, p);
}

}  // namespace xlnet_fast::cuda
