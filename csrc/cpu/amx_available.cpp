#include "rel_attention.h"

#if defined(XLNET_FAST_X86_KERNELS) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace xlnet_fast::cpu {

bool amx_available() {
#if defined(XLNET_FAST_X86_KERNELS) && defined(__linux__)
  static const bool available = [] {
    unsigned a = 0, b = 0, c = 0, d = 0;
    constexpr unsigned kOsxsave = 1u << 27, kAmxBf16 = 1u << 22, kAmxTile = 1u << 24;
    if (!__get_cpuid(1, &a, &b, &c, &d) || (c & kOsxsave) == 0) return false;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
    if ((d & kAmxBf16) == 0 || (d & kAmxTile) == 0) return false;
    unsigned low = 0, high = 0;  // of XCR0: what the system saves when it switches threads
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    constexpr unsigned kTileState = 3u << 17;
    if ((low & kTileState) != kTileState) return false;
    constexpr long kRequestPermission = 0x1023, kTileData = 18;  // Linux: asm/prctl.h
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  }();
  return available;
#else
  return false;
#endif
}

}  // namespace xlnet_fast::cpu
