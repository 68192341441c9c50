// Who touched which bytes when, and what of it is a race.
#include <algorithm>
#include <cstdio>

#include "warpgroup.h"

namespace xlnet_fast::ptx {

Launch launch;

void Shadow::begin(size_t region_bytes, bool is_global) {
  bytes = region_bytes;
  writes.assign(granules(), 0);
  reads.assign(granules(), 0);
  if (is_global) other_reads.assign(granules(), 0);
}

void Shadow::refine(int finer) {
  const int copies = 1 << (shift - finer);
  shift = finer;
  for (auto* records : {&writes, &reads, &atomics, &other_reads, &other_atomics}) {
    if (records->empty()) continue;
    std::vector<Record> refined(granules());
    for (size_t granule = 0; granule < refined.size(); ++granule) {
      refined[granule] = (*records)[granule / copies];
    }
    *records = std::move(refined);
  }
}

void Shadow::expect_atomics(bool is_global) {
  if (!atomics.empty()) return;
  atomics.assign(granules(), 0);
  if (is_global) other_atomics.assign(granules(), 0);
}

void Shadow::forget() {
  for (auto* records : {&writes, &reads, &atomics, &other_reads, &other_atomics}) {
    std::fill(records->begin(), records->end(), 0);
  }
}

Now::Now(const Step& step) : block(step.block.memory->begin) {
  const Warp& warp = step.warp;
  const int thread = warp.number * kLanes;
  uint32_t least = 0xffffffffu, most = 0;
  for_lanes(step.active, [&](int lane) {
    const uint32_t moment = block + uint32_t(warp.block_epoch[lane]);
    least = std::min(least, moment);
    most = std::max(most, moment);
    own[lane] = record(moment, warp.warp_epoch[lane], thread + lane, thread + lane);
  });
  first = least;
  launch.latest = std::max(launch.latest, most);
}

namespace {

constexpr int kEpochBits = 12;  // of a warp's, that a record has

// What was before and may race with what is now.
struct Earlier {
  const char* did;
  Record record;
};

bool is_of_other_block(Record earlier, const Region& region, const Now& now) {
  return moment_of(earlier) >= region.floor && moment_of(earlier) < now.block;
}

// The thread of a record that is not in order with `own`, or -1; of its block, at its moment.
int unordered_thread(const Warp& warp, Record earlier, Record own) {
  if (moment_of(earlier) != moment_of(own)) return -1;
  const int thread = first_of(own);
  for (const int other : {first_of(earlier), second_of(earlier)}) {
    if (other == thread) continue;
    const bool is_same_warp = other / kLanes == thread / kLanes;
    if (!is_same_warp ||
        !warp.is_behind(thread % kLanes, other % kLanes, epoch_of(earlier), kEpochBits)) {
      return other;
    }
  }
  return -1;
}

std::string place_of(const Region& region, size_t granule) {
  char text[160];
  const size_t at = granule << region.shadow->shift;
  const int bytes = 1 << region.shadow->shift;
  if (region.space == Space::kShared) {
    std::snprintf(text, sizeof text, "bytes %zu to %zu of shared memory", at, at + bytes - 1);
  } else {
    std::snprintf(text, sizeof text, "bytes %zu to %zu of the buffer of %zu bytes at 0x%llx", at,
                  at + bytes - 1, region.bytes, static_cast<unsigned long long>(region.begin));
  }
  return text;
}

int64_t block_of(uint32_t moment) {
  auto after = std::upper_bound(launch.blocks.begin(), launch.blocks.end(), moment,
                                [](uint32_t m, const auto& block) { return m < block.first; });
  return after == launch.blocks.begin() ? -1 : std::prev(after)->second;
}

[[noreturn]] void fail_race(const Step& step, int lane, const Region& region, size_t granule,
                            const char* doing, const Earlier& earlier, int thread,
                            bool is_other_block) {
  std::string who = "thread " + std::to_string(thread);
  if (is_other_block) {
    who += " of block " + std::to_string(block_of(moment_of(earlier.record)));
  }
  fail(step, lane,
       std::string("races: it ") + doing + " " + place_of(region, granule) + ", which " + who +
           " " + earlier.did +
           (is_other_block ? ", and blocks of a grid are in no order"
                           : ", and both have passed no barrier in between"));
}

// Fails if an earlier record is not in order with what a lane does now.
[[gnu::noinline]] void check(const Step& step, int lane, const Region& region, const Now& now,
                             size_t granule, const char* doing, const Earlier& earlier) {
  if (moment_of(earlier.record) == kUnderWay) {
    fail(step, lane,
         doing + (" " + place_of(region, granule)) + ", where a copy of thread " +
             std::to_string(first_of(earlier.record)) +
             " is under way: cp.async was issued and not waited for");
  }
  if (is_of_other_block(earlier.record, region, now)) {
    fail_race(step, lane, region, granule, doing, earlier, first_of(earlier.record), true);
  }
  const int thread = unordered_thread(step.warp, earlier.record, now.own[lane]);
  if (thread >= 0) fail_race(step, lane, region, granule, doing, earlier, thread, false);
}

constexpr Record kMoment = Record{0xffffffffu} << 32, kEpoch = Record{0xfff} << 20;
constexpr Record kFirst = Record{0x3ff} << 10, kSecond = 0x3ff;
constexpr Record kFirstWarp = Record{0x3e0} << 10, kSecondWarp = 0x3e0;

// What comparisons of records with moments need, in the upper half as a record has them: it stays
// in registers over the lanes of an instruction. No branches, so that loops over granules become
// vectors.
class Bounds {
 public:
  Bounds(const Warp& warp, const Region& region, const Now& now)
      : first_(Record{now.first} << 32),
        floor_(Record{region.floor} << 32),
        block_(Record{now.block} << 32),
        warp_(warp.has_parted ? ~Record{0} : kMoment | kFirstWarp | kSecondWarp) {}

