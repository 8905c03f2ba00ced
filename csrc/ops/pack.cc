#include "ops/pack.h"

#include <new>

#include "core/error.h"

namespace headrace {

Packed::Packed(int64_t bytes, FunctionRef<void(std::byte* to)> fill) : bytes_(bytes) {
  constexpr std::align_val_t kAlignment{kPackAlignment};
  auto* data = static_cast<std::byte*>(::operator new[](static_cast<size_t>(bytes), kAlignment));
  data_ = {data,
           [](const std::byte* p) { ::operator delete[](const_cast<std::byte*>(p), kAlignment); }};
  fill(data);
}

Packed::Packed(const std::byte* data, int64_t bytes, const std::shared_ptr<const void>& owner)
    : data_(owner, data), bytes_(bytes) {}

Packed Packs::pack(int64_t bytes, FunctionRef<void(std::byte* to)> fill) {
  if (!saved_) return packs_.emplace_back(bytes, fill);
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
