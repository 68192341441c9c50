// Launching a kernel on the host: its blocks run one after the other, or somebody else runs them.
#pragma once

#include <functional>

#include "../device.h"
#include "block.h"

namespace xlnet_fast::cuda {
namespace emulation {

// A launch as a GPU's driver would get it: which function, and the bytes of its one parameter.
struct Handed {
  const void* kernel;
  int64_t blocks;
  int threads, shared_bytes;
  const void* parameters;
  size_t parameter_bytes;
};

// What a caller sets before launches, and what they counted since.
struct Session {
  std::function<void(const Handed&)> launcher;  // where there is one, it gets the launches
  std::vector<Region> regions;
  bool downwards = false;
  int shared_limit = 227 * 1024;  // of a block, as device.h has it
  int driver = 13000, runtime = 13000;
  Counters counters;
  std::vector<int> shared_bytes;  // of a block of each launch
};

Session& session();

// `body` is what one thread does. It is not called where another launcher gets the launch.
void run_blocks(const Handed& handed, const std::function<void()>& body);

}  // namespace emulation

template <class Parameters>
void launch(void (*kernel)(Parameters), const Grid& grid, Stream, const Parameters& parameters) {
  emulation::run_blocks({reinterpret_cast<const void*>(kernel), grid.blocks, grid.threads,
                         grid.shared_bytes, &parameters, sizeof(Parameters)},
                        [&] { kernel(parameters); });
}

}  // namespace xlnet_fast::cuda
