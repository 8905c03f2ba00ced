// Memory for the values of a running Batch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace headrace {

// Blocks handed out of one growing region, best fit, freed in any order. Not thread-safe: only the
// thread that drives the executor allocates.
//
// The first Batch of a new size may grow the arena chunk by chunk; once everything is free,
// `trim()` joins the chunks into one as large as the peak, so that a steady stream of similar
// Batches never reaches the heap.
class Arena {
 public:
  static constexpr int64_t kAlignment = 64;

  Arena() = default;
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  // 64-byte aligned, never null, valid until release. Throws std::bad_alloc.
  std::byte* allocate(int64_t bytes);
  void release(std::byte* block);

  // Call when no block is live. Joins the chunks.
  void trim();

  int64_t capacity_bytes() const { return capacity_; }
  int64_t peak_bytes() const { return peak_; }

 private:
  struct Chunk {
    std::byte* base;
    int64_t bytes;
  };
  // Blocks of all chunks, kept sorted by address so that neighbours can merge.
  struct Block {
    std::byte* begin;
    int64_t bytes;
    bool free;
    bool first_of_chunk;  // never merges with the block before it
  };
  void add_chunk(int64_t bytes);

  std::vector<Chunk> chunks_;
  std::vector<Block> blocks_;
  int64_t capacity_ = 0;
  int64_t live_ = 0;
  int64_t peak_ = 0;
  bool trimmed_ = false;
};

}  // namespace headrace
