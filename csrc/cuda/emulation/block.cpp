#include "block.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

namespace xlnet_fast::cuda::emulation {

namespace {

constexpr int kSeveral = -2;
constexpr uint32_t kGranule = 2;  // bytes: the smallest element that kernels store
constexpr int kMaxShared = 227 * 1024;
Block* current_block = nullptr;

}  // namespace

Block& Block::current() { return *current_block; }

Block::Block(int threads, int shared_bytes, const std::vector<Region>& regions, bool downwards)
    : threads_(threads), regions_(regions), downwards_(downwards) {
  if (threads < kWarpSize || threads > 1024 || threads % kWarpSize != 0) {
    throw std::runtime_error("a block cannot have " + std::to_string(threads) + " threads");
  }
  if (shared_bytes < 0 || shared_bytes > kMaxShared) {
    throw std::runtime_error("a block cannot have " + std::to_string(shared_bytes) +
                             " bytes of shared memory");
  }
  thread_.resize(static_cast<size_t>(threads));
  warp_.resize(static_cast<size_t>(threads / kWarpSize));
  shared_.resize(static_cast<size_t>(shared_bytes));
  granules_.resize(static_cast<size_t>(shared_bytes) / kGranule);
}

void Block::run(int64_t block_index, const std::function<void()>& body) {
  block_index_ = block_index;
  body_ = &body;
  current_block = this;
  std::memset(shared_.data(), 0xff, shared_.size());  // NaN in every format
  std::fill(granules_.begin(), granules_.end(), Granule{});
  for (Warp& warp : warp_) warp.arrived = 0;
  for (Thread& thread : thread_) {
    thread.state = State::kReady;
    thread.block_epoch = thread.warp_epoch = 0;
    thread.uncommitted.clear(), thread.groups.clear();
    thread.fiber.prepare(enter, this);
  }
  const int warps = threads_ / kWarpSize;
  for (;;) {
    for (int w = 0; w < warps && error_.empty(); ++w) run_warp(downwards_ ? warps - 1 - w : w);
    if (!error_.empty()) break;
    const auto in = [&](State state) {
      return std::count_if(thread_.begin(), thread_.end(),
                           [&](const Thread& thread) { return thread.state == state; });
    };
    if (in(State::kDone) == threads_) break;
    if (in(State::kAtBarrier) != threads_) {
      error_ = "threads wait for others that never come: " + std::to_string(in(State::kAtBarrier)) +
               " at a barrier of the block, " + std::to_string(in(State::kMeeting)) +
               " at an operation of their warp, " + std::to_string(in(State::kDone)) + " left";
      break;
    }
    barrier_result_ = barrier_said_;
    barrier_said_ = false;
    ++counters_.block_barriers;
    for (Thread& thread : thread_) {
      thread.state = State::kReady;
      ++thread.block_epoch;
    }
  }
  current_block = nullptr;
  if (!error_.empty()) {
    throw std::runtime_error("block " + std::to_string(block_index_) + ": " + error_);
  }
}

// Runs the lanes of a warp in turn until none of them can go on.
void Block::run_warp(int warp) {
  const int first = warp * kWarpSize;
  for (bool progress = true; progress && error_.empty();) {
    progress = false;
    for (int lane = 0; lane < kWarpSize && error_.empty(); ++lane) {
      Thread& thread = thread_[static_cast<size_t>(first + lane)];
      if (thread.state != State::kReady) continue;
      progress = true;
      running_ = first + lane;
      Fiber::switch_to(scheduler_, thread.fiber);
    }
  }
}

void Block::enter(void* pointer) {
  Block& block = *static_cast<Block*>(pointer);
  (*block.body_)();
  Thread& thread = block.thread_[static_cast<size_t>(block.running_)];
  if (!thread.groups.empty() || !thread.uncommitted.empty()) {
    block.fail("a copy is under way when its thread ends");
  }
  thread.state = State::kDone;
  block.pause();
}

void Block::pause() { Fiber::switch_to(thread_[static_cast<size_t>(running_)].fiber, scheduler_); }

// The fiber is never taken up again; kernels own nothing that would have to be destroyed.
void Block::fail(const std::string& what) {
  error_ = place() + ": " + what;
  pause();
  std::abort();
}

std::string Block::place() const {
  return "thread " + std::to_string(running_) + " (warp " + std::to_string(running_ / kWarpSize) +
         ", lane " + std::to_string(running_ % kWarpSize) + ")";
}

bool Block::block_barrier(bool said) {
  if (warp_[static_cast<size_t>(running_ / kWarpSize)].arrived != 0) {
    fail("lanes of a warp part: some are at a barrier of the block, others at an operation");
  }
  barrier_said_ = barrier_said_ || said;
  thread_[static_cast<size_t>(running_)].state = State::kAtBarrier;
  pause();
  return barrier_result_;
}

void Block::warp_barrier() {
  meet(Meeting::kWarpBarrier, nullptr, [](Block& block, void* const*) {
    const int first = block.running_ / kWarpSize * kWarpSize;
    for (int lane = 0; lane < kWarpSize; ++lane) {
      ++block.thread_[static_cast<size_t>(first + lane)].warp_epoch;
    }
  });
}

void Block::meet(Meeting kind, void* mine, Operation operation) {
  const int first = running_ / kWarpSize * kWarpSize;
  Warp& warp = warp_[static_cast<size_t>(running_ / kWarpSize)];
  if (warp.arrived == 0) warp.kind = kind;
  if (warp.kind != kind) fail("lanes of a warp meet in different operations");
  warp.given[running_ % kWarpSize] = mine;
  if (++warp.arrived < kWarpSize) {
    thread_[static_cast<size_t>(running_)].state = State::kMeeting;
    pause();
    return;
  }
  operation(*this, warp.given);
  warp.arrived = 0;
  for (int lane = 0; lane < kWarpSize; ++lane) {
    thread_[static_cast<size_t>(first + lane)].state = State::kReady;
  }
}

// --- memory
// ---------------------------------------------------------------------------------------

void Block::check_global(const void* address, size_t bytes, bool writes) {
  const auto begin = reinterpret_cast<uintptr_t>(address);
  const auto holds = [&](const Region& region) {
    return region.begin <= begin && begin + bytes <= region.end && (region.writable || !writes);
  };
  if (begin % bytes != 0) {
    fail("an access of " + std::to_string(bytes) + " bytes to global memory is misaligned");
  }
  if (last_region_ < regions_.size() && holds(regions_[last_region_])) return;
  for (last_region_ = 0; last_region_ < regions_.size(); ++last_region_) {
    if (holds(regions_[last_region_])) return;
  }
  std::string near = "no tensor is near";
  uintptr_t least = 1 << 20;
  for (const Region& region : regions_) {
    const uintptr_t off = begin < region.begin         ? region.begin - begin
                          : begin + bytes > region.end ? begin + bytes - region.end
                                                       : 0;
    if (off >= least) continue;
    least = off;
    near = off == 0
               ? "it lies in a tensor that is only read"
               : std::to_string(off) + " bytes " + (begin < region.begin ? "before" : "beyond") +
                     " a tensor of " + std::to_string(region.end - region.begin) + " bytes";
  }
  fail(std::string(writes ? "a write of " : "a read of ") + std::to_string(bytes) +
       " bytes is outside of every tensor it may touch: " + near);
}

void Block::check_shared(uint32_t offset, uint32_t bytes, uint32_t alignment) {
  if (offset % alignment != 0) {
    fail("an access of " + std::to_string(bytes) + " bytes to shared memory at offset " +
         std::to_string(offset) + " is misaligned");
  }
  if (offset + bytes > shared_.size()) {
    fail("an access to shared memory at offset " + std::to_string(offset) + " is beyond its " +
         std::to_string(shared_.size()) + " bytes");
  }
}

// Whether the running thread and an earlier access to the same memory are not in order.
bool Block::races(const Access& before, bool whole_warp) const {
  const Thread& thread = thread_[static_cast<size_t>(running_)];
  if (before.block_epoch != thread.block_epoch) return false;
  if (before.warp != running_ / kWarpSize) return true;
  if (before.warp_epoch != thread.warp_epoch) return false;
  return whole_warp || before.lane != running_ % kWarpSize;
}

// Records an access of the running thread; reads of the same epoch are merged.
void Block::note(Access& access, bool merges, bool whole_warp) const {
  const Thread& thread = thread_[static_cast<size_t>(running_)];
  const auto warp = static_cast<int16_t>(running_ / kWarpSize);
  const auto lane = static_cast<int16_t>(whole_warp ? kSeveral : running_ % kWarpSize);
  Access now{warp, lane, thread.block_epoch, thread.warp_epoch};
  if (merges && access.block_epoch == now.block_epoch) {
    if (access.warp != warp) {
      now.warp = kSeveral;
    } else if (access.warp_epoch == now.warp_epoch && access.lane != lane) {
      now.lane = kSeveral;
    }
  }
  access = now;
}

char* Block::read_shared(uint32_t offset, uint32_t bytes, uint32_t alignment, bool whole_warp) {
  check_shared(offset, bytes, alignment);
  for (uint32_t g = offset / kGranule; g < (offset + bytes) / kGranule; ++g) {
    Granule& granule = granules_[g];
    if (granule.in_flight) fail("shared memory is read while a copy to it is under way");
    if (granule.write.warp != -1 && races(granule.write, whole_warp)) {
      fail("shared memory at offset " + std::to_string(offset) +
           " is read, and another thread wrote it without a barrier since");
    }
    note(granule.read, true, whole_warp);
  }
  return shared_.data() + offset;
}

char* Block::write_shared(uint32_t offset, uint32_t bytes, uint32_t alignment) {
  check_shared(offset, bytes, alignment);
  for (uint32_t g = offset / kGranule; g < (offset + bytes) / kGranule; ++g) {
    Granule& granule = granules_[g];
    if (granule.in_flight) fail("shared memory is written while a copy to it is under way");
    if ((granule.write.warp != -1 && races(granule.write)) ||
        (granule.read.warp != -1 && races(granule.read))) {
      fail("shared memory at offset " + std::to_string(offset) +
           " is written, and another thread used it without a barrier since");
    }
    note(granule.write, false);
  }
  return shared_.data() + offset;
}

// The bytes arrive when the thread waits for them: at the latest moment that hardware may choose.
void Block::copy_async(uint32_t offset, const void* source, bool present) {
  if (present) read_global(source, 16);
  write_shared(offset, 16, 16);
  for (uint32_t g = offset / kGranule; g < (offset + 16) / kGranule; ++g) {
    granules_[g].in_flight = true;
  }
  thread_[static_cast<size_t>(running_)].uncommitted.push_back({offset, source, present});
  if (present) counters_.copied_bytes += 16;
}

void Block::commit_copies() {
  Thread& thread = thread_[static_cast<size_t>(running_)];
  thread.groups.push_back(std::move(thread.uncommitted));
  thread.uncommitted.clear();
}

void Block::wait_copies(int pending) {
  auto& groups = thread_[static_cast<size_t>(running_)].groups;
  while (groups.size() > static_cast<size_t>(pending)) {
    for (const Copy& copy : groups.front()) {
      for (uint32_t g = copy.offset / kGranule; g < (copy.offset + 16) / kGranule; ++g) {
        granules_[g].in_flight = false;
      }
      char* target = write_shared(copy.offset, 16, 16);
      if (copy.present) {
        std::memcpy(target, copy.source, 16);
      } else {
        std::memset(target, 0, 16);
      }
    }
    groups.erase(groups.begin());
  }
}

// Eight rows of 16 bytes are one access of 128 bytes unless two rows share banks.
void Block::count_matrices(const uint32_t* offsets) {
  ++counters_.matrix_loads;
  for (int matrix = 0; matrix < 4; ++matrix) {
    int rows_at[8] = {};
    for (int row = 0; row < 8; ++row) ++rows_at[offsets[8 * matrix + row] / 16 % 8];
    counters_.matrix_wavefronts += *std::max_element(rows_at, rows_at + 8);
  }
}

}  // namespace xlnet_fast::cuda::emulation
