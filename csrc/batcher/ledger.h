// The Batcher's books.
#pragma once

#include <cstddef>
#include <cstdint>

namespace headrace {

// Every submitted Job is either refused or accepted, and every accepted one ends once:
// accepted = ok + failed + expired + cancelled + waiting + running, in every snapshot.
struct Ledger {
  int64_t accepted = 0;
  int64_t refused = 0;
  int64_t ok = 0;
  int64_t failed = 0;
  int64_t expired = 0;
  int64_t cancelled = 0;
  int64_t waiting = 0;
  int64_t running = 0;
};

// A Ledger in a file that is mapped into memory, so that it outlives its process however that ends:
// what a killed process had accepted and not answered stands in `waiting` and `running`. Whoever
// makes the file writes kHeaderBytes about it first; python/headrace/observe/ledger.py is who.
class LedgerFile {
 public:
  static constexpr size_t kHeaderBytes = 256;

  // Takes over the descriptor of a file of at least kHeaderBytes, open for reading and writing, and
  // keeps it open as long as it lives: a lock on the file tells that the process is there.
  explicit LedgerFile(int fd);
  ~LedgerFile();
  LedgerFile(const LedgerFile&) = delete;
  LedgerFile& operator=(const LedgerFile&) = delete;

  Ledger& ledger() const { return *ledger_; }

 private:
  const int fd_;
  std::byte* memory_ = nullptr;
  Ledger* ledger_ = nullptr;
};

}  // namespace headrace
