#include "core/cpu.h"

#include <cstdlib>

#if defined(HEADRACE_KERNELS_NEON)
#include <sys/auxv.h>
#endif

#include "core/error.h"

namespace headrace {

std::string_view name_of(Isa isa) {
  switch (isa) {
    case Isa::kReference:
      return "reference";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx512Vnni:
      return "avx512_vnni";
    case Isa::kAvx512Bf16:
      return "avx512_bf16";
    case Isa::kNeonDot:
      return "neon_dot";
    case Isa::kNeonBf16:
      return "neon_bf16";
  }
  return "?";
}

const std::vector<Isa>& available_isas() {
  static const std::vector<Isa> isas = [] {
    std::vector<Isa> found{Isa::kReference};
#if defined(HEADRACE_KERNELS_X86)
    // __builtin_cpu_supports also asks the OS (XGETBV) whether the registers are saved.
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
      found.push_back(Isa::kAvx2);
      if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
        found.push_back(Isa::kAvx512);
        if (__builtin_cpu_supports("avx512vnni")) {
          found.push_back(Isa::kAvx512Vnni);
          if (__builtin_cpu_supports("avx512bf16")) found.push_back(Isa::kAvx512Bf16);
        }
      }
    }
#elif defined(HEADRACE_KERNELS_NEON)
    if ((getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0) {
      found.push_back(Isa::kNeonDot);
      constexpr unsigned long kMatrices = HWCAP2_BF16 | HWCAP2_I8MM;
      if ((getauxval(AT_HWCAP2) & kMatrices) == kMatrices) found.push_back(Isa::kNeonBf16);
    }
#endif
    return found;
  }();
  return isas;
}

Isa selected_isa() {
  const char* wanted = std::getenv("HEADRACE_ISA");
  if (wanted == nullptr || *wanted == '\0') return available_isas().back();
  std::string names;
  for (Isa isa : available_isas()) {
    if (name_of(isa) == wanted) return isa;
    names += str(names.empty() ? "" : ", ", name_of(isa));
  }
  fail(ErrorKind::kBackendUnavailable, "HEADRACE_ISA: got '", wanted,
       "', expected one this CPU can run: ", names);
}

}  // namespace headrace
