// Runs a function on several threads: those of the OpenMP runtime that torch has loaded, where
// there is one, so that no second pool competes with it for the cores; else on threads of its own.
#pragma once

#include <functional>
#include <string>

namespace xlnet_fast::cpu {

// Calls body(part, parts) once for each part 0 .. parts - 1, with parts = threads at most, in
// parallel; returns when all are done. Within a parallel region of that runtime it runs all parts
// on the calling thread. `body` must not throw.
void run_in_parallel(int threads, const std::function<void(int part, int parts)>& body);

// "openmp" where torch's runtime was found, else "std::thread".
std::string thread_runtime();

}  // namespace xlnet_fast::cpu
