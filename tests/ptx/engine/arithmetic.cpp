// Instructions that a lane does by itself.
#include "lanes.h"

namespace xlnet_fast::ptx {

bool decode_arithmetic(Instruction& instruction, Loader& loader) {
  return decode_moves(instruction, loader) || decode_integers(instruction, loader) ||
         decode_bits(instruction, loader) || decode_predicates(instruction, loader) ||
         decode_floats(instruction, loader) || decode_functions(instruction, loader) ||
         decode_conversions(instruction, loader);
}

}  // namespace xlnet_fast::ptx
