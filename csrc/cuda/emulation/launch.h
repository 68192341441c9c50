// Launching a kernel on the host: its blocks run one after the other.
#pragma once

#include "../device.h"
#include "block.h"

namespace xlnet_fast::cuda {
namespace emulation {

// What a caller sets before launches, and what they counted since.
struct Session {
  std::vector<Region> regions;
  bool downwards = false;
  int shared_limit = 227 * 1024;  // of a block, as device.h has it
  int driver = 13000, runtime = 13000;
  Counters counters;
  std::vector<int> shared_bytes;  // of a block of each launch
};

Session& session();

void run_blocks(int64_t blocks, int threads, int shared_bytes, const std::function<void()>& body);

}  // namespace emulation

template <class Parameters>
void launch(void (*kernel)(Parameters), const Grid& grid, Stream, const Parameters& parameters) {
  emulation::run_blocks(grid.blocks, grid.threads, grid.shared_bytes, [&] { kernel(parameters); });
}

}  // namespace xlnet_fast::cuda
