// What is asked of the GPU and of its driver; the emulation answers what a test has told it.
#pragma once

namespace xlnet_fast::cuda {

// The most shared memory that a block of the current device may have, bytes.
int shared_limit();

// As CUDA counts them: 13020 is 13.2.
struct Versions {
  int driver;   // the newest CUDA that the installed driver runs; 0 where there is no driver
  int runtime;  // of the CUDA runtime that is linked in
};

// Makes no CUDA context, and asks no GPU.
Versions versions();

}  // namespace xlnet_fast::cuda
