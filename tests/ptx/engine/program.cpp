// Loading a kernel: names become places, and each instruction gets its function.
#include "program.h"

#include <algorithm>
#include <cctype>

#include "lanes.h"
#include "warpgroup.h"

namespace xlnet_fast::ptx {

namespace {

constexpr uint32_t kAlign = 64;  // of registers, for vectors

size_t aligned(size_t bytes, size_t align) { return (bytes + align - 1) / align * align; }

std::vector<std::string> parts(const std::string& name) {
  std::vector<std::string> found(1);
  for (const char letter : name) {
    if (letter == '.') {
      found.emplace_back();
    } else {
      found.back() += letter;
    }
  }
  return found;
}

bool has(const Instruction& instruction, const char* part) {
  return std::find(instruction.name.begin(), instruction.name.end(), part) !=
         instruction.name.end();
}

}  // namespace

void fail(const Instruction& instruction, const std::string& what) {
  throw Fault("line " + std::to_string(instruction.line) + ": " + instruction.text + " " + what);
}

Program::Program(Source source) : source_(std::move(source)) {
  name = source_.name;
  parameter_bytes = static_cast<size_t>(source_.parameter_bytes);
  place_registers();
  place_specials();
  place_symbols();
  first_constant = register_bytes;
  code.reserve(source_.lines.size() + 1);
  for (const Source::Line& line : source_.lines) {
    code.push_back(read(line));
    decode(code.back(), line);
  }
  Instruction end;
  end.line = source_.lines.empty() ? 0 : source_.lines.back().line;
  end.text = "(the end of the kernel)";
  end.kind = Kind::kExit;
  code.push_back(end);
  has_products = std::any_of(code.begin(), code.end(), [](const Instruction& each) {
    return !each.name.empty() && each.name[0] == "wgmma";
  });
  if (has_products) number_registers();
  source_ = Source();
}

uint32_t Program::room(int bytes, int count) {
  const size_t at = register_bytes;
  const size_t each = bytes == 0 ? sizeof(Lanes) : static_cast<size_t>(bytes) * kLanes;
  register_bytes = aligned(at + each * static_cast<size_t>(count), kAlign);
  if (register_bytes > UINT32_MAX) throw Fault(name + " has too many registers");
  return static_cast<uint32_t>(at);
}

void Program::place_registers() {
  for (const Source::Register& each : source_.registers) {
    Value first;
    first.bytes = static_cast<uint8_t>(each.bytes);
    first.at = room(each.bytes, each.count.value_or(1));
    if (each.count) {
      rows_[each.name] = {first, *each.count};
    } else {
      names_[each.name] = first;
    }
  }
  sink_.bytes = 16;
  sink_.is_sink = true;
  sink_.at = room(16);
}

void Program::place_specials() {
  const auto add = [this](const std::string& register_name) {
    Value value;
    value.bytes = 4;
    value.at = room(4);
    names_[register_name] = value;
    return value;
  };
  const char* const axes[] = {".x", ".y", ".z"};
  for (int axis = 0; axis < 3; ++axis) {
    specials.tid[axis] = add(std::string("%tid") + axes[axis]);
    specials.ntid[axis] = add(std::string("%ntid") + axes[axis]);
    specials.ctaid[axis] = add(std::string("%ctaid") + axes[axis]);
    specials.nctaid[axis] = add(std::string("%nctaid") + axes[axis]);
  }
  specials.laneid = add("%laneid");
  specials.warpid = add("%warpid");
  specials.nwarpid = add("%nwarpid");
  const char* const masks[] = {"eq", "lt", "le", "gt", "ge"};
  for (int mask = 0; mask < 5; ++mask) {
    specials.lanemask[mask] = add(std::string("%lanemask_") + masks[mask]);
  }
  specials.dynamic_bytes = add("%dynamic_smem_size");
  specials.total_bytes = add("%total_smem_size");
}

void Program::place_symbols() {
  for (const auto& [parameter, offset] : source_.parameters) {
    symbols_[parameter] = static_cast<uint64_t>(offset);
  }
  size_t dynamic_align = 16;
  for (const Source::Symbol& each : source_.symbols) {
    const auto align = static_cast<size_t>(each.align);
    if (each.space != "shared" && each.space != "local") {
      symbols_[each.name] = std::nullopt;
    } else if (!each.bytes) {
      dynamic_align = std::max(dynamic_align, align);
    } else {
      const bool shared = each.space == "shared";
      size_t& used = shared ? static_shared_bytes : local_bytes;
      used = aligned(used, align);
      symbols_[each.name] = (shared ? kSharedBase : kLocalBase) + used;
      used += static_cast<size_t>(*each.bytes);
    }
  }
  static_shared_bytes = aligned(static_shared_bytes, dynamic_align);
  for (const Source::Symbol& each : source_.symbols) {
    if (each.space == "shared" && !each.bytes) {
      symbols_[each.name] = kSharedBase + static_shared_bytes;
    }
  }
}

Instruction Program::read(const Source::Line& line) {
  Instruction instruction;
  instruction.line = line.line;
  instruction.text = line.text;
  instruction.name = parts(line.name);
  if (line.guard) {
    instruction.guard = value_of(instruction, *line.guard);
    instruction.guarded = true;
    instruction.guard_negated = instruction.guard.negated;
    if (instruction.guard.bytes != 0 || instruction.guard.is_immediate) {
      fail(instruction, "is guarded by what is no predicate");
    }
  }
  const std::string& family = instruction.name[0];
  if (family == "bra" || family == "brx") return instruction;  // with labels for operands
  for (const Source::Operand& each : line.operands) {
    Operand operand;
    operand.is_address = each.is_address;
    operand.offset = each.offset;
    for (const std::string& text : each.values) {
      operand.values.push_back(value_of(instruction, text));
    }
    if (!operand.is_address && operand.offset != 0) {  // a symbol and a number
      Value& value = operand.values.front();
      if (!value.is_immediate) fail(instruction, "adds a number to a register");
      value.bits += static_cast<uint64_t>(operand.offset);
      operand.offset = 0;
    }
    instruction.operands.push_back(std::move(operand));
  }
  return instruction;
}

Value Program::value_of(const Instruction& instruction, std::string text) {
  if (text == "_") return sink_;
  Value value;
  const bool negated = text.starts_with('!');
  if (negated) text.erase(0, 1);
  if (const auto own = names_.find(text); own != names_.end()) {
    value = own->second;
  } else if (const auto symbol = symbols_.find(text); symbol != symbols_.end()) {
    if (!symbol->second) fail(instruction, "needs a variable in global memory: not known here");
    value.is_immediate = true;
    value.bits = *symbol->second;
  } else if (const auto bits = number(text)) {
    value.is_immediate = true;
    value.bits = *bits;
  } else {
    size_t digits = text.size();
    while (digits > 0 && std::isdigit(static_cast<unsigned char>(text[digits - 1]))) --digits;
    const auto row = rows_.find(text.substr(0, digits));
    if (row == rows_.end() || digits == text.size() || text.size() - digits > 9) {
      fail(instruction, "names what nobody declared: " + text);
    }
    const auto& [first, count] = row->second;
    const int index = std::stoi(text.substr(digits));
    if (index >= count) fail(instruction, "names what nobody declared: " + text);
    value = first;
    const uint32_t each = first.bytes == 0 ? sizeof(Lanes) : first.bytes * uint32_t{kLanes};
    value.at += each * static_cast<uint32_t>(index);
  }
  value.negated = negated;
  if (negated && (value.bytes != 0 || value.is_immediate)) {
    fail(instruction, "negates what is no predicate");
  }
  return value;
}

std::optional<uint64_t> Program::number(const std::string& text) const {
  std::string digits = text;
  const bool minus = digits.starts_with('-');
  if (minus) digits.erase(0, 1);
  if (digits.empty() || !std::isdigit(static_cast<unsigned char>(digits[0]))) return std::nullopt;
  int base = 10;
  if (digits.size() > 1 && digits[0] == '0') {
    const char kind = digits[1];
    const bool letter = std::isalpha(static_cast<unsigned char>(kind));
    const bool floating = kind == 'f' || kind == 'F' || kind == 'd' || kind == 'D';
    if (floating && digits.size() != (kind == 'f' || kind == 'F' ? 10u : 18u)) return std::nullopt;
    base = floating || kind == 'x' || kind == 'X' ? 16 : kind == 'b' || kind == 'B' ? 2 : 8;
    if (letter && digits != "0U") digits.erase(0, 2);
  }
  if (digits.ends_with('U')) digits.pop_back();
  uint64_t bits = 0;
  size_t used = 0;
  try {
    bits = std::stoull(digits, &used, base);
  } catch (const std::exception&) {
    return std::nullopt;
  }
  if (used != digits.size()) return std::nullopt;
  return minus ? 0 - bits : bits;
}

Value Program::constant_of(const Instruction* instruction, const Value& value, int bytes) {
  if (value.is_sink) return value;
  if (!value.is_immediate) {
    if (value.bytes == bytes) return value;
    const std::string what = "has a register of " + std::to_string(value.bytes) +
                             " bytes where it wants one of " + std::to_string(bytes);
    if (instruction != nullptr) fail(*instruction, what);
    throw Fault(what);
  }
  uint64_t bits = value.bits;
  if (bytes == 0) bits = bits == 0 ? 0 : kAllLanes;
  if (bytes < 8 && bytes > 0) bits &= (uint64_t{1} << (8 * bytes)) - 1;
  const auto [place, is_new] = constants_.try_emplace({bits, bytes}, value);
  if (is_new) {
    Value& made = place->second;
    made.bytes = static_cast<uint8_t>(bytes);
    made.bits = bits;
    made.at = room(bytes);
    constants.resize(register_bytes - first_constant);
    char* const to = constants.data() + (made.at - first_constant);
    const int each = bytes == 0 ? 4 : bytes;
    for (int lane = 0; lane < (bytes == 0 ? 1 : kLanes); ++lane) {
      std::memcpy(to + lane * each, &bits, std::min<size_t>(each, sizeof bits));
    }
  }
  return place->second;
}

int Program::label(const Instruction& instruction, const std::string& label_name) const {
  const auto found = source_.labels.find(label_name);
  if (found == source_.labels.end()) fail(instruction, "goes to a label that is not there");
  return found->second;
}

void Program::decode(Instruction& instruction, const Source::Line& line) {
  if (decode_control(instruction, line) || decode_parameter(instruction, *this) ||
      decode_arithmetic(instruction, *this) || decode_exchange(instruction, *this) ||
      decode_warpgroup(instruction, *this) || decode_memory(instruction, *this) ||
      decode_matrix(instruction, *this)) {
    return;
  }
  fail(instruction, "is not known");
}

void Program::number_registers() {
  for (Instruction& instruction : code) {
    if (instruction.kind == Kind::kWarpgroup) continue;  // which looks for itself
    for (const Operand& operand : instruction.operands) {
      for (const Value& value : operand.values) {
        const bool is_register = !value.is_immediate && !value.is_sink && value.bytes != 0;
        if (is_register) instruction.registers.push_back(register_number(value.at));
      }
    }
  }
}

bool Program::decode_control(Instruction& instruction, const Source::Line& line) {
  const std::string& family = instruction.name[0];
  if (family == "bra" || family == "brx") {
    const bool table = family == "brx";
    const size_t wanted = table ? 2 : 1;
    if (line.operands.size() != wanted || line.operands.back().values.size() != 1) {
      fail(instruction, "has operands that are not known");
    }
    const std::string& where = line.operands.back().values[0];
    if (!table) {
      instruction.kind = Kind::kBranch;
      instruction.target = label(instruction, where);
      return true;
    }
    const auto found = source_.tables.find(where);
    if (found == source_.tables.end()) fail(instruction, "goes by a table that is not there");
    instruction.kind = Kind::kTable;
    instruction.at[0] =
        constant(instruction, value_of(instruction, line.operands[0].values.at(0)), 4).at;
    instruction.target = static_cast<int>(tables.size());
    tables.emplace_back();
    for (const std::string& each : found->second) tables.back().push_back(label(instruction, each));
    return true;
  }
  if (family == "ret" || family == "exit") {
    instruction.kind = Kind::kExit;
    return true;
  }
  if (family == "trap") {
    instruction.run = [](const Step& step) {
      fail(step, std::countr_zero(step.active), "is a trap that the kernel ran into");
    };
    return true;
  }
  if ((family == "bar" && !has(instruction, "warp")) || family == "barrier") {
    decode_barrier(instruction);
    return true;
  }
  return false;
}

void Program::decode_barrier(Instruction& instruction) {
  std::vector<std::string> rest(instruction.name.begin() + 1, instruction.name.end());
  bool aligned_form = instruction.name[0] == "bar";
  std::erase(rest, "cta");
  if (std::erase(rest, "aligned") > 0) aligned_form = true;
  auto gathers = Gathers::kNothing;
  size_t first = 0;  // operand with the number of the barrier
  if (rest == std::vector<std::string>{"red", "or", "pred"}) gathers = Gathers::kAny;
  if (rest == std::vector<std::string>{"red", "and", "pred"}) gathers = Gathers::kAll;
  if (rest == std::vector<std::string>{"red", "popc", "u32"}) gathers = Gathers::kCount;
  const auto& operands = instruction.operands;
  const bool plain = gathers == Gathers::kNothing;
  if (plain ? rest != std::vector<std::string>{"sync"} || operands.size() != 1
            : operands.size() != 3) {
    fail(instruction, "is a barrier of a kind that is not known");
  }
  for (const Operand& each : operands) {
    if (each.values.size() != 1 || each.is_address) fail(instruction, "has an unknown operand");
  }
  if (!plain) {
    first = 1;
    const int bytes = gathers == Gathers::kCount ? 4 : 0;
    instruction.at[0] = constant(instruction, operands[0].values[0], bytes).at;
    const Value vote = constant(instruction, operands[2].values[0], 0);
    instruction.at[1] = vote.at;
    instruction.at[2] = operands[2].values[0].negated ? kAllLanes : 0;
  }
  const Value& number_of = operands[first].values[0];
  if (!number_of.is_immediate || number_of.bits > 15) {
    fail(instruction, "has no number of a barrier from 0 to 15");
  }
  instruction.kind = Kind::kBarrier;
  instruction.constants = {static_cast<uint32_t>(gathers), static_cast<uint32_t>(number_of.bits),
                           aligned_form ? 1u : 0u};
}

namespace {

// at: a register with an address, its bytes (0: there is none), bytes of an element, whether it has
// a sign. constants: what is added to the address, and the registers that are written.
Addresses parameter_addresses(const Step& step) {
  const auto& at = step.instruction.at;
  const auto offset = static_cast<int64_t>(static_cast<int32_t>(step.instruction.constants[0]));
  Addresses address;
  address.fill(static_cast<uint64_t>(offset));
  if (at[1] == 8) {
    const uint64_t* const base = step.warp.lanes<uint64_t>(at[0]);
    for (int lane = 0; lane < kLanes; ++lane) address[lane] += base[lane];
  } else if (at[1] == 4) {
    const uint32_t* const base = step.warp.lanes<uint32_t>(at[0]);
    for (int lane = 0; lane < kLanes; ++lane) address[lane] += base[lane];
  }
  return address;
}

// Of the elements of one lane, each extended to 64 bits.
std::array<uint64_t, 4> read_parameters(const Step& step, int lane, uint64_t address) {
  const Instruction& instruction = step.instruction;
  const Block& block = step.block;
  const size_t element = instruction.at[2], count = instruction.constants.size() - 1;
  const size_t bytes = element * count;
  if (address > block.parameter_bytes || bytes > block.parameter_bytes - address) {
    fail(step, lane, "reads past the kernel's parameters");
  }
  if ((address & (bytes - 1)) != 0) fail(step, lane, "reads parameters at an address not aligned");
  std::array<uint64_t, 4> values{};
  for (size_t i = 0; i < count; ++i) {
    std::memcpy(&values[i], block.parameters + address + i * element, element);
    const auto unused = static_cast<int>(64 - 8 * element);
    if (instruction.at[3] != 0) {
      values[i] = static_cast<uint64_t>(static_cast<int64_t>(values[i] << unused) >> unused);
    }
  }
  return values;
}

// Values of the .param space are the same for all lanes, whose addresses in a register may differ.
template <class To>
void load_parameter(const Step& step) {
  const Instruction& instruction = step.instruction;
  const Addresses address = parameter_addresses(step);
  const auto give = [&](Lanes lanes, const std::array<uint64_t, 4>& values) {
    for (size_t i = 1; i < instruction.constants.size(); ++i) {
      const To value = static_cast<To>(values[i - 1]);
      store_lanes(lanes, step.warp.lanes<To>(instruction.constants[i]), [=](int) { return value; });
    }
  };
  const int first = std::countr_zero(step.active);
  uint64_t differs = 0;
  for_lanes(step.active, [&](int lane) { differs |= address[lane] ^ address[first]; });
  if (differs == 0) return give(step.active, read_parameters(step, first, address[first]));
  for_lanes(step.active,
            [&](int lane) { give(Lanes{1} << lane, read_parameters(step, lane, address[lane])); });
}

}  // namespace

bool decode_parameter(Instruction& instruction, Loader& loader) {
  const auto& name = instruction.name;
  if (name[0] != "ld" || name.size() < 3 || name[1] != "param") return false;
  const bool vector = name.size() == 4 && (name[2] == "v2" || name[2] == "v4");
  const std::string& type = name.back();
  const size_t count = vector ? static_cast<size_t>(name[2][1] - '0') : 1;
  if (name.size() != (vector ? 4 : 3) || instruction.operands.size() != 2 ||
      std::string("busf").find(type[0]) == std::string::npos) {
    fail(instruction, "loads a parameter in a way that is not known");
  }
  const Operand& to = instruction.operands[0];
  const Operand& from = instruction.operands[1];
  if (to.values.size() != count || !from.is_address || from.values.size() != 1) {
    fail(instruction, "has operands that are not known");
  }
  int bytes = 8;
  for (const Value& value : to.values) {
    if (!value.is_sink) bytes = value.bytes;
  }
  const int bits = std::atoi(type.c_str() + 1);
  Value base = from.values[0];
  int64_t offset = from.offset;
  if (base.is_immediate) {
    offset += static_cast<int64_t>(base.bits);
  } else {
    instruction.at[1] = base.bytes == 4 ? 4 : 8;
    instruction.at[0] = loader.constant(instruction, base, static_cast<int>(instruction.at[1])).at;
  }
  instruction.constants = {static_cast<uint32_t>(offset)};
  for (const Value& value : to.values) {
    if ((value.bytes != bytes && !value.is_sink) || value.is_immediate || bytes * 8 < bits) {
      fail(instruction, "loads into a register that is too small");
    }
    instruction.constants.push_back(value.at);
  }
  if (bits != 8 && bits != 16 && bits != 32 && bits != 64) {
    fail(instruction, "has a type that is not known");
  }
  instruction.at[2] = static_cast<uint32_t>(bits / 8);
  instruction.at[3] = type[0] == 's' ? 1 : 0;
  instruction.run = bytes == 2   ? load_parameter<uint16_t>
                    : bytes == 4 ? load_parameter<uint32_t>
                                 : load_parameter<uint64_t>;
  return true;
}

}  // namespace xlnet_fast::ptx
