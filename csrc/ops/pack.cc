#include "ops/pack.h"

#include <algorithm>
#include <new>

#include "core/error.h"
#include "core/memory.h"

namespace headrace {
namespace {

// A Plan of less than a huge page has no need of one.
constexpr int64_t kFewBytes = int64_t{2} << 20;
// Of address space; what no block touches takes no memory.
constexpr int64_t kPieceBytes = int64_t{32} << 20;

std::shared_ptr<std::byte> own_memory(int64_t bytes) {
  constexpr std::align_val_t kAlignment{kPackAlignment};
  auto* data = static_cast<std::byte*>(::operator new[](static_cast<size_t>(bytes), kAlignment));
  return {data, [](std::byte* p) { ::operator delete[](p, kAlignment); }};
}

}  // namespace

std::shared_ptr<std::byte> PackMemory::take(int64_t bytes) {
  int64_t size = (bytes + kPackAlignment - 1) / kPackAlignment * kPackAlignment;
  taken_ += size;
  if (taken_ <= kFewBytes) return own_memory(bytes);
  if (size_ - used_ < size) {
    size_ = std::max(size, kPieceBytes);
    used_ = 0;
    piece_ = {allocate_memory(size_), [length = size_](std::byte* p) { free_memory(p, length); }};
  }
  std::byte* block = piece_.get() + used_;
  used_ += size;
  return {piece_, block};
}

Packed::Packed(int64_t bytes, FunctionRef<void(std::byte* to)> fill, PackMemory* memory)
    : bytes_(bytes) {
  std::shared_ptr<std::byte> fresh = memory ? memory->take(bytes) : own_memory(bytes);
  fill(fresh.get());
  data_ = std::move(fresh);
}

Packed::Packed(const std::byte* data, int64_t bytes, const std::shared_ptr<const void>& owner)
    : data_(owner, data), bytes_(bytes) {}

Packed Packs::pack(int64_t bytes, FunctionRef<void(std::byte* to)> fill) {
  if (!saved_) return packs_.emplace_back(bytes, fill, memory_);
  if (next_ == packs_.size()) {
    fail(ErrorKind::kInvalidPlan, where_, ": got ", packs_.size(), " packed blocks, expected more");
  }
  const Packed& saved = packs_[next_++];
  if (saved.bytes() != bytes) {
    fail(ErrorKind::kInvalidPlan, where_, ": got ", saved.bytes(), " bytes in packed block ",
         next_ - 1, ", expected ", bytes);
  }
  return saved;
}

std::vector<Packed> Packs::finish() {
  if (saved_ && next_ != packs_.size()) {
    fail(ErrorKind::kInvalidPlan, where_, ": got ", packs_.size(), " packed blocks, expected ",
         next_);
  }
  return std::move(packs_);
}

}  // namespace headrace
