// Launching a kernel on the host: its blocks run one after the other.
#pragma once

#include "block.h"

namespace xlnet_fast::cuda {
namespace emulation {

// What a caller sets before launches, and what they counted since.
struct Session {
  std::vector<Region> regions;
  bool downwards = false;
  Counters counters;
};

Session& session();

void run_blocks(int64_t blocks, int threads, int shared_bytes, const std::function<void()>& body);

}  // namespace emulation

template <class Parameters>
void launch(void (*kernel)(Parameters), const Grid& grid, Stream, const Parameters& parameters) {
  emulation::run_blocks(grid.blocks, grid.threads, grid.shared_bytes, [&] { kernel(parameters); });
}

}  // namespace xlnet_fast::cuda
