// The memory of a launch, and who touched it when.
//
// Global memory is what torch allocated inside `with memory():` (`allocator.cpp`): its addresses
// are those of the process. Shared and local memory have windows of their own.
//
// Each region has a shadow: for every granule (as many bytes as the narrowest access so far) the
// last write, and those reads and atomics of the latest moment that a later access may race with. A
// moment is a number that grows with every barrier of the block, over blocks and launches, so that
// nothing has to be cleared in between.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "machine.h"

namespace xlnet_fast::ptx {

// A generic address of shared or local memory is its address in the space of its own and this.
constexpr uint64_t kSharedWindow = uint64_t{1} << 56;
constexpr uint64_t kLocalWindow = uint64_t{1} << 57;

// --- the shadow ---

// A moment, the warp's own epoch (its low bits) and two threads, the same where it was one thread:
// 32, 12, 10 and 10 bits. A moment of 0 is before everything.
using Record = uint64_t;

// The moment of a write that is under way: cp.async has been issued and not been waited for.
constexpr uint32_t kUnderWay = 0xffffffffu;

constexpr Record record(uint32_t moment, int32_t warp_epoch, int thread, int second) {
  return Record{moment} << 32 | Record(warp_epoch & 0xfff) << 20 | Record(thread) << 10 |
         Record(second);
}
constexpr uint32_t moment_of(Record record) { return uint32_t(record >> 32); }
constexpr uint32_t epoch_of(Record record) { return uint32_t(record >> 20) & 0xfff; }
constexpr int first_of(Record record) { return int(record >> 10) & 0x3ff; }
constexpr int second_of(Record record) { return int(record) & 0x3ff; }

struct Shadow {
  int shift = 4;     // a granule is 1 << shift bytes
  size_t bytes = 0;  // of the region
  std::vector<Record> writes, reads, atomics;
  // Of the latest block before the one of the record in `reads` and `atomics`: global memory alone.
  std::vector<Record> other_reads, other_atomics;

  size_t granules() const { return (bytes + (size_t{1} << shift) - 1) >> shift; }
  void begin(size_t region_bytes, bool is_global);
  void refine(int finer);               // to granules of 1 << finer bytes
  void expect_atomics(bool is_global);  // makes room for their records
  void forget();                        // all records
};

// --- global memory ---

// A piece of global memory, of one tensor. It is known for a while after it was freed, so that a
// late access can be told from a stray one.
struct Buffer {
  uint64_t begin = 0;
  size_t bytes = 0;
  bool is_live = false;
  Shadow shadow;
};

// 512-byte aligned and not more, filled with 0xff, far from every other buffer. Throws
// std::bad_alloc.
void* allocate_global(size_t bytes);
void free_global(void* data);
// The buffer that is next to an address, live or freed, or null. It moves nowhere while it lives.
Buffer* find_global(uint64_t address);
// After it, records of all launches so far are as if they had never been.
void forget_global();

// Torch's allocator of CPU memory from now on, and the one before it again. They nest.
void install_allocator();
void remove_allocator();

// --- a block's memory ---

// A copy of cp.async that has been issued and not been waited for.
struct Copy {
  uint32_t to = 0;           // address in shared memory
  uint8_t bytes = 0;         // that it writes: 4, 8 or 16
  uint8_t source_bytes = 0;  // that it reads; the others are zeros
  const char* source = nullptr;
  std::array<char, 16> data{};  // what the source held at the issue
};

// A thread's copies, as they were issued: some have arrived, those of committed groups come next,
// then those of no group yet.
struct Copies {
  std::vector<Copy> all;
  size_t arrived = 0;
  std::vector<uint32_t> groups;  // of each group, how many of `all` it and those before it have
  size_t groups_arrived = 0;
};

class AsyncProxy;

class BlockMemory {
 public:
  BlockMemory(int threads, size_t shared_bytes, size_t local_bytes);
  // Before the first step of each block: all bytes are 0xff again.
  void start(const Block& block);

