#include "core/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "core/error.h"

namespace headrace {
namespace {

struct Descriptor {
  int fd;
  ~Descriptor() {
    if (fd >= 0) close(fd);
  }
};

[[noreturn]] void fail_with_errno(const std::string& path, const char* what) {
  fail(ErrorKind::kInvalidPlan, path, ": cannot be ", what, ": ", std::strerror(errno));
}

}  // namespace

MappedFile::MappedFile(const std::string& path) : path_(path) {
  Descriptor file{open(path.c_str(), O_RDONLY | O_CLOEXEC)};
  if (file.fd < 0) fail_with_errno(path, "opened");
  struct stat status = {};
  if (fstat(file.fd, &status) != 0) fail_with_errno(path, "examined");
  size_ = status.st_size;
  if (size_ == 0) return;  // which mmap refuses
  void* data = mmap(nullptr, static_cast<size_t>(size_), PROT_READ, MAP_SHARED, file.fd, 0);
  if (data == MAP_FAILED) fail_with_errno(path, "mapped");
#ifdef MADV_HUGEPAGE
  // For the reason that fresh weights have for theirs, see ops/pack.h. Where the file system has no
  // huge pages, or the file lies in small ones already, these do.
  madvise(data, static_cast<size_t>(size_), MADV_HUGEPAGE);
#endif
  data_ = static_cast<const std::byte*>(data);
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) munmap(const_cast<std::byte*>(data_), static_cast<size_t>(size_));
}

std::span<const std::byte> MappedFile::bytes(int64_t offset, int64_t length) const {
  if (offset < 0 || length < 0 || offset > size_ || length > size_ - offset) {
    fail(ErrorKind::kInvalidPlan, path_, ": got ", length, " bytes at ", offset,
         ", expected them within the file's ", size_);
  }
  return {data_ + offset, static_cast<size_t>(length)};
}

}  // namespace headrace
