// Which instruction sets this CPU has, and which one a Plan uses.
#pragma once

#include <string>
#include <string_view>
#include <vector>

// Which kernels beside the reference's were built. HEADRACE_REFERENCE_ONLY (see CMakeLists.txt)
// says none.
#if !defined(HEADRACE_REFERENCE_ONLY)
#if defined(__x86_64__)
#define HEADRACE_KERNELS_X86
#elif defined(__aarch64__)
#define HEADRACE_KERNELS_NEON
#endif
#endif

namespace headrace {

// Each names one set of kernels, later ones of an architecture holding all instructions of earlier
// ones. kReference is
// the baseline of the architecture: x86-64-v2 on x86, armv8-a, which has NEON, on aarch64.
enum class Isa {
  kReference,
  kAvx2,
  kAvx512,      // F, BW, DQ and VL
  kAvx512Vnni,  // and dot products of bytes: Ice Lake
  kAvx512Bf16,  // and of bfloat16: Cooper Lake, Sapphire Rapids, Zen 4
  kNeonDot,     // dot products of bytes: Cortex-A76, Neoverse N1, Graviton 2
  kNeonBf16,    // and of bfloat16, and matrix products of both: Neoverse V1, Graviton 3
};

std::string_view name_of(Isa isa);

// The ISAs whose kernels were built and that this CPU and its OS can run, slowest first.
const std::vector<Isa>& available_isas();

// The ISA for new Plans: HEADRACE_ISA if set, else the fastest available.
// Throws Error(kBackendUnavailable) where HEADRACE_ISA names one that is unknown or not available.
Isa selected_isa();

}  // namespace headrace
