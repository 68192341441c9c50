// A kernel that is loaded: its instructions with their functions, and where everything lies.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "machine.h"

namespace xlnet_fast::ptx {

// A kernel as the text has it, names and all.
struct Source {
  struct Register {
    std::string name;
    int bytes;                 // 0: a predicate
    std::optional<int> count;  // "%r<9>" is nine of "%r"
  };
  struct Symbol {
    std::string name, space;
    int64_t align;
    std::optional<int64_t> bytes;  // none: as many as the launch gives
  };
  struct Operand {
    std::vector<std::string> values;
    bool is_address;
    int64_t offset;
  };
  struct Line {
    int line;
    std::string text, name;
    std::vector<Operand> operands;
    std::optional<std::string> guard;
  };
  std::string name;
  std::map<std::string, int64_t> parameters;  // offsets
  int64_t parameter_bytes = 0;
  std::vector<Register> registers;
  std::vector<Symbol> symbols;
  std::vector<Line> lines;
  std::map<std::string, int> labels;
  std::map<std::string, std::vector<std::string>> tables;
};

// Where special registers lie in a warp's.
struct Specials {
  std::array<Value, 3> tid, ntid, ctaid, nctaid;
  Value laneid, warpid, nwarpid;
  std::array<Value, 5> lanemask;  // eq, lt, le, gt, ge
  Value dynamic_bytes, total_bytes;
};

class Program : public Loader {
 public:
  explicit Program(Source source);

  std::string name;
  std::vector<Instruction> code;
  size_t parameter_bytes = 0;
  size_t static_shared_bytes = 0;  // from kSharedBase to where the dynamic part begins
  size_t local_bytes = 0;
  size_t register_bytes = 0;             // of a warp, with constants
  size_t first_constant = 0;             // byte where they begin
  std::vector<char> constants;           // those bytes
  std::vector<std::vector<int>> tables;  // targets of brx.idx
  Specials specials;
  bool has_products = false;  // of warpgroups

 protected:
  Value constant_of(const Instruction* instruction, const Value& value, int bytes) override;

 private:
  uint32_t room(int bytes, int count = 1);
  void place_registers();
  void place_specials();
  void place_symbols();
  Instruction read(const Source::Line& line);
  Value value_of(const Instruction& instruction, std::string text);
  std::optional<uint64_t> number(const std::string& text) const;
  int label(const Instruction& instruction, const std::string& name) const;
  void decode(Instruction& instruction, const Source::Line& line);
  bool decode_control(Instruction& instruction, const Source::Line& line);
  void decode_barrier(Instruction& instruction);
  void number_registers();

  Source source_;
  std::unordered_map<std::string, Value> names_;  // registers that have one of their own
  std::unordered_map<std::string, std::pair<Value, int>> rows_;  // "%r": the first, and how many
  std::unordered_map<std::string, std::optional<uint64_t>> symbols_;  // none: not known here
  std::map<std::pair<uint64_t, int>, Value> constants_;
  Value sink_;
};

// What a barrier adds up, in an instruction's `constants[0]`; then its number, and whether all
// lanes of a warp must arrive at the same instruction.
enum class Gathers : uint32_t { kNothing, kAny, kAll, kCount };

// Threads of a block and blocks of a grid, x, y, z.
using Extent = std::array<uint32_t, 3>;

// Runs all blocks, in an order from the seed. `look` is called now and then, and may throw.
Counters run(const Program& program, const Extent& grid, const Extent& threads,
             const std::string& parameters, size_t shared_bytes, uint32_t seed, void (*look)());

// ld.param.
bool decode_parameter(Instruction& instruction, Loader& loader);

}  // namespace xlnet_fast::ptx
