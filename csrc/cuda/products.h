// Who computes a Plan's products with constant matrices: cuBLASLt, where it is there and keeps a
// promise of ours, or the kernels of the op's room.
//
// The promise is that a row's bits do not depend on the rows beside it. By itself the library takes
// another algorithm for another number of rows. So one is chosen per shape of a weight when the
// Plan is made, and used for every number of rows; and it is tried out first: rows alone and in
// parts must give the bits that they have among all, and the sums that they have in double.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cuda/cublaslt.h"

namespace headrace::cuda {

struct ProductSettings {
  enum class Use { kOff, kAuto, kOn };
  Use use = Use::kOff;
  // Where to look for cuBLASLt, in order: paths, or names for the loader.
  std::vector<std::string> libraries;
};

class Products {
 public:
  // Throws Error(kBackendUnavailable) where it is to be used and cannot.
  Products(std::shared_ptr<Device> device, ProductSettings settings);

  // The library's product for a weight on the device; null where the room's own kernels are to do
  // it. The device must be the thread's.
  std::unique_ptr<LibraryProduct> make(const ProductShape& shape, const void* weight,
                                       const float* bias);

  // What was made so far. The version is empty where no product was the library's.
  const std::string& version() const { return version_; }
  size_t by_library() const { return by_library_; }
  size_t by_own_kernels() const { return by_own_kernels_; }
  // Why not all are the library's, a line per reason.
  std::vector<std::string> reasons() const;

 private:
  struct Choice {
    std::optional<cublaslt::Algorithm> algorithm;
    std::string reason;  // why there is none
  };

  void open();
  const Choice& choice_for(const ProductShape& shape);

  std::shared_ptr<Device> device_;
  ProductSettings settings_;
  std::shared_ptr<CublasLt> library_;
  std::string unavailable_;  // why there is no library
  std::map<ProductShape, Choice> choices_;
  std::string version_;
  size_t by_library_ = 0;
  size_t by_own_kernels_ = 0;
};

}  // namespace headrace::cuda
