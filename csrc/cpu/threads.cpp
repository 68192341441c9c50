#include "threads.h"

#include <atomic>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <dlfcn.h>
#endif

namespace xlnet_fast::cpu {
namespace {

// Entries of libgomp (and of LLVM's libomp, which offers them too) that `#pragma omp parallel`
// compiles to. Looked up in the process, not linked: torch's wheel brings its own libgomp, and a
// second one would be a second pool of spinning threads.
struct OpenMp {
  void (*parallel)(void (*)(void*), void*, unsigned threads, unsigned flags) = nullptr;
  int (*thread_number)() = nullptr;
  int (*team_size)() = nullptr;
  int (*in_parallel)() = nullptr;

  bool found() const { return parallel && thread_number && team_size && in_parallel; }
};

template <class Function>
void look_up(const char* name, Function& function) {
#if defined(__linux__)
  function = reinterpret_cast<Function>(dlsym(RTLD_DEFAULT, name));
#else
  (void)name;
  (void)function;
#endif
}

const OpenMp& openmp() {
  static const OpenMp runtime = [] {
    OpenMp found;
    look_up("GOMP_parallel", found.parallel);
    look_up("omp_get_thread_num", found.thread_number);
    look_up("omp_get_num_threads", found.team_size);
    look_up("omp_in_parallel", found.in_parallel);
    return found;
  }();
  return runtime;
}

using Body = std::function<void(int, int)>;

struct Job {
  const Body* body;
  int parts;
};

// A team may be smaller than was asked for: each thread then takes every team_size-th part.
void run_share(void* data) {
  const Job& job = *static_cast<const Job*>(data);
  const int step = openmp().team_size();
  for (int part = openmp().thread_number(); part < job.parts; part += step) {
    (*job.body)(part, job.parts);
  }
}

void run_on_own_threads(int parts, const Body& body) {
  std::vector<std::thread> helpers;
  helpers.reserve(static_cast<size_t>(parts - 1));
  int started = 1;  // part 0 is this thread's
  try {
    for (; started < parts; ++started) helpers.emplace_back(body, started, parts);
  } catch (const std::system_error&) {
    // No more threads to be had: this one does the parts that found none.
  }
  body(0, parts);
  for (int part = started; part < parts; ++part) body(part, parts);
  for (auto& helper : helpers) helper.join();
}

}  // namespace

void run_in_parallel(int threads, const Body& body) {
  if (threads <= 1) {
    body(0, 1);
  } else if (!openmp().found()) {
    run_on_own_threads(threads, body);
  } else if (openmp().in_parallel()) {
    for (int part = 0; part < threads; ++part) body(part, threads);
  } else {
    Job job{&body, threads};
    openmp().parallel(run_share, &job, static_cast<unsigned>(threads), 0);
  }
}

std::string thread_runtime() { return openmp().found() ? "openmp" : "std::thread"; }

}  // namespace xlnet_fast::cpu
