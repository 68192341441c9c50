// What Python sees of the machine: `ptx_machine.py` has the words around it.
#include <pybind11/pybind11.h>

#include "memory.h"
#include "program.h"

namespace py = pybind11;

namespace xlnet_fast::ptx {

namespace {

// --- the tuples of `ptx_machine.py`: without pybind11/stl.h, which takes long to compile ---

py::handle item(py::handle tuple, Py_ssize_t place) { return PyTuple_GET_ITEM(tuple.ptr(), place); }

std::string text_of(py::handle value) {
  Py_ssize_t size = 0;
  const char* const text = PyUnicode_AsUTF8AndSize(value.ptr(), &size);
  if (text == nullptr) throw py::error_already_set();
  return {text, static_cast<size_t>(size)};
}

int64_t number_of(py::handle value) {
  const int64_t number = PyLong_AsLongLong(value.ptr());
  if (number == -1 && PyErr_Occurred() != nullptr) throw py::error_already_set();
  return number;
}

int small_number_of(py::handle value) { return static_cast<int>(number_of(value)); }

std::vector<std::string> texts_of(py::handle tuple) {
  std::vector<std::string> texts;
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(tuple.ptr()); ++i) {
    texts.push_back(text_of(item(tuple, i)));
  }
  return texts;
}

Source::Line line_of(py::handle each) {
  Source::Line line{
      small_number_of(item(each, 0)), text_of(item(each, 1)), text_of(item(each, 2)), {}, {}};
  const py::handle operands = item(each, 3);
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(operands.ptr()); ++i) {
    const py::handle operand = item(operands, i);
    line.operands.push_back({texts_of(item(operand, 0)), item(operand, 1).ptr() == Py_True,
                             number_of(item(operand, 2))});
  }
  if (!item(each, 4).is_none()) line.guard = text_of(item(each, 4));
  return line;
}

std::unique_ptr<Program> load(const py::str& name, const py::dict& parameters,
                              int64_t parameter_bytes, const py::list& registers,
                              const py::list& symbols, const py::list& lines,
                              const py::dict& labels, const py::dict& tables) {
  Source source;
  source.name = text_of(name);
  source.parameter_bytes = parameter_bytes;
  for (const auto& [own, offset] : parameters) source.parameters[text_of(own)] = number_of(offset);
  for (const py::handle each : registers) {
    std::optional<int> count;
    if (!item(each, 2).is_none()) count = small_number_of(item(each, 2));
    source.registers.push_back({text_of(item(each, 0)), small_number_of(item(each, 1)), count});
  }
  for (const py::handle each : symbols) {
    std::optional<int64_t> bytes;
    if (!item(each, 3).is_none()) bytes = number_of(item(each, 3));
    source.symbols.push_back(
        {text_of(item(each, 0)), text_of(item(each, 1)), number_of(item(each, 2)), bytes});
  }
  source.lines.reserve(lines.size());
  for (const py::handle each : lines) source.lines.push_back(line_of(each));
  for (const auto& [own, place] : labels) source.labels[text_of(own)] = small_number_of(place);
  for (const auto& [own, targets] : tables) source.tables[text_of(own)] = texts_of(targets);
  return std::make_unique<Program>(std::move(source));
}

// --- launches ---

void look() {
  if (PyErr_CheckSignals() != 0) throw py::error_already_set();
}

Extent extent_of(const py::tuple& three) {
  Extent extent;
  for (size_t axis = 0; axis < 3; ++axis) {
    extent[axis] = static_cast<uint32_t>(number_of(item(three, static_cast<Py_ssize_t>(axis))));
  }
  return extent;
}

py::dict launch_kernel(const Program& program, const py::tuple& grid, const py::tuple& threads,
                       const py::bytes& parameters, size_t shared_bytes, uint32_t seed) {
  const Counters counters = run(program, extent_of(grid), extent_of(threads),
                                static_cast<std::string>(parameters), shared_bytes, seed, look);
  py::dict found;
  found["barriers"] = py::int_(counters.barriers);
  found["global_read"] = py::int_(counters.global_read);
  found["global_written"] = py::int_(counters.global_written);
  found["shared_read"] = py::int_(counters.shared_read);
  found["shared_written"] = py::int_(counters.shared_written);
  std::vector<uint32_t> runs;  // of each instruction but the kernel's end, which is none
  for (size_t i = 0; i + 1 < program.code.size(); ++i) runs.push_back(program.code[i].runs);
  found["runs"] =
      py::bytes(reinterpret_cast<const char*>(runs.data()), runs.size() * sizeof(uint32_t));
  return found;
}

}  // namespace

}  // namespace xlnet_fast::ptx

PYBIND11_MODULE(_ptx_machine, m) {
  using namespace xlnet_fast::ptx;
  py::register_exception<Fault>(m, "Fault", PyExc_RuntimeError);
  py::class_<Program>(m, "Program");
  m.def("load", &load);
  m.def("launch", &launch_kernel);
  m.def("install_allocator", &install_allocator);
  m.def("remove_allocator", &remove_allocator);
  // Whether lanes of one store may from now on write different values to one place.
  m.def("open_stores", [](bool open) { launch.open_stores = open; });
  // Whether it is a fault from now on to read shared memory that the block has not written.
  m.def("require_written", [](bool required) { launch.must_be_written = required; });
}
