// What this build was made with; the two macros, both string literals, come from
// xlnet_fast/builder/recipe.py.
#pragma once

#include <sstream>
#include <string>
#include <vector>

#if !defined(XLNET_FAST_VERSION) || !defined(XLNET_FAST_FLAGS)
#error "build with setup.py or `xlnet-fast build`, which define what is missing here"
#endif

#define XLNET_FAST_STRING_OF(x) #x
#define XLNET_FAST_STRING(x) XLNET_FAST_STRING_OF(x)

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

// The flags added to Python's own, in order.
inline std::vector<std::string> flags() {
  std::istringstream words(XLNET_FAST_FLAGS);
  std::vector<std::string> all;
  for (std::string word; words >> word;) all.push_back(word);
  return all;
}

inline std::string pybind11_version() {
#if defined(PYBIND11_VERSION_PATCH)
  return XLNET_FAST_STRING(PYBIND11_VERSION_MAJOR) "." XLNET_FAST_STRING(
      PYBIND11_VERSION_MINOR) "." XLNET_FAST_STRING(PYBIND11_VERSION_PATCH);
#else
  return "unknown";
#endif
}

}  // namespace xlnet_fast::build
