// A file descriptor that an event loop watches and any thread can make readable.
#pragma once

namespace headrace {

// An eventfd, or a pipe where there is none. Never blocks.
class WakeFd {
 public:
  // Throws Error(kBackendUnavailable) when the process has no descriptors left.
  WakeFd();
  ~WakeFd();
  WakeFd(const WakeFd&) = delete;
  WakeFd& operator=(const WakeFd&) = delete;

  // The end to watch for reading.
  int fd() const { return read_fd_; }
  void signal() noexcept;
  // Makes it unreadable until the next signal.
  void clear() noexcept;
  // Blocks until it is readable.
  void wait() noexcept;

 private:
  int read_fd_ = -1;
  int write_fd_ = -1;
};

}  // namespace headrace
