// The functions of primitives.cuh on the host; what they do and take is described there.
#pragma once

#include <cmath>
#include <cstring>
#include <limits>

#include "block.h"

#define XLNET_FAST_DEVICE inline
#define XLNET_FAST_KERNEL(threads, blocks) void
#define XLNET_FAST_PARAMETER const

namespace xlnet_fast::cuda {

namespace emulation {

float from_bits(BFloat16, uint16_t bits);
float from_bits(Float16, uint16_t bits);
uint16_t to_bits(BFloat16, float x);
uint16_t to_bits(Float16, float x);

struct Product {
  float* c;
  const uint32_t* a;
  uint32_t b[2];
};
void mma(Block& block, void* const* lanes, BFloat16);
void mma(Block& block, void* const* lanes, Float16);

struct Matrices {
  uint32_t* words;
  uint32_t offset;
};
void ldmatrix(Block& block, void* const* lanes, bool transposed);

// Lane l gets what lane l ^ mask gave.
template <class T>
struct Shuffle {
  T value, result;
  int mask;
};
template <class T>
T shuffle_xor(T x, int lane_mask) {
  Shuffle<T> mine{x, T{}, lane_mask};
  Block::current().meet(Meeting::kShuffle, &mine, [](Block&, void* const* lanes) {
    for (int lane = 0; lane < kWarpSize; ++lane) {
      auto* here = static_cast<Shuffle<T>*>(lanes[lane]);
      here->result = static_cast<Shuffle<T>*>(lanes[lane ^ here->mask])->value;
    }
  });
  return mine.result;
}

}  // namespace emulation

inline int thread_index() { return emulation::Block::current().thread(); }
inline int block_index() { return static_cast<int>(emulation::Block::current().block_index()); }

inline void block_barrier() { emulation::Block::current().block_barrier(false); }
inline bool any_of_block(bool x) { return emulation::Block::current().block_barrier(x); }
inline void warp_barrier() { emulation::Block::current().warp_barrier(); }

inline float shuffle_xor(float x, int lane_mask) { return emulation::shuffle_xor(x, lane_mask); }
inline int shuffle_xor(int x, int lane_mask) { return emulation::shuffle_xor(x, lane_mask); }

inline int shuffle(int x, int lane) {
  emulation::Shuffle<int> mine{x, 0, lane};
  emulation::Block::current().meet(
      emulation::Meeting::kShuffle, &mine, [](emulation::Block&, void* const* lanes) {
        for (int lane = 0; lane < emulation::kWarpSize; ++lane) {
          auto* here = static_cast<emulation::Shuffle<int>*>(lanes[lane]);
          const int from = here->mask % emulation::kWarpSize;
          here->result = static_cast<emulation::Shuffle<int>*>(lanes[from])->value;
        }
      });
  return mine.result;
}

inline uint32_t ballot(bool x) {
  uint32_t said = x;
  emulation::Block::current().meet(emulation::Meeting::kBallot, &said,
                                   [](emulation::Block&, void* const* lanes) {
                                     uint32_t all = 0;
                                     for (int lane = 0; lane < emulation::kWarpSize; ++lane) {
                                       all |= *static_cast<uint32_t*>(lanes[lane]) << lane;
                                     }
                                     for (int lane = 0; lane < emulation::kWarpSize; ++lane) {
                                       *static_cast<uint32_t*>(lanes[lane]) = all;
                                     }
                                   });
  return said;
}
inline int lowest_bit(uint32_t x) {
  int bit = 0;
  while (bit < emulation::kWarpSize && (x >> bit & 1) == 0) ++bit;
  return bit;
}

template <class T>
T load(const T* address) {
  emulation::Block::current().read_global(address, sizeof(T));
  return *address;
}
template <class T>
void store(T* address, T value) {
  emulation::Block::current().write_global(address, sizeof(T));
  *address = value;
}

struct alignas(16) Chunk {
  uint32_t word[4];
};

template <class T>
T load_shared(uint32_t offset) {
  T value;
  const char* from =
      emulation::Block::current().read_shared(offset, sizeof(T), static_cast<uint32_t>(alignof(T)));
  std::memcpy(&value, from, sizeof(T));
  return value;
}
template <class T>
void store_shared(uint32_t offset, T value) {
  char* to = emulation::Block::current().write_shared(offset, sizeof(T),
                                                      static_cast<uint32_t>(alignof(T)));
  std::memcpy(to, &value, sizeof(T));
}

inline void copy_async(uint32_t offset, const void* source, bool present) {
  emulation::Block::current().copy_async(offset, source, present);
}
inline void commit_copies() { emulation::Block::current().commit_copies(); }
template <int Pending>
void wait_copies() {
  emulation::Block::current().wait_copies(Pending);
}

inline void ldmatrix(uint32_t (&words)[4], uint32_t offset) {
  emulation::Matrices mine{words, offset};
  emulation::Block::current().meet(emulation::Meeting::kMatrices, &mine,
                                   [](emulation::Block& block, void* const* lanes) {
                                     emulation::ldmatrix(block, lanes, false);
                                   });
}
inline void ldmatrix_transposed(uint32_t (&words)[4], uint32_t offset) {
  emulation::Matrices mine{words, offset};
  emulation::Block::current().meet(
      emulation::Meeting::kMatricesTransposed, &mine,
      [](emulation::Block& block, void* const* lanes) { emulation::ldmatrix(block, lanes, true); });
}

template <class Element>
void mma(Element, float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  emulation::Product mine{c, a, {b0, b1}};
  emulation::Block::current().meet(
      emulation::Meeting::kProduct, &mine,
      [](emulation::Block& block, void* const* lanes) { emulation::mma(block, lanes, Element{}); });
}

template <class Element>
uint32_t pack(Element, float low, float high) {
  return emulation::to_bits(Element{}, low) |
         static_cast<uint32_t>(emulation::to_bits(Element{}, high)) << 16;
}
template <class Element>
Pair unpack(Element, uint32_t word) {
  return {emulation::from_bits(Element{}, static_cast<uint16_t>(word)),
          emulation::from_bits(Element{}, static_cast<uint16_t>(word >> 16))};
}

inline float exp2_approx(float x) { return std::exp2(x); }
inline float log2_approx(float x) { return std::log2(x); }
inline float maximum(float a, float b) { return std::fmax(a, b); }
inline int optimization_barrier(int x) { return x; }
inline float infinity() { return std::numeric_limits<float>::infinity(); }
inline uint32_t multiply_high(uint32_t a, uint32_t b) {
  return static_cast<uint32_t>(uint64_t{a} * b >> 32);
}

}  // namespace xlnet_fast::cuda
