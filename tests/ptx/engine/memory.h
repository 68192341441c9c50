// The memory of a launch, and who touched it when.
//
// Global memory is what torch allocated inside `with memory():` (`allocator.cpp`): its addresses are
// those of the process. Shared and local memory have windows of their own.
//
// Each region has a shadow: for every granule (as many bytes as the narrowest access so far) the
// last write, and those reads and atomics of the latest moment that a later write may race with. A
// moment is a number that grows with every barrier of the block, and over blocks and launches, so
// nothing is cleared in between.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "machine.h"

namespace xlnet_fast::ptx {

// Where the symbols of a block's shared memory and of a thread's local memory begin: address zero
// is nobody's.
constexpr uint32_t kSharedBase = 1024;
constexpr uint32_t kLocalBase = 1024;
// A generic address of shared or local memory is its own address and this.
constexpr uint64_t kSharedWindow = uint64_t{1} << 56;
constexpr uint64_t kLocalWindow = uint64_t{1} << 57;

// --- global memory ---

// A piece of global memory, of one tensor. Its place is kept for a while after it was freed, so
// that a late access can be told from a stray one.
struct Buffer;

// 512-byte aligned, filled with 0xff, far from every other buffer. Throws std::bad_alloc.
void* allocate_global(size_t bytes);
void free_global(void* data);

// Torch's allocator of CPU memory from now on, and the one before it again. They nest.
void install_allocator();
void remove_allocator();

// --- the shadow ---

// A moment, the warp's own epoch (its low bits) and two threads, which are the same where one thread
// was it: 32, 12, 10 and 10 bits.
using Record = uint64_t;

struct Shadow {
  int shift = 4;     // a granule is 1 << shift bytes
  size_t bytes = 0;  // of the region
  std::vector<Record> writes, reads, atomics;
  // Of blocks before the one of the record in `reads` and `atomics`; global memory alone.
  std::vector<Record> other_reads, other_atomics;

  size_t granules() const { return (bytes + (size_t{1} << shift) - 1) >> shift; }
  void begin(size_t region_bytes, bool is_global);
  void refine(int finer);  // granules of 1 << finer bytes from now on
  void expect_atomics();
  void forget();
};

// --- a block's memory ---

// A copy of cp.async that has been issued and not yet waited for.
struct Copy {
  uint32_t to = 0;           // address in shared memory
  uint8_t bytes = 0;         // that it writes: 4, 8 or 16
  uint8_t source_bytes = 0;  // that it reads; the others are zeros
  const char* source = nullptr;
  std::array<char, 16> data{};  // what the source held at the issue
};

// A thread's copies: those of committed groups, in order, then those of no group yet.
struct Copies {
  std::vector<Copy> pending;
  std::vector<uint32_t> groups;  // of each group, how many of `pending` it and those before it have
};

// Of one launch, for one block after the other.
class BlockMemory {
 public:
  // `shared_bytes` are those of symbols and those of the launch together, `local_bytes` a thread's.
  // Begins a launch: what launches before it did is in order with it.
  BlockMemory(int threads, size_t shared_bytes, size_t local_bytes);

  // Before the first step of each block: all bytes are 0xff again.
  void start(const Block& block);

  // Whether it is a fault to read shared memory that the block has not written.
  bool must_be_written = false;

  int threads;
  std::vector<char> shared, local;  // local: thread after thread
  size_t local_bytes;
  Shadow shadow;
  std::vector<Copies> copies;  // of each thread

  // The first moment of the launch, of this block, and the last of an access.
  uint32_t launch_begin = 0, block_begin = 0, latest = 0;
  std::vector<std::pair<uint32_t, int64_t>> begins;  // of each block: moment and number
};

}  // namespace xlnet_fast::ptx
