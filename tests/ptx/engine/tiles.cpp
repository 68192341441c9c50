// ldmatrix and stmatrix: 8x8 matrices of two-byte elements, a row an address, for a whole warp.
#include <string>

#include "memory.h"

namespace xlnet_fast::ptx {
namespace {

constexpr uint32_t kRowBytes = 16;

typedef uint16_t Row __attribute__((vector_size(kRowBytes)));

struct Tile {
  Row rows[8];
};

// Three rounds of interleaving the upper with the lower half.
Tile transposed(Tile tile) {
#pragma GCC unroll 3
  for (int round = 0; round < 3; ++round) {
    Tile next;
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const Row a = tile.rows[i], b = tile.rows[i + 4];
      next.rows[2 * i] = __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
      next.rows[2 * i + 1] = __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
    }
    tile = next;
  }
  return tile;
}

void need_all(const Step& step) {
  if (step.active != kAllLanes) {
    fail(step, std::countr_zero(step.active), "is not run by all lanes of the warp together");
  }
}

// Of a warp that does it together: word m of lane l is word l % 4 of row l / 4 of matrix m, so a
// matrix is 32 registers side by side as it is 8 rows one after the other.
template <int Matrices, bool Transposed>
void load(const Step& step) {
  need_all(step);
  Addresses address;
  read_addresses(step, step.instruction.operands[1], address);
  const Now now(step);
  constexpr Lanes kLeaders = Matrices == 4 ? kAllLanes : (Lanes{1} << 8 * (Matrices % 4)) - 1;
  each_region(step, kLeaders, Space::kShared, address, kRowBytes,
              [&](const Region& region, Lanes lanes) {
                note_reads(step, region, now, lanes, address, kRowBytes);
                const char* const data = region.data - region.begin;
                for (int i = 0; i < Matrices; ++i) {
                  Tile tile;
                  for (int row = 0; row < 8; ++row) {
                    std::memcpy(&tile.rows[row], data + address[8 * i + row], kRowBytes);
                  }
                  if (Transposed) tile = transposed(tile);
                  std::memcpy(step.warp.lanes<char>(step.instruction.operands[0].values[i]), &tile,
                              sizeof tile);
                }
              });
  step.block.counters->shared_read += Matrices * 8 * kRowBytes;
}

template <int Matrices, bool Transposed>
void store(const Step& step) {
  need_all(step);
  Addresses address;
  read_addresses(step, step.instruction.operands[0], address);
  const Now now(step);
  constexpr Lanes kLeaders = Matrices == 4 ? kAllLanes : (Lanes{1} << 8 * (Matrices % 4)) - 1;
  Tile tiles[4];
  for (int i = 0; i < Matrices; ++i) {
    std::memcpy(&tiles[i], step.warp.lanes<char>(step.instruction.operands[1].values[i]),
                sizeof(Tile));
    if (Transposed) tiles[i] = transposed(tiles[i]);
  }
  each_region(
      step, kLeaders, Space::kShared, address, kRowBytes, [&](const Region& region, Lanes lanes) {
        write(step, region, now, lanes, address, kRowBytes, reinterpret_cast<const char*>(tiles));
      });
  step.block.counters->shared_written += Matrices * 8 * kRowBytes;
}

Run run_of(bool is_load, int matrices, bool is_transposed) {
  if (matrices == 1) {
    if (is_load) return is_transposed ? load<1, true> : load<1, false>;
    return is_transposed ? store<1, true> : store<1, false>;
  }
  if (matrices == 2) {
    if (is_load) return is_transposed ? load<2, true> : load<2, false>;
    return is_transposed ? store<2, true> : store<2, false>;
  }
  if (is_load) return is_transposed ? load<4, true> : load<4, false>;
  return is_transposed ? store<4, true> : store<4, false>;
}

}  // namespace

// "ldmatrix.sync.aligned.m8n8.x4{.trans}{.shared}.b16".
bool decode_tiles(Instruction& instruction, Loader& loader) {
  const auto& name = instruction.name;
  const bool is_load = name[0] == "ldmatrix";
  if (!is_load && name[0] != "stmatrix") return false;
  int matrices = 0;
  bool is_transposed = false, is_shared = false;
  if (name.size() < 6 || name[1] != "sync" || name[2] != "aligned" || name[3] != "m8n8" ||
      name.back() != "b16") {
    fail(instruction, "is not known: only " + name[0] + ".sync.aligned.m8n8 of b16 is known");
  }
  for (size_t i = 4; i + 1 < name.size(); ++i) {
    if (name[i] == "x1" || name[i] == "x2" || name[i] == "x4") {
      matrices = name[i][1] - '0';
    } else if (name[i] == "trans") {
      is_transposed = true;
    } else if (name[i] == "shared" || name[i] == "shared::cta") {
      is_shared = true;
    } else {
      fail(instruction, "has a modifier that is not known: ." + name[i]);
    }
  }
  if (matrices == 0) fail(instruction, "says not how many matrices");
  if (!is_shared) fail(instruction, "is known of .shared alone");
  if (instruction.operands.size() != 2) fail(instruction, "has not two operands");
  prepare_address(instruction, is_load ? 1 : 0, loader);
  const auto& values = instruction.operands[is_load ? 0 : 1].values;
  if (values.size() != static_cast<size_t>(matrices)) {
    fail(instruction, "has not " + std::to_string(matrices) + " registers");
  }
  for (const Value& value : values) {
    const bool is_fine = value.bytes == 4 || (is_load && value.is_sink);
    if (!is_fine || value.is_immediate) fail(instruction, "has registers not of 32 bits");
  }
  instruction.run = run_of(is_load, matrices, is_transposed);
  instruction.kind = Kind::kTogether;
  return true;
}

}  // namespace xlnet_fast::ptx
