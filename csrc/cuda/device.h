// The seam to a CUDA device: what allocator, staging and executor need of the runtime, and no more.
// device_cuda.cu does it with the CUDA runtime, device_on_host.cc without a GPU, for tests.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

namespace headrace::cuda {

// One in-order queue of copies and kernels. Its calls return before the work is done, so that host
// memory given to it must be pinned and stay as it is until synchronize(). One thread at a time.
class Stream {
 public:
  virtual ~Stream() = default;
  virtual void copy_to_device(void* to, const void* pinned, int64_t bytes) = 0;
  virtual void copy_to_host(void* pinned, const void* from, int64_t bytes) = 0;
  virtual void copy_on_device(void* to, const void* from, int64_t bytes) = 0;
  // Waits until all of it is done. Throws Error(kExecution) for whatever went wrong on the way.
  virtual void synchronize() = 0;
  // The cudaStream_t, or the on_host::Queue.
  virtual void* native() = 0;
};

struct DeviceInfo {
  std::string name;
  int major = 0;  // compute capability
  int minor = 0;
  int64_t memory_bytes = 0;
};

class Device {
 public:
  virtual ~Device() = default;
  virtual DeviceInfo info() const = 0;
  // Makes this the device of the calling thread, and says which one was: before anything else here.
  // OnDevice calls both.
  virtual int activate() = 0;
  virtual void go_back(int before) noexcept = 0;
  virtual std::unique_ptr<Stream> make_stream() = 0;
  // 256-byte aligned, or null where there is not that much left.
  virtual void* allocate(int64_t bytes) = 0;
  // Waits for whatever may still use it.
  virtual void free(void* memory) noexcept = 0;
  virtual void* allocate_pinned(int64_t bytes) = 0;
  virtual void free_pinned(void* memory) noexcept = 0;
  // True where every block of memory should be its own and of the size that was asked for, so that
  // sanitizers see its end.
  virtual bool exact() const = 0;
};

// The calling thread works on this device while it lives, and then on the one it worked on before:
// threads are lent by callers, for whom other libraries may use another GPU.
class OnDevice {
 public:
  explicit OnDevice(Device& device) : device_(device), before_(device.activate()) {}
  ~OnDevice() { device_.go_back(before_); }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  Device& device_;
  int before_;
};

// Device `index` of this machine. Throws Error(kBackendUnavailable) that says what is missing.
std::shared_ptr<Device> open_device(int index);

// How many devices this machine has, whether or not each can be opened. Throws likewise where it
// has none.
int count_devices();

}  // namespace headrace::cuda
