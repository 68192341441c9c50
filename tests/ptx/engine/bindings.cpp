// What Python sees of the machine: `ptx_machine.py` has the words around it.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "program.h"

namespace py = pybind11;

namespace xlnet_fast::ptx {

namespace {

using Operands = std::vector<std::tuple<std::vector<std::string>, bool, int64_t>>;
using Lines =
    std::vector<std::tuple<int, std::string, std::string, Operands, std::optional<std::string>>>;
using Registers = std::vector<std::tuple<std::string, int, std::optional<int>>>;
using Symbols = std::vector<std::tuple<std::string, std::string, int64_t, std::optional<int64_t>>>;

std::unique_ptr<Program> load(const std::string& name,
                              const std::map<std::string, int64_t>& parameters,
                              int64_t parameter_bytes, const Registers& registers,
                              const Symbols& symbols, const Lines& lines,
                              const std::map<std::string, int>& labels,
                              const std::map<std::string, std::vector<std::string>>& tables) {
  Source source{name, parameters, parameter_bytes, {}, {}, {}, labels, tables};
  for (const auto& [own, bytes, count] : registers) source.registers.push_back({own, bytes, count});
  for (const auto& [own, space, align, bytes] : symbols) {
    source.symbols.push_back({own, space, align, bytes});
  }
  for (const auto& [line, text, instruction, operands, guard] : lines) {
    Source::Line made{line, text, instruction, {}, guard};
    for (const auto& [values, is_address, offset] : operands) {
      made.operands.push_back({values, is_address, offset});
    }
    source.lines.push_back(std::move(made));
  }
  return std::make_unique<Program>(std::move(source));
}

void look() {
  if (PyErr_CheckSignals() != 0) throw py::error_already_set();
}

py::dict launch(const Program& program, const Extent& grid, const Extent& threads,
                const py::bytes& parameters, size_t shared_bytes, uint32_t seed) {
  const Counters counters =
      run(program, grid, threads, static_cast<std::string>(parameters), shared_bytes, seed, look);
  py::dict found;
  found["barriers"] = counters.barriers;
  found["global_read"] = counters.global_read;
  found["global_written"] = counters.global_written;
  found["shared_read"] = counters.shared_read;
  found["shared_written"] = counters.shared_written;
  py::list runs;  // (index, times) of the instructions that ran
  for (size_t i = 0; i < program.code.size(); ++i) {
    if (program.code[i].runs != 0) runs.append(py::make_tuple(i, program.code[i].runs));
  }
  found["runs"] = runs;
  return found;
}

}  // namespace

}  // namespace xlnet_fast::ptx

PYBIND11_MODULE(_ptx_machine, m) {
  using namespace xlnet_fast::ptx;
  py::register_exception<Fault>(m, "Fault", PyExc_RuntimeError);
  py::class_<Program>(m, "Program")
      .def_readonly("static_shared_bytes", &Program::static_shared_bytes)
      .def_readonly("local_bytes", &Program::local_bytes)
      .def_readonly("parameter_bytes", &Program::parameter_bytes);
  m.def("load", &load);
  m.def("launch", &launch);
  bind_memory(m);
}
