// What this build was made with; the macros, all string literals, come from
// xlnet_fast/builder/recipe.py. Those of CUDA are there where its kernels are.
#pragma once

#include <sstream>
#include <string>
#include <vector>

#if !defined(XLNET_FAST_VERSION) || !defined(XLNET_FAST_FLAGS)
#error "build with setup.py or `xlnet-fast build`, which define what is missing here"
#endif

#define XLNET_FAST_STRING_OF(x) #x
#define XLNET_FAST_STRING(x) XLNET_FAST_STRING_OF(x)

#ifdef XLNET_FAST_CUDA
#define XLNET_FAST_CUDA_ARCHS XLNET_FAST_CUDA
#else
#define XLNET_FAST_CUDA_ARCHS ""
#define XLNET_FAST_CUDA_COMPILER ""
#endif

namespace xlnet_fast::build {

constexpr const char* kVersion = XLNET_FAST_VERSION;

inline std::string compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#elif defined(__GNUC__)
  return "gcc " __VERSION__;
#elif defined(_MSC_VER)
  return "msvc " XLNET_FAST_STRING(_MSC_VER);
#else
  return "unknown";
#endif
}

inline std::vector<std::string> words(const char* text) {
  std::istringstream stream(text);
  std::vector<std::string> all;
  for (std::string word; stream >> word;) all.push_back(word);
  return all;
}

// The flags added to Python's own, in order.
inline std::vector<std::string> flags() { return words(XLNET_FAST_FLAGS); }

// The architectures of the CUDA kernels, as nvcc names them: "80", "90a".
inline std::vector<std::string> cuda_archs() { return words(XLNET_FAST_CUDA_ARCHS); }

constexpr const char* kCudaCompiler = XLNET_FAST_CUDA_COMPILER;

inline std::string pybind11_version() {
#if defined(PYBIND11_VERSION_PATCH)
  return XLNET_FAST_STRING(PYBIND11_VERSION_MAJOR) "." XLNET_FAST_STRING(
      PYBIND11_VERSION_MINOR) "." XLNET_FAST_STRING(PYBIND11_VERSION_PATCH);
#else
  return "unknown";
#endif
}

}  // namespace xlnet_fast::build
