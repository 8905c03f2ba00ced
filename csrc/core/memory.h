// Memory in large pieces: for arenas, and for results that outlive the run they came from.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

namespace headrace {

// Uninitialised memory, 64-byte aligned. Large pieces lie in huge pages where the system has them:
// a fresh 4 KiB page costs a fault of about a microsecond, more than filling it does.
// Throws std::bad_alloc.
std::byte* allocate_memory(int64_t bytes);
// `bytes` as it was allocated.
void free_memory(std::byte* memory, int64_t bytes);

// One piece of memory that somebody owns. Destroyed pieces are kept for the next caller, in this
// process and up to a bound, so that a stream of similar results touches no fresh page.
// Safe to use and destroy on any thread.
class Block {
 public:
  Block() = default;
  // At least that many bytes, 64-byte aligned. Throws std::bad_alloc.
  explicit Block(int64_t bytes);
  ~Block();
  Block(Block&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), capacity_(std::exchange(other.capacity_, 0)) {}
  Block& operator=(Block&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(capacity_, other.capacity_);
    return *this;
  }

  std::byte* data() const { return data_; }
  explicit operator bool() const { return data_ != nullptr; }

  // What the process keeps of destroyed blocks.
  static int64_t kept_bytes();
  static constexpr int64_t kKeptBytesMax = int64_t{128} << 20;

 private:
  std::byte* data_ = nullptr;
  int64_t capacity_ = 0;
};

}  // namespace headrace
