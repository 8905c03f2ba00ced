// Packed memory: what ops make of their constants, once per Plan.
//
// Ops get it from NodeSpec::pack and say how to fill it. Fresh Plans call them; for a saved Plan
// the same factory is handed the bytes that were filled then, and never looks at the constants.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "core/function_ref.h"

namespace headrace {

// What every kernel may rely on, and what saved Plans keep.
inline constexpr int64_t kPackAlignment = 64;

// Where a Plan's packed blocks lie: one behind the other in huge pages, unless they are few. A run
// reads all weights once, page after page, and where pages are of 4 KiB the misses of the TLB, dear
// within a virtual machine, take a tenth of the time of layers of few pixels.
class PackMemory {
 public:
  // Aligned to kPackAlignment. Goes with the last block of its piece. Throws std::bad_alloc.
  std::shared_ptr<std::byte> take(int64_t bytes);

 private:
  int64_t taken_ = 0;
  std::shared_ptr<std::byte> piece_;
  int64_t used_ = 0;  // of the piece
  int64_t size_ = 0;
};

// Read-only memory aligned to kPackAlignment, shared by its copies.
class Packed {
 public:
  Packed() = default;
  // Fresh memory, of `memory` if there is one. `fill` must write every byte, padding included:
  // saved Plans are compared and hashed, and memory of the heap must not leak into a file.
  Packed(int64_t bytes, FunctionRef<void(std::byte* to)> fill, PackMemory* memory = nullptr);
  // Memory of somebody else, kept alive by `owner`.
  Packed(const std::byte* data, int64_t bytes, const std::shared_ptr<const void>& owner);

  const std::byte* data() const { return data_.get(); }
  int64_t bytes() const { return bytes_; }
  template <class T>
  const T* as() const {
    return reinterpret_cast<const T*>(data_.get());
  }
  template <class T>
  std::span<const T> span() const {
    return {as<T>(), static_cast<size_t>(bytes_) / sizeof(T)};
  }

 private:
  std::shared_ptr<const std::byte> data_;
  int64_t bytes_ = 0;
};

// The packed memory of one op, in the order in which its factory asks for it.
class Packs {
 public:
  // To be filled by the op.
  Packs() = default;
  explicit Packs(PackMemory* memory) : memory_(memory) {}
  // To be handed out again. `where` names the op in errors.
  Packs(std::vector<Packed> saved, std::string where)
      : packs_(std::move(saved)), where_(std::move(where)), saved_(true) {}

  // Throws Error(kInvalidPlan) if the saved Plan has something else in this place.
  Packed pack(int64_t bytes, FunctionRef<void(std::byte* to)> fill);
  // All of it, once the op is made. Throws Error(kInvalidPlan) if the saved Plan has more.
  std::vector<Packed> finish();

 private:
  PackMemory* memory_ = nullptr;
  std::vector<Packed> packs_;
  std::string where_;
  size_t next_ = 0;
  bool saved_ = false;
};

}  // namespace headrace
