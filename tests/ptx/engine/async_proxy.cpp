// Shared memory through the async proxy: which bytes products read, and which they may.
#include <algorithm>
#include <string>

#include "warpgroup.h"

namespace xlnet_fast::ptx {
namespace {

constexpr uint32_t kUnit = 2;  // bytes of which `written_` knows: an element of a matrix

uint32_t offset_of(uint64_t address) { return static_cast<uint32_t>(address - kSharedBase); }

std::string bytes_at(uint32_t offset, uint32_t bytes) {
  return "bytes " + std::to_string(offset) + " to " + std::to_string(offset + bytes - 1) +
         " of shared memory";
}

}  // namespace

AsyncProxy::AsyncProxy(int threads, size_t shared_bytes)
    : fences_(threads),
      written_((shared_bytes + kUnit - 1) / kUnit),
      readers_((shared_bytes + kChunk - 1) / kChunk) {}

void AsyncProxy::fence(int thread, uint32_t moment) {
  Fences& own = fences_[thread];
  if (own.moment != moment) own.earlier = own.count;
  own.moment = moment;
  ++own.count;
}

void AsyncProxy::note_writes(const Step& step, Lanes lanes, const Addresses& address,
                             uint32_t bytes, bool is_done) {
  for_lanes(lanes, [&](int lane) {
    const uint32_t begin = offset_of(address[lane]), end = begin + bytes;
    for (uint32_t at = begin / kChunk; under_way_ != 0 && at < (end + kChunk - 1) / kChunk; ++at) {
      if (readers_[at] != 0) {
        fail(step, lane,
             "writes " + bytes_at(begin, bytes) +
                 ", which a product reads that is under way: wgmma.mma_async was issued and not "
                 "waited for");
      }
    }
    if (is_done) note_written(step.warp.thread(lane), address[lane], bytes);
  });
}

void AsyncProxy::note_written(int thread, uint64_t address, uint32_t bytes) {
  const uint32_t begin = offset_of(address) / kUnit;
  const uint32_t end = (offset_of(address) + bytes + kUnit - 1) / kUnit;
  std::fill(written_.begin() + begin, written_.begin() + end, fences_[thread].count);
}

// A write comes before what a product reads if its thread passed a fence and then a barrier, or if
// a barrier came first and then a fence of all threads that issue the product.
void AsyncProxy::check_fenced(const Step& step, const std::vector<uint64_t>& chunks) const {
  const BlockMemory& memory = *step.block.memory;
  const uint32_t now = memory.begin + static_cast<uint32_t>(step.warp.block_epoch[0]);
  const int first = step.warp.number / kGroupWarps * kGroupWarps * kLanes;
  uint32_t fenced = now;  // the moment of the latest fence of that thread whose is the earliest
  for (int thread = first; thread < first + kGroupWarps * kLanes; ++thread) {
    fenced = std::min(fenced, fences_[thread].moment);
  }
  const Shadow& shadow = memory.shadow;
  const uint32_t each = std::max(kUnit, uint32_t{1} << shadow.shift);
  for (const uint64_t chunk : chunks) {
    for (uint32_t at = offset_of(chunk); at < offset_of(chunk) + kChunk; at += each) {
      const Record write = shadow.writes[at >> shadow.shift];
      if (moment_of(write) < memory.begin || fenced > moment_of(write)) continue;
      const Fences& writer = fences_[first_of(write)];
      const uint32_t passed = writer.moment < now ? writer.count : writer.earlier;
      if (passed > written_[at / kUnit]) continue;
      fail(step, 0,
           "reads " + bytes_at(at, each) + ", which thread " + std::to_string(first_of(write)) +
               " wrote, through the async proxy, and no fence.proxy.async is in between");
    }
  }
}

void AsyncProxy::begin_reads(const std::vector<uint64_t>& chunks) {
  for (const uint64_t chunk : chunks) ++readers_[offset_of(chunk) / kChunk];
  under_way_ += chunks.size();
}

void AsyncProxy::end_reads(const std::vector<uint64_t>& chunks) {
  for (const uint64_t chunk : chunks) --readers_[offset_of(chunk) / kChunk];
  under_way_ -= chunks.size();
}

}  // namespace xlnet_fast::ptx
