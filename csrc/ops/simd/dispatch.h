// How an op picks the kernels for a Plan's ISA.
//
// A file named *_kernels.cc is compiled once per ISA, each time with HEADRACE_ISA_NS naming the
// namespace its kernels live in (reference, avx2, avx512). It defines one table of function
// pointers there; the op's own .cc picks a table at plan time. Files named *_avx2.cc, *_avx512.cc,
// *_avx512_vnni.cc, *_avx512_bf16.cc, *_neon_dot.cc and *_neon_bf16.cc are compiled once, with that
// ISA's flags.
#pragma once

#include "core/cpu.h"

#if defined(HEADRACE_KERNELS_X86)
#define HEADRACE_DECLARE_KERNELS(Table, name) \
  namespace reference {                       \
  extern const Table name;                    \
  }                                           \
  namespace avx2 {                            \
  extern const Table name;                    \
  }                                           \
  namespace avx512 {                          \
  extern const Table name;                    \
  }
#define HEADRACE_KERNELS(isa, name)                 \
  ((isa) >= ::headrace::Isa::kAvx512 ? avx512::name \
   : (isa) == ::headrace::Isa::kAvx2 ? avx2::name   \
                                     : reference::name)
#else
#define HEADRACE_DECLARE_KERNELS(Table, name) \
  namespace reference {                       \
  extern const Table name;                    \
  }
#define HEADRACE_KERNELS(isa, name) ((void)(isa), reference::name)
#endif
