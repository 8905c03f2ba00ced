// A device that is not there: memory is the heap's, streams are queues that run when they are
// waited for. That is as late as a real one may be, so results that are read too early, or staging
// memory that is used again too soon, show.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "cuda/cuda_on_host.h"
#include "cuda/device.h"

namespace headrace::cuda {
namespace {

class HostStream final : public Stream {
 public:
  void copy_to_device(void* to, const void* pinned, int64_t bytes) override {
    copy_on_device(to, pinned, bytes);
  }
  void copy_to_host(void* pinned, const void* from, int64_t bytes) override {
    copy_on_device(pinned, from, bytes);
  }
  void copy_on_device(void* to, const void* from, int64_t bytes) override {
    if (bytes == 0) return;
    queue_.push([=] { std::memcpy(to, from, static_cast<size_t>(bytes)); });
  }
  void synchronize() override { queue_.run(); }
  void* native() override { return &queue_; }

 private:
  on_host::Queue queue_;
};

// Filled with 0xff, so that what nobody wrote is NaN or out of range.
void* allocate_filled(int64_t bytes) {
  size_t size = static_cast<size_t>(std::max<int64_t>(bytes, 1));
  void* memory = nullptr;
  if (posix_memalign(&memory, 256, size) != 0) return nullptr;
  return std::memset(memory, 0xff, size);
}

class HostDevice final : public Device {
 public:
  DeviceInfo info() const override { return {"emulated on the host", 0, 0, int64_t{1} << 30}; }
  int activate() override { return std::exchange(on_host::current_device, 0); }
  void go_back(int before) noexcept override { on_host::current_device = before; }
  std::unique_ptr<Stream> make_stream() override { return std::make_unique<HostStream>(); }
  void* allocate(int64_t bytes) override {
    if (on_host::current_device != 0) fail(ErrorKind::kExecution, "allocates on another device");
    return allocate_filled(bytes);
  }
  void free(void* memory) noexcept override { std::free(memory); }
  void* allocate_pinned(int64_t bytes) override { return allocate_filled(bytes); }
  void free_pinned(void* memory) noexcept override { std::free(memory); }
  bool exact() const override { return true; }
};

}  // namespace

int count_devices() {
  return 1;
}

std::shared_ptr<Device> open_device(int index) {
  if (index != 0) {
    fail(ErrorKind::kBackendUnavailable, "got device ", index, ", expected 0: there is one");
  }
  return std::make_shared<HostDevice>();
}

}  // namespace headrace::cuda
