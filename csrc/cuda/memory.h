// Memory of a device: weights that stay, blocks for the values of running Batches, and pinned
// memory for what travels.
#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

#include "cuda/device.h"

namespace headrace::cuda {

// Device memory that somebody owns.
class DeviceMemory {
 public:
  DeviceMemory() = default;
  // Throws Error(kExecution) where the device has not that much left.
  DeviceMemory(std::shared_ptr<Device> device, int64_t bytes);
  // Holds a copy of host memory, and waits for it.
  DeviceMemory(std::shared_ptr<Device> device, const void* from, int64_t bytes);
  ~DeviceMemory() { reset(); }
  DeviceMemory(DeviceMemory&& other) noexcept { swap(other); }
  DeviceMemory& operator=(DeviceMemory&& other) noexcept {
    swap(other);
    return *this;
  }

  template <class T>
  const T* as() const {
    return static_cast<const T*>(data_);
  }
  void* data() const { return data_; }
  int64_t bytes() const { return bytes_; }

 private:
  void swap(DeviceMemory& other) noexcept {
    std::swap(device_, other.device_);
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
  }
  void reset();

  std::shared_ptr<Device> device_;
  void* data_ = nullptr;
  int64_t bytes_ = 0;
};

// Blocks of device memory for the work of one stream. A released block is handed out again at once:
// what was queued before on that stream comes before whatever uses it next. Taking memory from the
// device stops everything on it, so that blocks are kept; sizes are rounded up, so that similar
// Batches find them. One thread at a time.
class CachingAllocator {
 public:
  explicit CachingAllocator(std::shared_ptr<Device> device) : device_(std::move(device)) {}
  ~CachingAllocator();
  CachingAllocator(const CachingAllocator&) = delete;
  CachingAllocator& operator=(const CachingAllocator&) = delete;

  // 256-byte aligned and never null. Where the device has nothing left, gives back what is kept and
  // tries again. Throws Error(kExecution).
  std::byte* allocate(int64_t bytes);
  void release(std::byte* block);
  // Call when the stream is idle: gives back kept blocks beyond the most that were live at a time.
  void trim();

  int64_t live_bytes() const { return live_; }
  int64_t held_bytes() const { return live_ + kept_; }

  // What `bytes` are rounded up to: eight sizes per power of two, at least 512.
  static int64_t rounded(int64_t bytes);

 private:
  void give_back_kept(int64_t keep_bytes);

  std::shared_ptr<Device> device_;
  std::multimap<int64_t, std::byte*> free_;        // by size
  std::unordered_map<std::byte*, int64_t> sizes_;  // of live blocks
  int64_t live_ = 0;
  int64_t kept_ = 0;
  int64_t peak_ = 0;  // of live bytes, since the last trim
};

// Pinned host memory for copies to and from the device, handed out front to back. One thread at a
// time.
class Staging {
 public:
  explicit Staging(std::shared_ptr<Device> device) : device_(std::move(device)) {}
  ~Staging();
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;

  // 64-byte aligned, valid until reset().
  std::byte* take(int64_t bytes);
  // Call when the stream is idle and nobody reads from it any more. Joins what was taken in pieces,
  // so that a stream of similar Batches pins nothing new.
  void reset();
  int64_t capacity_bytes() const;

 private:
  struct Chunk {
    std::byte* memory;
    int64_t bytes;
  };
  void add_chunk(int64_t bytes);

  std::shared_ptr<Device> device_;
  std::vector<Chunk> chunks_;
  int64_t used_ = 0;  // of the last chunk
};

}  // namespace headrace::cuda