  int threads;
  std::vector<char> shared, local;  // local: thread after thread
  size_t local_bytes;
  Shadow shadow;
  std::vector<Copies> copies;         // of each thread
  std::shared_ptr<AsyncProxy> proxy;  // null in a kernel without products of warpgroups
  uint32_t begin = 0;                 // the block's first moment
};

// What all blocks of a launch have in common.
struct Launch {
  uint32_t begin = 1;                                // its first moment
  uint32_t latest = 0;                               // the last moment of any access
  std::vector<std::pair<uint32_t, int64_t>> blocks;  // first moment and number of each
  bool open_stores = false;  // whether lanes of one store may write different values to one place
  bool must_be_written = false;  // whether to read shared memory that nobody wrote is a fault
};
extern Launch launch;

// --- accesses ---

enum class Space : uint8_t { kGeneric, kGlobal, kShared, kLocal };

// Memory that some lanes of an instruction touch, with one origin.
struct Region {
  Space space;
  char* data;
  uint64_t begin;
  size_t bytes;
  Shadow* shadow;  // null: nobody else can touch it
  uint32_t floor;  // what was before this moment is in order with everything now
};

// When an instruction runs.
struct Now {
  uint32_t block;                  // the block's first moment
  uint32_t first;                  // of the active lanes' moments
  std::array<Record, kLanes> own;  // what each lane leaves behind

  explicit Now(const Step& step);
};

using Addresses = std::array<uint64_t, kLanes>;

// The addresses that the active lanes have in an operand.
void read_addresses(const Step& step, const Operand& operand, Addresses& address);

// What is done with a region and the lanes that touch it: any function, while it lives.
// `each_region` would otherwise be compiled for each instruction.
class ForRegion {
 public:
  template <class F>
  ForRegion(const F& f)
      : f_(&f), call_([](const void* own, const Region& region, Lanes lanes) {
          (*static_cast<const F*>(own))(region, lanes);
        }) {}
  void operator()(const Region& region, Lanes lanes) const { call_(f_, region, lanes); }

 private:
  const void* f_;
  void (*call_)(const void*, const Region&, Lanes);
};

// Splits the lanes by the region they touch, fails where one touches nothing that is there or is
// not aligned to `bytes`, and calls f(region, lanes). Generic addresses become those of their
// space.
void each_region(const Step& step, Lanes lanes, Space space, Addresses& address, uint32_t bytes,
                 const ForRegion& f);

// Fails where a lane's access races with what was before, and notes it. `bytes` is a power of two.
void note_reads(const Step& step, const Region& region, const Now& now, Lanes lanes,
                const Addresses& address, uint32_t bytes);
void note_atomics(const Step& step, const Region& region, const Now& now, Lanes lanes,
                  const Addresses& address, uint32_t bytes);
// The same, and writes `bytes` of each lane from `data`, where lane after lane lies.
void write(const Step& step, const Region& region, const Now& now, Lanes lanes,
           const Addresses& address, uint32_t bytes, const char* data);
// A write that begins now and ends later: nobody may touch the bytes until it has ended.
void begin_writes(const Step& step, const Region& region, const Now& now, Lanes lanes,
                  const Addresses& address, uint32_t bytes);

// Regions for `each_region`: of one lane's address, which fails where there is none.
Region region_of(const Step& step, int lane, Space space, uint64_t address, uint32_t bytes);
[[noreturn]] void fail_alignment(const Step& step, int lane, uint64_t address, uint32_t bytes);

// --- the instructions, by file ---

bool decode_atomics(Instruction& instruction, Loader& loader);  // atom, red
bool decode_copies(Instruction& instruction, Loader& loader);   // cp.async
bool decode_tiles(Instruction& instruction, Loader& loader);    // ldmatrix, stmatrix

// Of an address operand: its base has a register, whatever it is.
void prepare_address(Instruction& instruction, size_t operand, Loader& loader);
// What a part of a name says of a space; false if it is none.
bool read_space(const std::string& part, Space& space);

}  // namespace xlnet_fast::ptx
