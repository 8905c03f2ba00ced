#include <cstring>
#include <vector>

#include "check.h"
#include "core/error.h"
#include "cuda/memory.h"

namespace headrace::cuda {
namespace {

// Counts what it hands out and refuses beyond `limit`.
class CountingDevice final : public Device {
 public:
  explicit CountingDevice(int64_t limit = int64_t{1} << 40) : limit_(limit) {}
  ~CountingDevice() override { HR_CHECK_EQ(live, 0); }
  DeviceInfo info() const override { return {"counting", 9, 0, limit_}; }
  int activate() override { return 0; }
  void go_back(int /*before*/) noexcept override {}
  std::unique_ptr<Stream> make_stream() override { return nullptr; }
  void* allocate(int64_t bytes) override {
    if (bytes_ + bytes > limit_) return nullptr;
    ++calls;
    ++live;
    bytes_ += bytes;
    void* memory = std::malloc(static_cast<size_t>(bytes));
    sizes_[memory] = bytes;
    return memory;
  }
  void free(void* memory) noexcept override {
    --live;
    bytes_ -= sizes_[memory];
    std::free(memory);
  }
  void* allocate_pinned(int64_t bytes) override {
    ++pinned_calls;
    ++live;
    return std::malloc(static_cast<size_t>(bytes));
  }
  void free_pinned(void* memory) noexcept override {
    --live;
    std::free(memory);
  }
  bool exact() const override { return false; }

  int calls = 0;
  int pinned_calls = 0;
  int live = 0;

 private:
  int64_t limit_;
  int64_t bytes_ = 0;
  std::map<void*, int64_t> sizes_;
};

HR_TEST(cuda_allocator_rounds_to_eight_sizes_per_power_of_two) {
  HR_CHECK_EQ(CachingAllocator::rounded(1), 512);
  HR_CHECK_EQ(CachingAllocator::rounded(513), 1024);
  HR_CHECK_EQ(CachingAllocator::rounded(1 << 20), 1 << 20);
  HR_CHECK_EQ(CachingAllocator::rounded((1 << 20) + 1), (1 << 20) + (1 << 17));
}

HR_TEST(cuda_allocator_serves_similar_batches_from_what_it_keeps) {
  auto device = std::make_shared<CountingDevice>();
  CachingAllocator allocator(device);
  for (int64_t batch = 0; batch < 10; ++batch) {
    std::byte* a = allocator.allocate(100000 + batch);
    std::byte* b = allocator.allocate(3000 + batch);
    HR_CHECK(a != b);
    allocator.release(a);
    allocator.release(b);
    allocator.trim();
  }
  HR_CHECK_EQ(device->calls, 2);
  HR_CHECK_EQ(allocator.live_bytes(), 0);
}

HR_TEST(cuda_allocator_keeps_no_more_than_was_live_at_a_time) {
  auto device = std::make_shared<CountingDevice>();
  CachingAllocator allocator(device);
  std::byte* large = allocator.allocate(1 << 24);
  allocator.release(large);
  allocator.trim();
  HR_CHECK_EQ(allocator.held_bytes(), 1 << 24);
  allocator.release(allocator.allocate(4096));  // too small for what is kept
  allocator.trim();
  HR_CHECK_EQ(allocator.held_bytes(), 4096);
}

HR_TEST(cuda_allocator_gives_back_what_it_keeps_before_it_fails) {
  auto device = std::make_shared<CountingDevice>(1 << 20);
  CachingAllocator allocator(device);
  allocator.release(allocator.allocate(1 << 19));
  std::byte* all = allocator.allocate(1 << 20);
  HR_CHECK(all != nullptr);
  HR_CHECK_THROWS(allocator.allocate(1024), Error);
  allocator.release(all);
  HR_CHECK_THROWS(allocator.release(all), Error);
}

HR_TEST(cuda_staging_joins_its_pieces) {
  auto device = std::make_shared<CountingDevice>();
  Staging staging(device);
  for (int batch = 0; batch < 5; ++batch) {
    std::byte* a = staging.take(60000);
    std::byte* b = staging.take(60000);
    std::memset(a, 1, 60000);
    std::memset(b, 2, 60000);
    HR_CHECK(a[59999] == std::byte{1});
    HR_CHECK_EQ(reinterpret_cast<uintptr_t>(b) % 64, reinterpret_cast<uintptr_t>(a) % 64);
    staging.reset();
  }
  HR_CHECK_EQ(device->pinned_calls, 3);
}

HR_TEST(cuda_stream_on_the_host_works_as_late_as_it_may) {
  std::shared_ptr<Device> device = open_device(0);
  std::unique_ptr<Stream> stream = device->make_stream();
  int pinned = 1;
  int result = 0;
  DeviceMemory memory(device, sizeof(int));
  stream->copy_to_device(memory.data(), &pinned, sizeof(int));
  stream->copy_to_host(&result, memory.data(), sizeof(int));
  pinned = 2;  // too soon: a test of our code that did so would see the wrong value
  HR_CHECK_EQ(result, 0);
  stream->synchronize();
  HR_CHECK_EQ(result, 2);
}

}  // namespace
}  // namespace headrace::cuda
