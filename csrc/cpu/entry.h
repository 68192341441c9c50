// What the entries of the kernels share: refusing arguments, and memory for the threads of a call.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>

namespace xlnet_fast::cpu {

inline void require(bool holds, const std::string& message) {
  if (!holds) throw std::invalid_argument(message);
}

constexpr int64_t kLine = 64;  // bytes of a cache line, and of the widest vector

inline int64_t whole_lines(int64_t bytes) { return (bytes + kLine - 1) / kLine * kLine; }

struct FreeLines {
  void operator()(char* memory) const { ::operator delete(memory, std::align_val_t{kLine}); }
};
using Memory = std::unique_ptr<char, FreeLines>;

// Whole lines of memory, not cleared; throws std::bad_alloc.
inline Memory allocate(int64_t bytes) {
  const auto size = static_cast<size_t>(whole_lines(std::max<int64_t>(bytes, kLine)));
  return Memory(static_cast<char*>(::operator new(size, std::align_val_t{kLine})));
}

}  // namespace xlnet_fast::cpu
