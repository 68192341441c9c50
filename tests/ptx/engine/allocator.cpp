// Global memory: torch's CPU memory while `install_allocator` is in force, a buffer a slot of a
// large range of addresses of which nothing else is accessible.
#include <c10/core/CPUAllocator.h>
#include <sys/mman.h>
#include <unistd.h>

#include <deque>
#include <memory>
#include <mutex>
#include <new>
#include <stdexcept>
#include <vector>

#include "memory.h"

namespace xlnet_fast::ptx {
namespace {

constexpr int kSlotShift = 24;
constexpr size_t kSlot = size_t{1} << kSlotShift;
constexpr size_t kSlots = size_t{1} << 16;
// Nothing within so many bytes of a buffer is another's.
constexpr size_t kGap = kSlot / 4;
// Buffers begin at odd multiples of 512: what torch promises on a GPU, and no more.
constexpr size_t kOffset = kGap + 512;
// So many freed buffers are still known.
constexpr size_t kFreedKept = 512;

class Arena {
 public:
  void* allocate(size_t bytes) {
    const std::lock_guard lock(mutex_);
    if (begin_ == nullptr) reserve();
    const size_t slots = (kOffset + bytes + kGap + kSlot - 1) >> kSlotShift;
    const size_t slot = find_room(slots);
    char* const data = begin_ + (slot << kSlotShift) + kOffset;
    open(data, bytes, PROT_READ | PROT_WRITE);
    std::memset(data, 0xff, bytes);
    auto buffer = std::make_unique<Buffer>();
    buffer->begin = reinterpret_cast<uint64_t>(data);
    buffer->bytes = bytes;
    buffer->is_live = true;
    for (size_t i = 0; i < slots; ++i) by_slot_[slot + i] = buffer.get();
    owned_[slot] = std::move(buffer);
    return data;
  }

  void free(void* data) {
    const std::lock_guard lock(mutex_);
    Buffer* const buffer = find(reinterpret_cast<uint64_t>(data));
    const size_t bytes = buffer->bytes;
    buffer->is_live = false;
    buffer->shadow = {};
    madvise(page_of(data), pages(data, bytes), MADV_DONTNEED);
    open(data, bytes, PROT_NONE);
    freed_.push_back(buffer);
    if (freed_.size() > kFreedKept) {
      Buffer* const oldest = freed_.front();
      freed_.pop_front();
      const size_t slot = slot_of(oldest->begin);
      const size_t slots = (kOffset + oldest->bytes + kGap + kSlot - 1) >> kSlotShift;
      for (size_t i = 0; i < slots; ++i) by_slot_[slot + i] = nullptr;
      // One slot at a time is taken again: most buffers are as large as that.
      for (size_t i = 0; i < slots; ++i) reusable_.push_back(slot + i);
      owned_[slot].reset();
    }
  }

  Buffer* find(uint64_t address) const {
    const uint64_t offset = address - reinterpret_cast<uint64_t>(begin_);
    return begin_ == nullptr || offset >= kSlot * kSlots ? nullptr : by_slot_[offset >> kSlotShift];
  }

  void forget() {
    const std::lock_guard lock(mutex_);
    for (auto& buffer : owned_) {
      if (buffer) buffer->shadow.forget();
    }
  }

 private:
  void reserve() {
    void* const range = mmap(nullptr, kSlot * kSlots + kSlot, PROT_NONE,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (range == MAP_FAILED) {
      throw std::runtime_error("there are not enough addresses for the device's memory (1 TiB)");
    }
    const auto at = reinterpret_cast<uintptr_t>(range);
    begin_ = reinterpret_cast<char*>((at + kSlot - 1) / kSlot * kSlot);
    by_slot_.assign(kSlots, nullptr);
    owned_.resize(kSlots);
  }

  size_t find_room(size_t slots) {
    if (slots == 1 && !reusable_.empty()) {
      const size_t slot = reusable_.front();
      reusable_.pop_front();
      return slot;
    }
    if (next_ + slots > kSlots) throw std::bad_alloc();
    next_ += slots;
    return next_ - slots;
  }

  size_t slot_of(uint64_t address) const {
    return (address - reinterpret_cast<uint64_t>(begin_)) >> kSlotShift;
  }

  static char* page_of(void* data) {
    static const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
    return reinterpret_cast<char*>(reinterpret_cast<uintptr_t>(data) / page * page);
  }
  static size_t pages(void* data, size_t bytes) {
    return static_cast<size_t>(static_cast<char*>(data) + bytes - page_of(data));
  }
  static void open(void* data, size_t bytes, int protection) {
    if (mprotect(page_of(data), pages(data, bytes), protection) != 0) throw std::bad_alloc();
  }

  std::mutex mutex_;
  char* begin_ = nullptr;
  size_t next_ = 0;  // slots from here on were never used
  std::vector<Buffer*> by_slot_;
  std::vector<std::unique_ptr<Buffer>> owned_;  // by first slot
  std::deque<Buffer*> freed_;
  std::deque<size_t> reusable_;
};

Arena& arena() {
  static Arena* const one = new Arena;  // tensors may be freed after everything static
  return *one;
}

class Allocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    void* const data = bytes == 0 ? nullptr : allocate_global(bytes);
    return {data, data, &free_global, c10::Device(c10::DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &free_global; }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }
};

c10::Allocator* before = nullptr;
int installed = 0;

}  // namespace

void* allocate_global(size_t bytes) { return arena().allocate(bytes); }

void free_global(void* data) {
  if (data != nullptr) arena().free(data);
}

Buffer* find_global(uint64_t address) { return arena().find(address); }

void forget_global() { arena().forget(); }

void install_allocator() {
  static Allocator* const ours = new Allocator;
  if (installed++ > 0) return;
  before = c10::GetCPUAllocator();
  c10::SetCPUAllocator(ours);
  if (c10::GetCPUAllocator() != ours) {
    installed = 0;
    throw std::runtime_error("torch does not let its CPU allocator be replaced");
  }
}

void remove_allocator() {
  if (installed == 0) throw std::runtime_error("the device's memory is not in use");
  if (--installed == 0) c10::SetCPUAllocator(before);
}

}  // namespace xlnet_fast::ptx
