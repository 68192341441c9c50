// mma.sync: products of small matrices that lie in the registers of a warp.
#include <string>

#include "fragments.h"

namespace xlnet_fast::ptx {
namespace {

// The operands' places: `instruction.constants` has d, a, b, c one register after the other.
template <class T, class Sum, int K>
struct Places {
  static constexpr int kPerWord = 4 / sizeof(T);
  static constexpr int kWords = K / kPerWord;                               // of a row of A
  static constexpr int kSum = kRows * kColumns / kLanes * sizeof(Sum) / 4;  // registers of C
  static constexpr int kA = kRows * kWords / kLanes, kB = kColumns * kWords / kLanes;
};

// D = A B + C: products exact, each sum rounded to fp32, from the first k to the last.
template <class T, class Sum, int K>
void multiply(const Step& step) {
  if (step.active != kAllLanes) {
    fail(step, std::countr_zero(step.active), "is not run by all lanes of the warp together");
  }
  using P = Places<T, Sum, K>;
  const uint32_t* const d_at = step.instruction.constants.data();
  const uint32_t* const a_at = d_at + P::kSum;
  const uint32_t* const b_at = a_at + P::kA;
  const uint32_t* const c_at = b_at + P::kB;
  constexpr int kPart = 4 * P::kPerWord;                 // of k, in one register
  alignas(64) float a[P::kA][8 * kPart];                 // [2 * part + row / 8][row % 8, k]
  alignas(64) float b_columns[P::kB][kColumns * kPart];  // [part][column, k]
  alignas(64) float sums[kRows * kColumns];
  for (int i = 0; i < P::kA; ++i) widen_register<T>(step, a_at[i], a[i]);
  for (int i = 0; i < P::kB; ++i) widen_register<T>(step, b_at[i], b_columns[i]);
  read_sums<Sum>(step, c_at, sums);
  Columns b[K];
  for (int k = 0; k < K; ++k) {
    for (int column = 0; column < kColumns; ++column) {
      b[k][column] = b_columns[k / kPart][column * kPart + k % kPart];
    }
  }
  for (int row = 0; row < kRows; ++row) {
    Columns sum;
    std::memcpy(&sum, sums + row * kColumns, sizeof sum);
    for (int k = 0; k < K; ++k) {
      sum += a[2 * (k / kPart) + row / 8][row % 8 * kPart + k % kPart] * b[k];
    }
    std::memcpy(sums + row * kColumns, &sum, sizeof sum);
  }
  write_sums<Sum>(step, d_at, sums);
}

struct Form {
  const char* shape;
  const char* inputs;
  const char* sums;
  Run run;
  size_t a, b, sum;  // registers
};

template <class T, class Sum, int K>
constexpr Form form(const char* shape, const char* inputs, const char* sums) {
  using P = Places<T, Sum, K>;
  return {shape, inputs, sums, multiply<T, Sum, K>, P::kA, P::kB, P::kSum};
}

constexpr Form kForms[] = {
    form<Half, float, 16>("m16n8k16", "f16", "f32"),
    form<Half, Half, 16>("m16n8k16", "f16", "f16"),
    form<Bfloat, float, 16>("m16n8k16", "bf16", "f32"),
    form<Half, float, 8>("m16n8k8", "f16", "f32"),
    form<Half, Half, 8>("m16n8k8", "f16", "f16"),
    form<Bfloat, float, 8>("m16n8k8", "bf16", "f32"),
    form<Tf32, float, 8>("m16n8k8", "tf32", "f32"),
    form<Tf32, float, 4>("m16n8k4", "tf32", "f32"),
};

}  // namespace

// "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {d}, {a}, {b}, {c}".
bool decode_matrix(Instruction& instruction, Loader& loader) {
  const auto& name = instruction.name;
  if (name[0] != "mma" && name[0] != "wmma") return false;
  const bool is_form = name[0] == "mma" && name.size() == 10 && name[1] == "sync" &&
                       name[2] == "aligned" && name[4] == "row" && name[5] == "col" &&
                       name[7] == name[8] && name[6] == name[9];
  const Form* found = nullptr;
  for (const Form& form : kForms) {
    if (is_form && name[3] == form.shape && name[7] == form.inputs && name[6] == form.sums) {
      found = &form;
    }
  }
  if (found == nullptr) fail(instruction, "is not a product that is known");
  auto& operands = instruction.operands;
  if (operands.size() != 4) fail(instruction, "has not four operands");
  const size_t counts[] = {found->sum, found->a, found->b, found->sum};
  for (int i = 0; i < 4; ++i) {
    if (operands[i].is_address || operands[i].values.size() != counts[i]) {
      fail(instruction, "has not " + std::to_string(counts[i]) + " registers as operand " +
                            std::to_string(i + 1));
    }
    for (Value& value : operands[i].values) {
      if (i == 0 && value.is_immediate) fail(instruction, "writes to a number");
      if (!value.is_sink) value = loader.constant(instruction, value, 4);
      instruction.constants.push_back(value.at);
    }
  }
  instruction.run = found->run;
  instruction.kind = Kind::kTogether;
  return true;
}

}  // namespace xlnet_fast::ptx