  // Whether a record may be out of order with what a lane does now; `check` knows. It is quick, and
  // says no to nearly all.
  bool is_suspect(Record earlier) const { return (earlier >= first_) | is_of_other_block(earlier); }
  // The same, where what the lane itself and threads of its warp did before their last barrier is
  // told from the rest.
  bool is_suspect(Record earlier, Record own) const {
    const Record other = earlier ^ own;
    const bool is_behind = ((other & warp_) == 0) & ((other & kEpoch) != 0);
    return is_suspect(earlier) & (other != 0) & !is_behind;
  }
  // Whether a record of reads has nothing to do with what comes: it may be replaced.
  bool is_past(Record earlier) const {
    return (earlier < floor_) | (earlier - block_ < first_ - block_);
  }
  // Whether it is of this launch.
  bool is_recent(Record earlier) const { return earlier >= floor_; }
  bool is_of_other_block(Record earlier) const { return earlier - floor_ < block_ - floor_; }

 private:
  Record first_, floor_, block_;
  Record warp_;  // what is alike in records of one warp and moment; of none where its lanes parted
};

// What is left of a record and one of the same moment.
[[gnu::always_inline]] inline Record merged(Record latest, Record own) {
  const Record other = latest ^ own, threads = latest ^ latest >> 10;
  const bool a_is_here = (other & kFirstWarp) == 0, b_is_here = (other & kSecondWarp) == 0;
  // Whoever is unordered with what it replaces is unordered with this too.
  const bool is_replaced = a_is_here & b_is_here & ((other & kEpoch) != 0);
  const bool is_noted = ((other & kFirst) == 0) | ((other & kSecond) == 0);
  // A second thread, or one of a second warp, which says more.
  const bool is_second = ((threads & kSecond) == 0) | (((threads & kSecondWarp) == 0) & !a_is_here);
  const Record both = (latest & ~kSecond) | (own & kSecond);
  return is_replaced ? own : (is_noted | !is_second) ? latest : both;
}

// Adds a lane to those who read (or did atomics) at the latest moment. `others` has what an earlier
// block did, where regions are shared by blocks.
[[gnu::noinline]] void merge(Record& latest, Record* others, Record own, const Region& region,
                             const Now& now) {
  if (moment_of(latest) == moment_of(own)) {
    latest = merged(latest, own);
    return;
  }
  if (others != nullptr && is_of_other_block(latest, region, now)) *others = latest;
  latest = own;
}

void add(std::vector<Record>& records, std::vector<Record>& others, size_t granule, Record own,
         const Region& region, const Now& now) {
  Record& latest = records[granule];
  if (latest != own) {
    merge(latest, others.empty() ? nullptr : &others[granule], own, region, now);
  }
}

void refine_to(const Region& region, uint32_t bytes) {
  const int shift = std::countr_zero(bytes);
  if (region.shadow->shift > shift) region.shadow->refine(shift);
}

// Whether a lane of this instruction writes to a granule what lies there already.
bool writes_the_same(Lanes lanes, int lane, const Region& region, const Addresses& address,
                     uint32_t bytes, size_t granule, const char* data) {
  const int shift = region.shadow->shift;
  const uint64_t at = region.begin + (granule << shift);
  if ((lanes >> lane & 1) == 0 || at < address[lane] || at >= address[lane] + bytes) return false;
  return std::memcmp(region.data + (granule << shift), data + lane * bytes + (at - address[lane]),
                     size_t{1} << shift) == 0;
}

// Whether it makes no difference that another thread of the block wrote to a granule since the last
// barrier: it wrote the same. Where several lanes of one instruction write there, a GPU leaves open
// which of them is last, so the same as another warp's is what any of them writes; and where
// `launch.open_stores`, lanes of one instruction may write what they like.
bool is_same_store(const Step& step, Lanes lanes, int lane, const Region& region,
                   const Addresses& address, uint32_t bytes, size_t granule, Record earlier,
                   const Now& now, const char* data) {
  if (moment_of(earlier) == kUnderWay || is_of_other_block(earlier, region, now)) return false;
  const int other = first_of(earlier) % kLanes;
  const uint64_t at = region.begin + (granule << region.shadow->shift);
  const bool is_of_this_store = first_of(earlier) / kLanes == step.warp.number && other < lane &&
                                (lanes >> other & 1) != 0 && at >= address[other] &&
                                at < address[other] + bytes;
  if (is_of_this_store) {
    return launch.open_stores ||
           writes_the_same(lanes, lane, region, address, bytes, granule, data);
  }
  for (int any = 0; any < kLanes; ++any) {
    if (writes_the_same(lanes, any, region, address, bytes, granule, data)) return true;
  }
  return false;
}

// Fail if what was before is out of order with what the lane does to a granule now.
void check_writes(const Step& step, int lane, const Region& region, const Now& now, size_t granule,
                  const char* doing) {
  const Record earlier = region.shadow->writes[granule];
  if (earlier != now.own[lane]) check(step, lane, region, now, granule, doing, {"wrote", earlier});
}

void check_reads(const Step& step, int lane, const Region& region, const Now& now, size_t granule,
                 const char* doing) {
  const Shadow& shadow = *region.shadow;
  check(step, lane, region, now, granule, doing, {"read", shadow.reads[granule]});
  if (!shadow.other_reads.empty()) {
    check(step, lane, region, now, granule, doing, {"read", shadow.other_reads[granule]});
  }
}

void check_atomics(const Step& step, int lane, const Region& region, const Now& now, size_t granule,
                   const char* doing) {
  const Shadow& shadow = *region.shadow;
  const char* const did = "changed by an atomic";
  check(step, lane, region, now, granule, doing, {did, shadow.atomics[granule]});
  if (!shadow.other_atomics.empty()) {
    check(step, lane, region, now, granule, doing, {did, shadow.other_atomics[granule]});
  }
}

void check_written(const Step& step, int lane, const Region& region, size_t granule) {
  const Shadow& shadow = *region.shadow;
  if (moment_of(shadow.writes[granule]) >= region.floor) return;
  if (!shadow.atomics.empty() && moment_of(shadow.atomics[granule]) >= region.floor) return;
  fail(step, lane, "reads " + place_of(region, granule) + ", which the block has not written");
}

// What a lane does at `count` granules where something may be out of order.
[[gnu::noinline]] void read_slowly(const Step& step, int lane, const Region& region, const Now& now,
                                   size_t begin, size_t count) {
  Shadow& shadow = *region.shadow;
  for (size_t granule = begin; granule < begin + count; ++granule) {
    check_writes(step, lane, region, now, granule, "reads");
    if (!shadow.atomics.empty()) check_atomics(step, lane, region, now, granule, "reads");
    if (launch.must_be_written && region.space == Space::kShared) {
      check_written(step, lane, region, granule);
    }
    add(shadow.reads, shadow.other_reads, granule, now.own[lane], region, now);
  }
}

[[gnu::noinline]] void check_slowly(const Step& step, Lanes lanes, int lane, const Region& region,
                                    const Now& now, const Addresses& address, uint32_t bytes,
                                    size_t begin, size_t count, const char* data) {
  const Shadow& shadow = *region.shadow;
  for (size_t granule = begin; granule < begin + count; ++granule) {
    if (!is_same_store(step, lanes, lane, region, address, bytes, granule, shadow.writes[granule],
                       now, data)) {
      check_writes(step, lane, region, now, granule, "writes");
    }
    check_reads(step, lane, region, now, granule, "writes");
    if (!shadow.atomics.empty()) check_atomics(step, lane, region, now, granule, "writes");
  }
}

// Bytes of an access, which are few.
void copy(char* to, const char* from, uint32_t bytes) {
  switch (bytes) {
    case 2:
      std::memcpy(to, from, 2);
      break;
    case 4:
      std::memcpy(to, from, 4);
      break;
    case 8:
      std::memcpy(to, from, 8);
      break;
    case 16:
      std::memcpy(to, from, 16);
      break;
    default:
      std::memcpy(to, from, bytes);
  }
}

// The two that all loads and stores go through. What they need for a lane is in locals, and there
// is one loop, so that it stays in registers. `Count` granules a lane.
template <size_t Count, bool HasOthers>
void note_reads_of(const Step& step, const Region& region, const Now& now, Lanes lanes,
                   const Addresses& address) {
  Shadow& shadow = *region.shadow;
  const bool is_slow =
      !shadow.atomics.empty() || (launch.must_be_written && region.space == Space::kShared);
  const Record* const writes = shadow.writes.data();
  Record* const reads = shadow.reads.data();
  Record* const others = shadow.other_reads.data();
  const int shift = shadow.shift;
  const uint64_t origin = region.begin;
  const Bounds bounds(step.warp, region, now);
  for (Lanes rest = lanes; rest != 0; rest &= rest - 1) {
    const int lane = std::countr_zero(rest);
    const Record own = now.own[lane];
    const size_t begin = (address[lane] - origin) >> shift;
    Record slow = is_slow, made[Count], of_others[Count];
    for (size_t i = 0; i < Count; ++i) {
      const Record read = reads[begin + i], written = writes[begin + i];
      const bool is_now = ((read ^ own) & kMoment) == 0;
      const bool is_other = HasOthers & bounds.is_of_other_block(read);
      made[i] = is_now ? merged(read, own) : own;
      if constexpr (HasOthers) of_others[i] = is_other ? read : others[begin + i];
      slow |= bounds.is_suspect(written, own) ? 1 : 0;
      slow |= is_now | is_other | bounds.is_past(read) ? 0 : 1;
    }
    if (slow == 0) [[likely]] {
      for (size_t i = 0; i < Count; ++i) reads[begin + i] = made[i];
      if constexpr (HasOthers) {
        for (size_t i = 0; i < Count; ++i) others[begin + i] = of_others[i];
      }
    } else {
      read_slowly(step, lane, region, now, begin, Count);
    }
  }
}

template <size_t Count, bool HasOthers>
void write_of(const Step& step, const Region& region, const Now& now, Lanes lanes,
              const Addresses& address, uint32_t bytes, const char* data) {
  Shadow& shadow = *region.shadow;
  const bool is_slow = !shadow.atomics.empty();
  Record* const writes = shadow.writes.data();
  const Record* const reads = shadow.reads.data();
  const Record* const others = shadow.other_reads.data();
  const int shift = shadow.shift;
  const uint64_t origin = region.begin;
  char* const place = region.data;
  const Bounds bounds(step.warp, region, now);
  for (Lanes rest = lanes; rest != 0; rest &= rest - 1) {
    const int lane = std::countr_zero(rest);
    const Record own = now.own[lane];
    const size_t offset = address[lane] - origin;
    const size_t begin = offset >> shift;
    Record slow = is_slow;
    for (size_t i = 0; i < Count; ++i) {
      slow |= bounds.is_suspect(writes[begin + i], own) ? 1 : 0;
      slow |= bounds.is_suspect(reads[begin + i], own) ? 1 : 0;
      if constexpr (HasOthers) slow |= bounds.is_recent(others[begin + i]) ? 1 : 0;
    }
    if (slow != 0) [[unlikely]] {
      check_slowly(step, lanes, lane, region, now, address, bytes, begin, Count, data);
    }
    for (size_t i = 0; i < Count; ++i) writes[begin + i] = own;
    copy(place + offset, data + lane * bytes, bytes);
  }
}

// What products of warpgroups have to do with a write.
void note_write(const Step& step, const Region& region, Lanes lanes, const Addresses& address,
                uint32_t bytes, bool is_done) {
  AsyncProxy* const proxy = step.block.memory->proxy.get();
  if (proxy != nullptr && region.space == Space::kShared) {
    proxy->note_writes(step, lanes, address, bytes, is_done);
  }
}

// Calls f with constants: how many granules an access has, and whether blocks share the region.
template <class F>
void with_count(const Shadow& shadow, uint32_t bytes, F&& f) {
  const auto with = [&]<size_t Count>() {
    if (shadow.other_reads.empty()) {
      f.template operator()<Count, false>();
    } else {
      f.template operator()<Count, true>();
    }
  };
  switch (bytes >> shadow.shift) {
    case 1:
      return with.template operator()<1>();
    case 2:
      return with.template operator()<2>();
    case 4:
      return with.template operator()<4>();
    case 8:
      return with.template operator()<8>();
    case 16:
      return with.template operator()<16>();
    default:
      return with.template operator()<32>();
  }
}

}  // namespace

void note_reads(const Step& step, const Region& region, const Now& now, Lanes lanes,
                const Addresses& address, uint32_t bytes) {
  if (region.shadow == nullptr) return;
  refine_to(region, bytes);
  with_count(*region.shadow, bytes, [&]<size_t Count, bool HasOthers>() {
    note_reads_of<Count, HasOthers>(step, region, now, lanes, address);
  });
}

void note_atomics(const Step& step, const Region& region, const Now& now, Lanes lanes,
                  const Addresses& address, uint32_t bytes) {
  if (region.shadow == nullptr) return;
  refine_to(region, bytes);
  Shadow& shadow = *region.shadow;
  shadow.expect_atomics(region.space == Space::kGlobal);
  note_write(step, region, lanes, address, bytes, true);
  const size_t count = bytes >> shadow.shift;
  const char* const doing = "changes by an atomic";
  for_lanes(lanes, [&](int lane) {
    const size_t begin = (address[lane] - region.begin) >> shadow.shift;
    for (size_t granule = begin; granule < begin + count; ++granule) {
      check_writes(step, lane, region, now, granule, doing);
      check_reads(step, lane, region, now, granule, doing);
      add(shadow.atomics, shadow.other_atomics, granule, now.own[lane], region, now);
    }
  });
}

void write(const Step& step, const Region& region, const Now& now, Lanes lanes,
           const Addresses& address, uint32_t bytes, const char* data) {
  if (region.shadow == nullptr) {
    for_lanes(lanes, [&](int lane) {
      std::memcpy(region.data + (address[lane] - region.begin), data + lane * bytes, bytes);
    });
    return;
  }
  refine_to(region, bytes);
  note_write(step, region, lanes, address, bytes, true);
  with_count(*region.shadow, bytes, [&]<size_t Count, bool HasOthers>() {
    write_of<Count, HasOthers>(step, region, now, lanes, address, bytes, data);
  });
}

void begin_writes(const Step& step, const Region& region, const Now& now, Lanes lanes,
                  const Addresses& address, uint32_t bytes) {
  refine_to(region, bytes);
  note_write(step, region, lanes, address, bytes, false);
  Shadow& shadow = *region.shadow;
  const size_t count = bytes >> shadow.shift;
  const bool has_atomics = !shadow.atomics.empty();
  const char* const doing = "copies into";
  const Bounds bounds(step.warp, region, now);
  for_lanes(lanes, [&](int lane) {
    const int thread = step.warp.thread(lane);
    const size_t begin = (address[lane] - region.begin) >> shadow.shift;
    for (size_t granule = begin; granule < begin + count; ++granule) {
      if (bounds.is_suspect(shadow.writes[granule]) || bounds.is_suspect(shadow.reads[granule])) {
        check_writes(step, lane, region, now, granule, doing);
        check_reads(step, lane, region, now, granule, doing);
      }
      if (has_atomics) check_atomics(step, lane, region, now, granule, doing);
      shadow.writes[granule] = record(kUnderWay, 0, thread, thread);
    }
  });
}

}  // namespace xlnet_fast::ptx
