// The products of a warpgroup: four warps with 16 rows each, whose right operand, and left one if
// it likes, lie in shared memory.
#include <charconv>
#include <string>

#include "fragments.h"
#include "warpgroup.h"

namespace xlnet_fast::ptx {
namespace {

constexpr int kGroupRows = kRows * kGroupWarps;
constexpr int kMostColumns = 256;
constexpr int kDepthBytes = 32;  // of k, in a row

// `instruction.at`, behind kRegistersOfD.
enum Place { kColumnsOfD = kRegistersOfD + 1, kFlags, kA, kB, kAccumulates };
// Of kFlags.
enum Flag : uint32_t {
  kAInRegisters = 1,
  kTransposedA = 2,  // in shared memory, the elements of a column are side by side
  kTransposedB = 4,  // the same of B's rows
  kNegativeA = 8,
  kNegativeB = 16,
  kDoesNotAccumulate = 32,  // where the predicate is true
};

bool has(const Instruction& instruction, Flag flag) { return instruction.at[kFlags] & flag; }

// --- matrices in shared memory ---

// What a descriptor says of a matrix: in bits 0-13, 16-29 and 32-45 numbers of 16 bytes.
struct Descriptor {
  uint64_t start, leading, stride;
  uint32_t row_bytes;  // of a row that is swizzled with the seven behind it; 16: none is
};

Descriptor descriptor_of(const Step& step, uint64_t bits) {
  const auto field = [bits](int from) { return (bits >> from & 0x3fff) * kChunk; };
  const uint32_t row_bytes[] = {16, 128, 64, 32};
  const Descriptor found{field(0), field(16), field(32), row_bytes[bits >> 62]};
  if ((bits >> 49 & 7) != 0) fail(step, 0, "has a descriptor with a base offset: not known here");
  if (found.row_bytes != 16 && found.start % (8 * found.row_bytes) >= found.row_bytes) {
    fail(step, 0, "has a matrix that does not begin where the pattern of its swizzle does");
  }
  return found;
}

// Where 16 bytes of a matrix are, by the canonical layouts of PTX's manual (in short in CUTLASS,
// cute/atom/mma_traits_sm90_gmma.hpp). Of one with k along its rows `outer` is the row and `inner`
// the half of k; transposed, `outer` is 16 bytes' worth of rows and `inner` is k.
uint64_t address_of(const Descriptor& matrix, bool is_transposed, uint32_t outer, uint32_t inner) {
  const uint32_t width = matrix.row_bytes / kChunk;
  uint64_t linear = matrix.start;
  if (is_transposed) {
    linear += inner % 8 * matrix.row_bytes;
    linear += width == 1 ? outer * matrix.stride + inner / 8 * matrix.leading
                         : outer % width * kChunk + outer / width * matrix.leading +
                               inner / 8 * matrix.stride;
  } else {
    linear += outer % 8 * matrix.row_bytes + outer / 8 * matrix.stride;
    linear += inner * (width == 1 ? matrix.leading : kChunk);
  }
  return linear ^ ((linear >> 7 & (width - 1)) << 4);
}

// The addresses of all of a matrix, `inner` by `inner`.
template <class T>
void add_chunks(const Descriptor& matrix, bool is_transposed, uint32_t rows,
                std::vector<uint64_t>& chunks) {
  constexpr uint32_t kPer = kChunk / sizeof(T);
  const uint32_t outers = is_transposed ? rows / kPer : rows;
  const uint32_t inners = is_transposed ? kDepthBytes / sizeof(T) : kDepthBytes / kChunk;
  for (uint32_t outer = 0; outer < outers; ++outer) {
    for (uint32_t inner = 0; inner < inners; ++inner) {
      chunks.push_back(address_of(matrix, is_transposed, outer, inner));
    }
  }
}

// Element (row, k) of a matrix goes to to[row * row_stride + k * k_stride].
template <class T>
void read_matrix(const char* shared, const uint64_t* chunks, bool is_transposed, uint32_t rows,
                 float scale, float* to, uint32_t row_stride, uint32_t k_stride) {
  constexpr uint32_t kPer = kChunk / sizeof(T), kDepth = kDepthBytes / sizeof(T);
  const uint32_t along = is_transposed ? row_stride : k_stride;
  for (uint32_t i = 0; i < rows * kDepth / kPer; ++i) {
    T elements[kPer];
    std::memcpy(elements, shared + (chunks[i] - kSharedBase), sizeof elements);
    float* const first = is_transposed ? to + i / kDepth * kPer * row_stride + i % kDepth * k_stride
                                       : to + i / 2 * row_stride + i % 2 * kPer * k_stride;
    for (uint32_t e = 0; e < kPer; ++e) first[e * along] = scale * widen(elements[e]);
  }
}

// --- the product ---

// The value that all threads of the group have in a register.
template <class T>
T common(const Step& step, uint32_t at, const char* what) {
  const T value = step.warp.lanes<T>(at)[0];
  each_warp(step, [&](const Step& each) {
    const T* const lanes = each.warp.lanes<T>(at);
    for (int lane = 0; lane < (sizeof(T) == sizeof(Lanes) ? 1 : kLanes); ++lane) {
      if (lanes[lane] != value)
        fail(each, lane, std::string("has another ") + what + " than others");
    }
  });
  return value;
}

bool accumulates(const Step& step) {
  const Lanes lanes = common<Lanes>(step, step.instruction.at[kAccumulates], "predicate");
  if (lanes != 0 && lanes != kAllLanes) fail(step, 0, "has another predicate than other threads");
  return (lanes != 0) != has(step.instruction, kDoesNotAccumulate);
}

// D = A B + D: products exact, each sum rounded to fp32, from the first k to the last. What it
// reads changes nowhere before its end, so it is done at once.
template <class T, class Sum>
void multiply(const Step& step) {
  constexpr int kDepth = kDepthBytes / sizeof(T);
  constexpr int kPart = 4 * 4 / sizeof(T);                                 // of k, in one register
  constexpr int kRegisters = kRows * kColumns / kLanes * sizeof(Sum) / 4;  // of 8 columns of D
  const Instruction& own = step.instruction;
  const auto columns = own.at[kColumnsOfD];
  const bool is_read = accumulates(step), in_registers = has(own, kAInRegisters);
  std::vector<uint64_t> chunks;
  const auto add = [&](uint32_t at, Flag transposed, uint32_t rows) {
    const auto bits = common<uint64_t>(step, at, "descriptor");
    add_chunks<T>(descriptor_of(step, bits), has(own, transposed), rows, chunks);
  };
  add(own.at[kB], kTransposedB, columns);
  const size_t of_b = chunks.size();
  if (!in_registers) add(own.at[kA], kTransposedA, kGroupRows);
  issue_product(step, chunks);

  const char* const shared = step.block.memory->shared.data();
  alignas(64) float b[kDepth * kMostColumns];  // [k][column]
  alignas(64) float a[kGroupRows * kDepth];    // [row][k]
  const float sign_a = has(own, kNegativeA) ? -1.0f : 1.0f;
  read_matrix<T>(shared, chunks.data(), has(own, kTransposedB), columns,
                 has(own, kNegativeB) ? -1.0f : 1.0f, b, 1, kMostColumns);
  if (!in_registers) {
    read_matrix<T>(shared, chunks.data() + of_b, has(own, kTransposedA), kGroupRows, sign_a, a,
                   kDepth, 1);
  }
  each_warp(step, [&](const Step& each) {
    float* const mine = a + each.warp.number % kGroupWarps * kRows * kDepth;
    for (int i = 0; in_registers && i < 4; ++i) {
      float part[8 * kPart];  // [row % 8, k]
      widen_register<T>(each, own.constants[own.at[kRegistersOfD] + static_cast<uint32_t>(i)],
                        part);
      float* const to = mine + i % 2 * 8 * kDepth + i / 2 * kPart;
      for (int e = 0; e < 8 * kPart; ++e) to[e / kPart * kDepth + e % kPart] = sign_a * part[e];
    }
    for (uint32_t column = 0; column < columns; column += kColumns) {
      const uint32_t* const at = own.constants.data() + column / kColumns * kRegisters;
      alignas(64) float sums[kRows * kColumns] = {};
      if (is_read) read_sums<Sum>(each, at, sums);
      for (int row = 0; row < kRows; ++row) {
        Columns sum, right;
        std::memcpy(&sum, sums + row * kColumns, sizeof sum);
        for (int k = 0; k < kDepth; ++k) {
          std::memcpy(&right, b + k * kMostColumns + column, sizeof right);
          sum += mine[row * kDepth + k] * right;
        }
        std::memcpy(sums + row * kColumns, &sum, sizeof sum);
      }
      write_sums<Sum>(each, at, sums);
    }
  });
}

// --- decoding ---

uint32_t flag_of(const Instruction& instruction, size_t operand, uint64_t if_set, Flag flag) {
  const Value& value = single(instruction, operand);
  const uint64_t unset = flag == kNegativeA || flag == kNegativeB ? 1 : 0;
  if (!value.is_immediate || (value.bits != if_set && value.bits != unset)) {
    fail(instruction, "has a number that is not known as operand " + std::to_string(operand + 1));
  }
  return value.bits == if_set ? flag : 0;
}

// "m64n96k16" -> 96, or 0.
uint32_t columns_of(const std::string& shape, const std::string& depth) {
  uint32_t columns = 0;
  if (!shape.starts_with("m64n")) return 0;
  const auto [end, problem] =
      std::from_chars(shape.data() + 4, shape.data() + shape.size(), columns);
  const bool is_whole = problem == std::errc() && end == shape.data() + shape.size() - depth.size();
  const bool is_known =
      is_whole && shape.ends_with(depth) && columns % kColumns == 0 && columns <= kMostColumns;
  return is_known ? columns : 0;
}

void add_registers(Instruction& instruction, size_t operand, size_t count) {
  const Operand& found = instruction.operands[operand];
  if (found.is_address || found.values.size() != count) {
    fail(instruction, "has not " + std::to_string(count) + " registers as operand " +
                          std::to_string(operand + 1));
  }
  for (const Value& value : found.values) {
    if (value.bytes != 4 || value.is_immediate || value.is_sink) {
      fail(instruction, "has registers not of 32 bits");
    }
    instruction.constants.push_back(value.at);
  }
}

}  // namespace

// "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {d}, {a} or descriptor, descriptor,
// whether d counts, sign of a, sign of b{{, a is transposed}, b is transposed}".
void decode_product(Instruction& instruction, Loader& loader) {
  const auto& name = instruction.name;
  auto& operands = instruction.operands;
  if (name.size() != 8 || name[6] != name[7]) fail(instruction, "is not a product that is known");
  const bool is_tf32 = name[6] == "tf32", half_sums = name[5] == "f16" && name[6] == "f16";
  if (is_tf32 && name[5] == "f32") instruction.run = multiply<Tf32, float>;
  if (name[6] == "bf16" && name[5] == "f32") instruction.run = multiply<Bfloat, float>;
  if (name[6] == "f16" && name[5] == "f32") instruction.run = multiply<Half, float>;
  if (half_sums) instruction.run = multiply<Half, Half>;
  const uint32_t columns = columns_of(name[4], is_tf32 ? "k8" : "k16");
  if (instruction.run == nullptr || columns == 0) {
    fail(instruction, "is not a product that is known");
  }
  const bool in_registers = operands.size() > 1 && operands[1].values.size() > 1;
  const size_t flags = is_tf32 ? 0 : in_registers ? 1 : 2;
  if (operands.size() != 6 + flags) fail(instruction, "has not the operands that it wants");
  add_registers(instruction, 0, columns / (half_sums ? 4 : 2));
  instruction.at[kRegistersOfD] = static_cast<uint32_t>(instruction.constants.size());
  if (in_registers) {
    add_registers(instruction, 1, 4);
  } else {
    instruction.at[kA] = loader.constant(instruction, single(instruction, 1), 8).at;
  }
  instruction.at[kB] = loader.constant(instruction, single(instruction, 2), 8).at;
  instruction.at[kAccumulates] = loader.constant(instruction, single(instruction, 3), 0).at;
  uint32_t found = in_registers ? kAInRegisters : 0;
  if (operands[3].values[0].negated) found |= kDoesNotAccumulate;
  found |= flag_of(instruction, 4, ~uint64_t{0}, kNegativeA);
  found |= flag_of(instruction, 5, ~uint64_t{0}, kNegativeB);
  if (flags == 2) found |= flag_of(instruction, 6, 1, kTransposedA);
  if (flags > 0) found |= flag_of(instruction, 5 + flags, 1, kTransposedB);
  instruction.at[kFlags] = found;
  instruction.at[kColumnsOfD] = columns;
  instruction.kind = Kind::kWarpgroup;
}

}  // namespace xlnet_fast::ptx
