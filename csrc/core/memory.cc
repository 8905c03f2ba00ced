#include "core/memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <mutex>
#include <new>

namespace headrace {
namespace {

constexpr std::align_val_t kAlignment{64};
constexpr int64_t kHugePage = int64_t{2} << 20;
// From here on the last huge page, which may be nearly empty, is a small share.
constexpr int64_t kHugeFrom = 2 * kHugePage;

int64_t round_up(int64_t bytes, int64_t step) {
  return (bytes + step - 1) / step * step;
}

// Eight sizes per octave: a request of a slightly different size finds the same block, and at most
// an eighth of one is wasted.
int64_t size_class(int64_t bytes) {
  bytes = std::max<int64_t>(bytes, 4096);
  auto octave = static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(bytes)));
  return round_up(bytes, octave / 8);
}

// The destroyed blocks, oldest first. Few: a search through them costs less than a fault.
class Kept {
 public:
  std::byte* take(int64_t capacity) {
    std::lock_guard lock(mutex_);
    for (int i = count_ - 1; i >= 0; --i) {
      if (pieces_[i].bytes == capacity) return remove(i);
    }
    return nullptr;
  }

  void give(std::byte* data, int64_t capacity) {
    if (capacity > Block::kKeptBytesMax) return free_memory(data, capacity);
    std::lock_guard lock(mutex_);
    while (count_ == kMax || bytes_ + capacity > Block::kKeptBytesMax) {
      int64_t bytes = pieces_[0].bytes;
      free_memory(remove(0), bytes);
    }
    pieces_[count_++] = {data, capacity};
    bytes_ += capacity;
  }

  int64_t bytes() {
    std::lock_guard lock(mutex_);
    return bytes_;
  }

 private:
  static constexpr int kMax = 32;
  struct Piece {
    std::byte* data;
    int64_t bytes;
  };

  std::byte* remove(int i) {
    std::byte* data = pieces_[i].data;
    bytes_ -= pieces_[i].bytes;
    std::copy(pieces_ + i + 1, pieces_ + count_, pieces_ + i);
    --count_;
    return data;
  }

  std::mutex mutex_;
  Piece pieces_[kMax];
  int count_ = 0;
  int64_t bytes_ = 0;
};

// Leaked on purpose: arrays that look into blocks may be destroyed after everything else.
Kept& kept() {
  static auto* kept = new Kept;
  return *kept;
}

}  // namespace

std::byte* allocate_memory(int64_t bytes) {
  if (bytes < kHugeFrom) {
    return static_cast<std::byte*>(::operator new(static_cast<size_t>(bytes), kAlignment));
  }
  // Mapped with room to spare, whose ends are given back, since huge pages are aligned.
  auto length = static_cast<size_t>(round_up(bytes, kHugePage));
  void* mapped =
      mmap(nullptr, length + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) throw std::bad_alloc();
  auto* start = static_cast<std::byte*>(mapped);
  auto address = reinterpret_cast<uintptr_t>(start);
  size_t before = (kHugePage - address % kHugePage) % kHugePage;
  if (before > 0) munmap(start, before);
  munmap(start + before + length, kHugePage - before);
  start += before;
#ifdef MADV_HUGEPAGE
  madvise(start, length, MADV_HUGEPAGE);  // where refused, small pages do
#endif
  return start;
}

void free_memory(std::byte* memory, int64_t bytes) {
  if (bytes < kHugeFrom) return ::operator delete(memory, kAlignment);
  munmap(memory, static_cast<size_t>(round_up(bytes, kHugePage)));
}

Block::Block(int64_t bytes) : capacity_(size_class(bytes)) {
  data_ = kept().take(capacity_);
  if (data_ == nullptr) data_ = allocate_memory(capacity_);
}

Block::~Block() {
  if (data_ != nullptr) kept().give(data_, capacity_);
}

int64_t Block::kept_bytes() {
  return kept().bytes();
}

}  // namespace headrace
