#include "../launch.h"

#include <stdexcept>

namespace xlnet_fast::cuda::emulation {

Session& session() {
  static Session the_session;
  return the_session;
}

void run_blocks(const Handed& handed, const std::function<void()>& body) {
  const int64_t blocks = handed.blocks;
  if (blocks < 1 || blocks > INT32_MAX) {
    throw std::runtime_error("a grid cannot have " + std::to_string(blocks) + " blocks");
  }
  Session& here = session();
  if (handed.shared_bytes > here.shared_limit) {
    throw std::runtime_error("a block of this GPU may not have " +
                             std::to_string(handed.shared_bytes) + " bytes of shared memory");
  }
  here.shared_bytes.push_back(handed.shared_bytes);
  if (here.launcher) return here.launcher(handed);
  Block block(handed.threads, handed.shared_bytes, here.regions, here.downwards);
  for (int64_t b = 0; b < blocks; ++b) block.run(here.downwards ? blocks - 1 - b : b, body);
  const Counters& counted = block.counters();
  here.counters.products += counted.products;
  here.counters.matrix_loads += counted.matrix_loads;
  here.counters.matrix_wavefronts += counted.matrix_wavefronts;
  here.counters.copied_bytes += counted.copied_bytes;
  here.counters.block_barriers += counted.block_barriers;
}

}  // namespace xlnet_fast::cuda::emulation

namespace xlnet_fast::cuda {

int shared_limit() { return emulation::session().shared_limit; }

Versions versions() { return {emulation::session().driver, emulation::session().runtime}; }

}  // namespace xlnet_fast::cuda
