// A whole file in memory, read-only, in the very pages that every process mapping it shares.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace headrace {

// The file must not change or shrink while it is mapped: reading behind its new end kills the
// process (SIGBUS), as with any mapping. Replacing it by a rename is safe.
class MappedFile {
 public:
  // Throws Error(kInvalidPlan) if the file cannot be mapped.
  explicit MappedFile(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const std::string& path() const { return path_; }
  int64_t size() const { return size_; }
  // Throws Error(kInvalidPlan) unless all of it lies in the file.
  std::span<const std::byte> bytes(int64_t offset, int64_t length) const;

 private:
  std::string path_;
  const std::byte* data_ = nullptr;
  int64_t size_ = 0;
};

}  // namespace headrace
