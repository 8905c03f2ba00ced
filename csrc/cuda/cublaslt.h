// NVIDIA's cuBLASLt: matrix products by kernels of theirs. It is loaded when a Plan first has a use
// for it, so that neither a build needs it nor a machine without it.
//
// The declarations are those of cublasLt.h that are needed here; versions 12 and 13 agree in them.
#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "cuda/device.h"

namespace headrace::cuda {

namespace cublaslt {

using Status = int;
inline constexpr Status kSuccess = 0;

// An algorithm with its configuration: tiles, stages and the like.
struct Algorithm {
  uint64_t data[8];
};

struct Candidate {
  Algorithm algorithm;
  size_t workspace_bytes;
  Status state;
  float waves;
  int reserved[4];
};

struct Layout {
  uint64_t data[8];
};

// The library's functions, by their names without cublasLt.
struct Functions {
  size_t (*get_version)();
  const char* (*get_status_name)(Status status);
  Status (*create)(void** handle);
  Status (*destroy)(void* handle);
  Status (*layout_init)(Layout* layout, size_t bytes, int type, uint64_t rows, uint64_t cols,
                        int64_t stride);
  Status (*desc_create)(void** desc, int compute_type, int scale_type);
  Status (*desc_destroy)(void* desc);
  Status (*desc_set)(void* desc, int attribute, const void* value, size_t bytes);
  Status (*preference_create)(void** preference);
  Status (*preference_destroy)(void* preference);
  Status (*preference_set)(void* preference, int attribute, const void* value, size_t bytes);
  Status (*get_heuristic)(void* handle, void* desc, const Layout* a, const Layout* b,
                          const Layout* c, const Layout* d, void* preference, int wanted,
                          Candidate* candidates, int* count);
  Status (*algorithm_get)(const Algorithm* algorithm, int attribute, void* value, size_t bytes,
                          size_t* written);
  Status (*matmul)(void* handle, void* desc, const void* alpha, const void* a, const Layout* a_at,
                   const void* b, const Layout* b_at, const void* beta, const void* c,
                   const Layout* c_at, void* d, const Layout* d_at, const Algorithm* algorithm,
                   void* workspace, size_t workspace_bytes, void* stream);
};

}  // namespace cublaslt

// The library with a handle for one device. Safe to use from any number of threads.
class CublasLt {
 public:
  // The first of `libraries`, paths or names for the loader, that can be used. Throws
  // Error(kBackendUnavailable) that says of each why it cannot. The device must be the thread's.
  static std::shared_ptr<CublasLt> open(std::shared_ptr<Device> device,
                                        std::span<const std::string> libraries);
  ~CublasLt();
  CublasLt(const CublasLt&) = delete;
  CublasLt& operator=(const CublasLt&) = delete;

  // Such as "13.1.1".
  std::string version() const;

 private:
  friend class LibraryProduct;
  CublasLt(std::shared_ptr<Device> device, const cublaslt::Functions& functions, void* handle);
  // Throws Error(kExecution) unless it is success.
  void check(cublaslt::Status status, const char* what) const;

  std::shared_ptr<Device> device_;
  cublaslt::Functions functions_;
  void* handle_;
  std::mutex mutex_;  // of the handle: NVIDIA advises against sharing one between threads
};

// What the choice of an algorithm follows.
struct ProductShape {
  int64_t k;
  int64_t cols;
  bool bf16;  // X and W are bfloat16 instead of floats; sums are floats in any case
  bool bias;  // is added by the library

  auto operator<=>(const ProductShape&) const = default;
};

// Y[rows, cols] = X[rows, k] * W[k, cols] (+ bias), all dense and row by row, by one algorithm of
// the library's for any number of rows. X and Y must begin a block of device memory, as W and the
// bias do.
class LibraryProduct {
 public:
  LibraryProduct(std::shared_ptr<CublasLt> library, const ProductShape& shape, const void* weight,
                 const float* bias);

  // The algorithms for that many rows that do not split k and need no workspace, the fastest first
  // by the library's reckoning.
  std::vector<cublaslt::Algorithm> algorithms(int64_t rows) const;
  void use(const cublaslt::Algorithm& algorithm) { algorithm_ = algorithm; }

  // Throws Error(kExecution) where the library refuses; what goes wrong later comes out of the
  // stream's synchronize(). Safe to call from any number of threads.
  void run(Stream& stream, const void* x, float* y, int64_t rows) const;

 private:
  using Object = std::unique_ptr<void, cublaslt::Status (*)(void*)>;

  cublaslt::Layout layout(bool operand, int64_t rows, int64_t cols) const;

  std::shared_ptr<CublasLt> library_;
  ProductShape shape_;
  const void* weight_;
  Object desc_{nullptr, nullptr};
  cublaslt::Algorithm algorithm_{};
};

}  // namespace headrace::cuda
