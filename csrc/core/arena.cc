#include "core/arena.h"

#include <algorithm>
#include <cassert>

#include "core/memory.h"

namespace headrace {
namespace {

// Small growth steps waste little; the steady state is one chunk anyway.
constexpr int64_t kMinChunkBytes = 64 * 1024;

int64_t round_up(int64_t bytes, int64_t step) {
  return (bytes + step - 1) / step * step;
}

}  // namespace

Arena::~Arena() {
  for (const Chunk& chunk : chunks_) free_memory(chunk.base, chunk.bytes);
}

void Arena::add_chunk(int64_t bytes) {
  std::byte* base = allocate_memory(bytes);
  chunks_.push_back({base, bytes});
  Block block{base, bytes, true, true};
  auto at = std::ranges::upper_bound(blocks_, base, std::less<>{}, &Block::begin);
  blocks_.insert(at, block);
  capacity_ += bytes;
}

std::byte* Arena::allocate(int64_t bytes) {
  bytes = round_up(std::max<int64_t>(bytes, 1), kAlignment);
  auto best = blocks_.end();
  for (auto it = blocks_.begin(); it != blocks_.end(); ++it) {
    if (it->free && it->bytes >= bytes && (best == blocks_.end() || it->bytes < best->bytes)) {
      best = it;
    }
  }
  if (best == blocks_.end()) {
    add_chunk(std::max(bytes, kMinChunkBytes));
    return allocate(bytes);
  }
  std::byte* begin = best->begin;
  if (best->bytes > bytes) {
    Block rest{begin + bytes, best->bytes - bytes, true, false};
    best->bytes = bytes;
    best->free = false;
    blocks_.insert(best + 1, rest);
  } else {
    best->free = false;
  }
  live_ += bytes;
  peak_ = std::max(peak_, live_);
  return begin;
}

void Arena::release(std::byte* begin) {
  auto it = std::ranges::lower_bound(blocks_, begin, std::less<>{}, &Block::begin);
  assert(it != blocks_.end() && it->begin == begin && !it->free);
  live_ -= it->bytes;
  it->free = true;
  if (auto next = it + 1; next != blocks_.end() && next->free && !next->first_of_chunk) {
    it->bytes += next->bytes;
    blocks_.erase(next);
  }
  if (it != blocks_.begin() && !it->first_of_chunk && (it - 1)->free) {
    (it - 1)->bytes += it->bytes;
    blocks_.erase(it);
  }
}

void Arena::trim() {
  assert(live_ == 0);
  if (chunks_.size() <= 1) return;
  // One chunk a little above the peak is usually enough. Where it was not (best fit fragments), the
  // next try is as large as all chunks were together, so that the size settles.
  int64_t bytes = peak_ + peak_ / 8;
  if (trimmed_) bytes = std::max(bytes, capacity_);
  trimmed_ = true;
  for (const Chunk& chunk : chunks_) free_memory(chunk.base, chunk.bytes);
  chunks_.clear();
  blocks_.clear();
  capacity_ = 0;
  add_chunk(round_up(bytes, kAlignment));
}

}  // namespace headrace
