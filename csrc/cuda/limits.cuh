// How far rows see to either side: the window of a mask, in keys.
#pragma once

#include "tiles.cuh"

namespace xlnet_fast::cuda {

struct Limits {
  int left, right, chunk;  // keys before a row's chunk and behind it, positions of a chunk

  // Of a struct of parameters; a side without a limit reaches beyond all keys. Whoever launches has
  // cut the numbers down to that of the keys.
  template <class Params>
  XLNET_FAST_DEVICE static Limits of(const Params& p, int keys) {
    return {p.window_left < 0 ? keys : static_cast<int>(p.window_left),
            p.window_right < 0 ? keys : static_cast<int>(p.window_right),
            static_cast<int>(p.chunk)};
  }
  template <class Params>
  XLNET_FAST_DEVICE static bool any(const Params& p) {
    return p.window_left >= 0 || p.window_right >= 0;
  }

  // First position of a position's chunk, the position itself where a chunk has one.
  XLNET_FAST_DEVICE int start(int position) const {
    if (chunk == 1) return position;
    const int within = position % chunk;
    return position - (within < 0 ? within + chunk : within);
  }
  // First key that a row sees, and one past the last; there may be no such keys.
  XLNET_FAST_DEVICE int begin(int position, int memory) const {
    return start(position) + memory - left;
  }
  XLNET_FAST_DEVICE int end(int position, int memory) const {
    return start(position) + memory + chunk + right;
  }
  // First position that sees any of the keys begin .. end - 1, and one past the last.
  XLNET_FAST_DEVICE int first_position(int begin, int memory) const {
    return whole_chunks(begin - memory - right - chunk + 1);
  }
  XLNET_FAST_DEVICE int positions_end(int end, int memory) const {
    return whole_chunks(end - memory + left);
  }
  // Distances from a row's own key at which it may see keys.
  XLNET_FAST_DEVICE int lowest_distance() const { return -left - (chunk - 1); }
  XLNET_FAST_DEVICE int highest_distance() const { return right + (chunk - 1); }

 private:
  XLNET_FAST_DEVICE int whole_chunks(int positions) const {
    return positions <= 0 ? 0 : start(positions + chunk - 1);
  }
};

}  // namespace xlnet_fast::cuda
