// What the kernels need of a GPU, one short function each: the only place with PTX. Under
// XLNET_FAST_EMULATION the same functions come from emulation/primitives.h and run on the host, so
// kernels see nothing but these.
//
// Shared memory is addressed by byte offsets from its start. Fragments are those of
// mma.sync.aligned.m16n8k16 (PTX ISA, "Matrix Fragments for mma.m16n8k16"): with g = lane / 4 and
// t = lane % 4
//   A[0]: row g, terms 2t, 2t+1   A[1]: row g + 8   A[2]: row g, terms 2t+8, 2t+9   A[3]: row g + 8
//   B[0]: column g, terms 2t, 2t+1                  B[1]: column g, terms 2t+8, 2t+9
//   C[0], C[1]: row g, columns 2t, 2t+1             C[2], C[3]: row g + 8
#pragma once

#include <cstdint>

#include "launch.h"

namespace xlnet_fast::cuda {

struct BFloat16 {};
struct Float16 {};

struct Pair {
  float low, high;
};

}  // namespace xlnet_fast::cuda

#ifdef XLNET_FAST_EMULATION
#include "emulation/primitives.h"
#else

#include <cuda_runtime.h>

#define XLNET_FAST_DEVICE __device__ __forceinline__
#define XLNET_FAST_KERNEL(threads, blocks) __global__ void __launch_bounds__(threads, blocks)
#define XLNET_FAST_PARAMETER const __grid_constant__

namespace xlnet_fast::cuda {

// --- where a thread is
// ----------------------------------------------------------------------------

XLNET_FAST_DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }
XLNET_FAST_DEVICE int block_index() { return static_cast<int>(blockIdx.x); }

// --- order and exchange
// ---------------------------------------------------------------------------

// All threads of the block have arrived, and see what any of them wrote before.
XLNET_FAST_DEVICE void block_barrier() { __syncthreads(); }

// The same for the threads of a warp.
XLNET_FAST_DEVICE void warp_barrier() { __syncwarp(); }

XLNET_FAST_DEVICE float shuffle_xor(float x, int lane_mask) {
  return __shfl_xor_sync(0xffffffffu, x, lane_mask);
}
XLNET_FAST_DEVICE int shuffle_xor(int x, int lane_mask) {
  return __shfl_xor_sync(0xffffffffu, x, lane_mask);
}

XLNET_FAST_DEVICE int shuffle(int x, int lane) { return __shfl_sync(0xffffffffu, x, lane); }

// Bit l: whether lane l says so.
XLNET_FAST_DEVICE uint32_t ballot(bool x) { return __ballot_sync(0xffffffffu, x); }
XLNET_FAST_DEVICE int lowest_bit(uint32_t x) { return __ffs(static_cast<int>(x)) - 1; }

// Whether any thread of the block says so; a barrier too.
XLNET_FAST_DEVICE bool any_of_block(bool x) { return __syncthreads_or(x) != 0; }

// --- memory
// ---------------------------------------------------------------------------------------

template <class T>
XLNET_FAST_DEVICE T load(const T* address) {
  return *address;
}
template <class T>
XLNET_FAST_DEVICE void store(T* address, T value) {
  *address = value;
}

// 16 bytes of two-byte elements, at an address that is a multiple of 16.
struct alignas(16) Chunk {
  uint32_t word[4];
};

extern __shared__ __align__(128) unsigned char shared_memory[];

XLNET_FAST_DEVICE uint32_t shared_address(uint32_t offset) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared_memory)) + offset;
}

template <class T>
XLNET_FAST_DEVICE T load_shared(uint32_t offset) {
  return *reinterpret_cast<const T*>(shared_memory + offset);
}
template <class T>
XLNET_FAST_DEVICE void store_shared(uint32_t offset, T value) {
  *reinterpret_cast<T*>(shared_memory + offset) = value;
}

// Begins to copy 16 bytes to shared memory, or zeros where `present` is false: `source` is then not
// read. Complete after commit_copies and wait_copies by the same thread; others need a barrier too.
XLNET_FAST_DEVICE void copy_async(uint32_t offset, const void* source, bool present) {
  const int bytes = present ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(offset)),
               "l"(__cvta_generic_to_global(source)), "r"(bytes)
               : "memory");
}
XLNET_FAST_DEVICE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most `Pending` of the latest groups are still under way.
template <int Pending>
XLNET_FAST_DEVICE void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
}

// Four 8x8 matrices of two-byte elements; lane l gives the address of row l % 8 of matrix l / 8, a
// multiple of 16. Word m of lane l: row l / 4 of matrix m, elements 2 (l % 4) and the next.
XLNET_FAST_DEVICE void ldmatrix(uint32_t (&words)[4], uint32_t offset) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(shared_address(offset))
               : "memory");
}

// The same of the transposed matrices: column l / 4, elements 2 (l % 4) and the next.
XLNET_FAST_DEVICE void ldmatrix_transposed(uint32_t (&words)[4], uint32_t offset) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(shared_address(offset))
               : "memory");
}

// --- arithmetic
// -----------------------------------------------------------------------------------

// c += a b, products of two-byte elements, sums in fp32.
XLNET_FAST_DEVICE void mma(BFloat16, float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                           uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
XLNET_FAST_DEVICE void mma(Float16, float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                           uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Two floats rounded to nearest even, the first in the lower half.
XLNET_FAST_DEVICE uint32_t pack(BFloat16, float low, float high) {
  uint32_t word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}
XLNET_FAST_DEVICE uint32_t pack(Float16, float low, float high) {
  uint32_t word;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}
XLNET_FAST_DEVICE Pair unpack(BFloat16, uint32_t word) {
  return {__uint_as_float(word << 16), __uint_as_float(word & 0xffff0000u)};
}
XLNET_FAST_DEVICE Pair unpack(Float16, uint32_t word) {
  Pair pair;
  asm("{.reg .b16 l, h; mov.b32 {l, h}, %2; cvt.f32.f16 %0, l; cvt.f32.f16 %1, h;}"
      : "=f"(pair.low), "=f"(pair.high)
      : "r"(word));
  return pair;
}

// 2^x and log2(x) to about 2 units in the last place; 2^-inf is 0.
XLNET_FAST_DEVICE float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
XLNET_FAST_DEVICE float log2_approx(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// The greater of two numbers, and of NaN and a number the number: one instruction, where
// `a > b ? a : b` is two.
XLNET_FAST_DEVICE float maximum(float a, float b) { return fmaxf(a, b); }

// The same number, of which the compiler knows nothing: what depends on it is computed here, and
// not earlier or once for several places.
XLNET_FAST_DEVICE int optimization_barrier(int x) {
  asm volatile("" : "+r"(x));
  return x;
}

XLNET_FAST_DEVICE float infinity() { return __int_as_float(0x7f800000); }

// The upper and lower half of a product of 32-bit numbers.
XLNET_FAST_DEVICE uint32_t multiply_high(uint32_t a, uint32_t b) { return __umulhi(a, b); }

}  // namespace xlnet_fast::cuda

#endif
