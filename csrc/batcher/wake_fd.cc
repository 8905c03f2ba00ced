#include "batcher/wake_fd.h"

#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>

#include "core/error.h"

#if defined(__linux__)
#include <sys/eventfd.h>
#endif

namespace headrace {

WakeFd::WakeFd() {
#if defined(__linux__)
  read_fd_ = write_fd_ = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  bool ok = read_fd_ >= 0;
#else
  int ends[2] = {-1, -1};
  bool ok = pipe(ends) == 0;
  read_fd_ = ends[0];
  write_fd_ = ends[1];
  for (int end : ends) {
    if (ok) fcntl(end, F_SETFL, O_NONBLOCK);
    if (ok) fcntl(end, F_SETFD, FD_CLOEXEC);
  }
#endif
  if (!ok) {
    fail(ErrorKind::kBackendUnavailable,
         "got no file descriptor to wake an event loop with: ", std::strerror(errno));
  }
}

WakeFd::~WakeFd() {
  close(read_fd_);
  if (write_fd_ != read_fd_) close(write_fd_);
}

void WakeFd::signal() noexcept {
  // A write that would block means that it is readable already.
  uint64_t one = 1;
  [[maybe_unused]] auto written = write(write_fd_, &one, sizeof one);
}

void WakeFd::clear() noexcept {
  uint64_t count[16];
  while (read(read_fd_, count, read_fd_ == write_fd_ ? sizeof count[0] : sizeof count) > 0) {
    if (read_fd_ == write_fd_) return;  // one read empties an eventfd
  }
}

void WakeFd::wait() noexcept {
  pollfd watched{read_fd_, POLLIN, 0};
  while (poll(&watched, 1, -1) < 0 && errno == EINTR) {
  }
}

}  // namespace headrace
