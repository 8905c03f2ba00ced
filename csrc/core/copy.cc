#include "core/copy.h"

#include <cstring>

#if defined(__x86_64__)
#include <emmintrin.h>
#endif

namespace headrace {

void stream_bytes(void* to, const void* from, int64_t bytes) {
#if defined(__x86_64__)
  auto* out = static_cast<char*>(to);
  const auto* in = static_cast<const char*>(from);
  auto misplaced = static_cast<int64_t>(reinterpret_cast<uintptr_t>(out) % 64);
  int64_t head = misplaced == 0 ? 0 : 64 - misplaced;
  if (head > bytes) head = bytes;
  std::memcpy(out, in, static_cast<size_t>(head));
  int64_t i = head;
  for (; i + 64 <= bytes; i += 64) {
    __m128i line[4];
    std::memcpy(line, in + i, 64);
    for (int j = 0; j < 4; ++j) _mm_stream_si128(reinterpret_cast<__m128i*>(out + i) + j, line[j]);
  }
  std::memcpy(out + i, in + i, static_cast<size_t>(bytes - i));
#else
  std::memcpy(to, from, static_cast<size_t>(bytes));
#endif
}

bool streams_well(const void* to, int64_t step, int64_t bytes) {
  constexpr int64_t kLine = 64;
  constexpr int64_t kLong = 4096;  // so long that the two shared lines at its ends hardly count
  bool whole = reinterpret_cast<uintptr_t>(to) % kLine == 0 && step % kLine == 0;
  return (whole && bytes % kLine == 0) || bytes >= kLong;
}

void end_stream_bytes() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

}  // namespace headrace
