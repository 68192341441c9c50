// One thread block of a kernel, run on the host by fibers, with what a GPU does not check:
//   - a race: two threads touch the same shared memory, one of them writes, and no barrier that
//   both
//     passed lies between (warp_barrier within a warp, block_barrier otherwise);
//   - shared memory that is read before it was written: it is full of NaN;
//   - an asynchronous copy that is read, or overwritten, before its thread waited for it;
//   - an address outside of the tensors that the caller named, a write to one that is only read,
//   and
//     a misaligned one;
//   - lanes of a warp that meet in different operations, threads that leave before a barrier.
// What is wrong ends the kernel with a message. Warps run one after the other up to the next
// barrier, upwards or downwards: what is right does not depend on it.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "fiber.h"

namespace xlnet_fast::cuda::emulation {

constexpr int kWarpSize = 32;

// Global memory that a kernel may touch.
struct Region {
  uintptr_t begin;
  uintptr_t end;
  bool writable;
};

// What a whole launch counts.
struct Counters {
  int64_t products = 0;      // m16n8k16, of one warp each
  int64_t matrix_loads = 0;  // of four matrices, of one warp each
  int64_t matrix_wavefronts =
      0;                       // accesses of 128 bytes that these cost; four each without conflicts
  int64_t copied_bytes = 0;    // by copy_async, zeros not counted
  int64_t block_barriers = 0;  // passed by a whole block
};

// Operations in which all lanes of a warp meet.
enum class Meeting { kWarpBarrier, kShuffle, kBallot, kMatrices, kMatricesTransposed, kProduct };

class Block {
 public:
  using Operation = void (*)(Block&, void* const* lanes);

  Block(int threads, int shared_bytes, const std::vector<Region>& regions, bool downwards);

  // Runs body() once for each thread. Throws std::runtime_error with what is wrong.
  void run(int64_t block_index, const std::function<void()>& body);

  static Block& current();
  const Counters& counters() const { return counters_; }

  // --- called by the threads ---

  int thread() const { return running_; }
  int64_t block_index() const { return block_index_; }
  bool block_barrier(bool said);  // true where any thread said so
  void warp_barrier();
  // Waits for all lanes of the warp, then has one of them do `operation` on what each gave.
  void meet(Meeting kind, void* mine, Operation operation);
  void read_global(const void* address, size_t bytes) { check_global(address, bytes, false); }
  void write_global(const void* address, size_t bytes) { check_global(address, bytes, true); }
  char* read_shared(uint32_t offset, uint32_t bytes, uint32_t alignment, bool whole_warp = false);
  char* write_shared(uint32_t offset, uint32_t bytes, uint32_t alignment);
  // One row of a matrix for the whole warp: what any of its lanes wrote needs a barrier before.
  const char* read_matrix_row(uint32_t offset) { return read_shared(offset, 16, 16, true); }
  void copy_async(uint32_t offset, const void* source, bool present);
  void commit_copies();
  void wait_copies(int pending);
  void count_matrices(const uint32_t* offsets);
  void count_product() { ++counters_.products; }
  [[noreturn]] void fail(const std::string& what);

 private:
  struct Copy {
    uint32_t offset;
    const void* source;
    bool present;
  };
  enum class State { kReady, kMeeting, kAtBarrier, kDone };
  struct Thread {
    Fiber fiber;
    State state = State::kReady;
    int block_epoch = 0, warp_epoch = 0;
    std::vector<Copy> uncommitted;
    std::vector<std::vector<Copy>> groups;
  };
  struct Warp {
    int arrived = 0;
    Meeting kind{};
    void* given[kWarpSize] = {};
  };
  // Who touched two bytes of shared memory last. A lane or warp of kSeveral: more than one.
  struct Access {
    int16_t warp = -1, lane = -1;
    int32_t block_epoch = -1, warp_epoch = -1;
  };
  struct Granule {
    Access write, read;
    bool in_flight = false;
  };

  static void enter(void* block);
  void pause();
  void run_warp(int warp);
  void check_global(const void* address, size_t bytes, bool writes);
  void check_shared(uint32_t offset, uint32_t bytes, uint32_t alignment);
  bool races(const Access& before, bool whole_warp = false) const;
  void note(Access& access, bool merges, bool whole_warp = false) const;
  std::string place() const;

  int threads_;
  const std::vector<Region>& regions_;
  size_t last_region_ = 0;
  bool downwards_;
  int64_t block_index_ = 0;
  int running_ = 0;
  bool barrier_said_ = false, barrier_result_ = false;
  const std::function<void()>* body_ = nullptr;
  Fiber scheduler_;
  std::vector<Thread> thread_;
  std::vector<Warp> warp_;
  std::vector<char> shared_;
  std::vector<Granule> granules_;
  std::string error_;
  Counters counters_;
};

}  // namespace xlnet_fast::cuda::emulation
