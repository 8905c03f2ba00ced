#include "cuda/memory.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "core/error.h"

namespace headrace::cuda {

DeviceMemory::DeviceMemory(std::shared_ptr<Device> device, int64_t bytes)
    : device_(std::move(device)), bytes_(bytes) {
  if (bytes == 0) return;
  data_ = device_->allocate(bytes);
  if (data_ == nullptr) {
    fail(ErrorKind::kExecution, "device cuda: out of memory: got a request for ", bytes,
         " bytes of weights; ", device_->info().name, " has ", device_->info().memory_bytes,
         " bytes in all");
  }
}

DeviceMemory::DeviceMemory(std::shared_ptr<Device> device, const void* from, int64_t bytes)
    : DeviceMemory(std::move(device), bytes) {
  if (bytes == 0) return;
  Staging staging(device_);
  std::byte* pinned = staging.take(bytes);
  std::memcpy(pinned, from, static_cast<size_t>(bytes));
  std::unique_ptr<Stream> stream = device_->make_stream();
  stream->copy_to_device(data_, pinned, bytes);
  stream->synchronize();
}

void DeviceMemory::reset() {
  if (data_ != nullptr) device_->free(data_);
  data_ = nullptr;
}

CachingAllocator::~CachingAllocator() {
  give_back_kept(0);
  for (auto [block, bytes] : sizes_) device_->free(block);
}

int64_t CachingAllocator::rounded(int64_t bytes) {
  constexpr int64_t kLeast = 512;
  if (bytes <= kLeast) return kLeast;
  int64_t step = std::max<int64_t>(
      kLeast, static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(bytes))) / 16);
  return (bytes + step - 1) / step * step;
}

std::byte* CachingAllocator::allocate(int64_t bytes) {
  int64_t size = device_->exact() ? bytes : rounded(bytes);
  std::byte* block = nullptr;
  // A block a quarter too large is better kept for who needs it.
  auto kept = free_.lower_bound(size);
  if (!device_->exact() && kept != free_.end() && kept->first <= size + size / 4) {
    size = kept->first;
    block = kept->second;
    free_.erase(kept);
    kept_ -= size;
  } else {
    block = static_cast<std::byte*>(device_->allocate(size));
    if (block == nullptr) {
      give_back_kept(0);
      block = static_cast<std::byte*>(device_->allocate(size));
    }
    if (block == nullptr) {
      fail(ErrorKind::kExecution, "device cuda: out of memory: got a request for ", size,
           " bytes with ", live_, " bytes in use by this Batch; send smaller Batches");
    }
  }
  sizes_.emplace(block, size);
  live_ += size;
  peak_ = std::max(peak_, live_);
  return block;
}

void CachingAllocator::release(std::byte* block) {
  auto it = sizes_.find(block);
  if (it == sizes_.end()) {
    fail(ErrorKind::kExecution, "a block of device memory is released twice; this is a bug");
  }
  free_.emplace(it->second, block);
  live_ -= it->second;
  kept_ += it->second;
  sizes_.erase(it);
}

void CachingAllocator::trim() {
  give_back_kept(device_->exact() ? 0 : peak_ - live_);
  peak_ = live_;
}

void CachingAllocator::give_back_kept(int64_t keep_bytes) {
  while (kept_ > keep_bytes && !free_.empty()) {
    auto largest = std::prev(free_.end());
    device_->free(largest->second);
    kept_ -= largest->first;
    free_.erase(largest);
  }
}

Staging::~Staging() {
  for (const Chunk& chunk : chunks_) device_->free_pinned(chunk.memory);
}

void Staging::add_chunk(int64_t bytes) {
  auto* memory = static_cast<std::byte*>(device_->allocate_pinned(bytes));
  if (memory == nullptr) {
    fail(ErrorKind::kExecution, "out of memory: got a request for ", bytes, " pinned bytes");
  }
  chunks_.push_back({memory, bytes});
  used_ = 0;
}

std::byte* Staging::take(int64_t bytes) {
  constexpr int64_t kAlignment = 64;
  constexpr int64_t kLeast = 64 * 1024;
  int64_t size = (std::max<int64_t>(bytes, 1) + kAlignment - 1) / kAlignment * kAlignment;
  if (chunks_.empty() || used_ + size > chunks_.back().bytes) add_chunk(std::max(size, kLeast));
  std::byte* taken = chunks_.back().memory + used_;
  used_ += size;
  return taken;
}

void Staging::reset() {
  used_ = 0;
  if (chunks_.size() < 2) return;
  int64_t all = capacity_bytes();
  for (const Chunk& chunk : chunks_) device_->free_pinned(chunk.memory);
  chunks_.clear();
  add_chunk(all);
}

int64_t Staging::capacity_bytes() const {
  int64_t all = 0;
  for (const Chunk& chunk : chunks_) all += chunk.bytes;
  return all;
}

}  // namespace headrace::cuda
