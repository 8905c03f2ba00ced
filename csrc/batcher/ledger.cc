#include "batcher/ledger.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <new>

#include "core/error.h"

namespace headrace {
namespace {

constexpr size_t kFileBytes = LedgerFile::kHeaderBytes + sizeof(Ledger);

}  // namespace

LedgerFile::LedgerFile(int fd) : fd_(fd) {
  void* memory = MAP_FAILED;
  if (ftruncate(fd, kFileBytes) == 0) {
    memory = mmap(nullptr, kFileBytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  }
  if (memory == MAP_FAILED) {
    int error = errno;
    close(fd);
    fail(ErrorKind::kBackendUnavailable,
         "ledger: got a file that cannot be mapped: ", std::strerror(error));
  }
  memory_ = static_cast<std::byte*>(memory);
  ledger_ = new (memory_ + kHeaderBytes) Ledger;
}

LedgerFile::~LedgerFile() {
  munmap(memory_, kFileBytes);
  close(fd_);
}

}  // namespace headrace
