// A device through the CUDA runtime, which is linked statically and looks for the driver when it is
// first called: without one open_device() throws, and nothing else happens.
#include <cuda_runtime.h>

#include "cuda/device.h"
#include "cuda/error.h"

namespace headrace::cuda {
namespace {

class CudaStream final : public Stream {
 public:
  CudaStream() {
    check_cuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreate");
  }
  ~CudaStream() override { cudaStreamDestroy(stream_); }
  CudaStream(const CudaStream&) = delete;
  CudaStream& operator=(const CudaStream&) = delete;

  void copy_to_device(void* to, const void* pinned, int64_t bytes) override {
    copy(to, pinned, bytes, cudaMemcpyHostToDevice);
  }
  void copy_to_host(void* pinned, const void* from, int64_t bytes) override {
    copy(pinned, from, bytes, cudaMemcpyDeviceToHost);
  }
  void copy_on_device(void* to, const void* from, int64_t bytes) override {
    copy(to, from, bytes, cudaMemcpyDeviceToDevice);
  }
  void synchronize() override {
    check_cuda(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
  }
  void* native() override { return stream_; }

 private:
  void copy(void* to, const void* from, int64_t bytes, cudaMemcpyKind kind) {
    if (bytes == 0) return;
    check_cuda(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), kind, stream_),
               "cudaMemcpyAsync");
  }

  cudaStream_t stream_ = nullptr;
};

class CudaDevice final : public Device {
 public:
  explicit CudaDevice(int index) : index_(index) {
    check_cuda(cudaGetDeviceProperties(&properties_, index), "cudaGetDeviceProperties");
  }

  DeviceInfo info() const override {
    return {properties_.name, properties_.major, properties_.minor,
            static_cast<int64_t>(properties_.totalGlobalMem)};
  }
  int activate() override {
    int before = index_;
    check_cuda(cudaGetDevice(&before), "cudaGetDevice");
    if (before != index_) check_cuda(cudaSetDevice(index_), "cudaSetDevice");
    return before;
  }
  void go_back(int before) noexcept override {
    if (before != index_) cudaSetDevice(before);
  }
  std::unique_ptr<Stream> make_stream() override { return std::make_unique<CudaStream>(); }
  void* allocate(int64_t bytes) override {
    void* memory = nullptr;
    cudaError_t status = cudaMalloc(&memory, static_cast<size_t>(bytes));
    if (status == cudaErrorMemoryAllocation) {
      cudaGetLastError();  // it would come up again at the next launch
      return nullptr;
    }
    check_cuda(status, "cudaMalloc");
    return memory;
  }
  void free(void* memory) noexcept override { cudaFree(memory); }
  void* allocate_pinned(int64_t bytes) override {
    void* memory = nullptr;
    check_cuda(cudaMallocHost(&memory, static_cast<size_t>(bytes)), "cudaMallocHost");
    return memory;
  }
  void free_pinned(void* memory) noexcept override { cudaFreeHost(memory); }
  bool exact() const override { return false; }

 private:
  int index_;
  cudaDeviceProp properties_{};
};

}  // namespace

int count_devices() {
  int count = 0;
  cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess || count == 0) {
    const char* reason = status == cudaSuccess ? "no GPU" : cudaGetErrorString(status);
    fail(ErrorKind::kBackendUnavailable, "device cuda: this machine has no usable GPU (", reason,
         "): check that nvidia-smi lists one and that its driver serves CUDA ",
         CUDART_VERSION / 1000, ".", CUDART_VERSION % 1000 / 10);
  }
  return count;
}

std::shared_ptr<Device> open_device(int index) {
  int count = count_devices();
  if (index < 0 || index >= count) {
    fail(ErrorKind::kBackendUnavailable, "device cuda: got index ", index, ", expected 0 .. ",
         count - 1);
  }
  auto device = std::make_shared<CudaDevice>(index);
  DeviceInfo info = device->info();
  if (info.major < 8) {
    fail(ErrorKind::kBackendUnavailable, "device cuda: got ", info.name, " of compute capability ",
         info.major, ".", info.minor, ", expected 8.0 or more");
  }
  return device;
}

}  // namespace headrace::cuda
