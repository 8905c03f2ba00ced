#include "cuda/products.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <utility>

#include "core/error.h"
#include "core/half.h"
#include "cuda/memory.h"

namespace headrace::cuda {
namespace {

// The number of rows that an algorithm is chosen for: eight Requests of 128 tokens, say. Fewer
// where the operands would be large; the rows are not what fills a GPU then.
constexpr int64_t kRows = 1024;
constexpr int64_t kRowsLeast = 64;
constexpr int64_t kElementsMost = int64_t{1} << 23;

// Sums that are compared with those in double, and by what part of the sum of the terms' sizes they
// may differ. In float32 they do by some 1e-7, with operands in TF32 by 1e-5 and more. Tensor cores
// cut off what they add.
constexpr int64_t kSums = 256;
constexpr double kToleranceF32 = 1e-6;
constexpr double kToleranceBf16 = 1e-5;

// A period of random numbers, odd, so that rows and columns meet in ever other places.
constexpr size_t kPeriod = (size_t{1} << 16) + 1;

std::vector<float> random_numbers() {
  std::mt19937 random(1);
  std::vector<float> numbers(kPeriod);
  for (float& number : numbers) {
    number = static_cast<float>(static_cast<int32_t>(random())) * 0x1p-31f;
  }
  return numbers;
}

// Made-up operands of one shape on the device, and what an algorithm makes of them.
class Trial {
 public:
  Trial(std::shared_ptr<Device> device, const ProductShape& shape)
      : shape_(shape),
        rows_(std::clamp(kElementsMost / std::max(shape.k, shape.cols), kRowsLeast, kRows)),
        numbers_(random_numbers()),
        x_(make_operand(device, 0, rows_ * shape.k, shape.bf16)),
        w_(make_operand(device, kWeightAt, shape.k * shape.cols, shape.bf16)),
        bias_(make_operand(device, kBiasAt, shape.cols, false)),
        part_(device, x_.bytes()),
        all_y_(device, rows_ * shape.cols * int64_t{sizeof(float)}),
        part_y_(device, all_y_.bytes()),
        stream_(device->make_stream()),
        staging_(std::move(device)) {}

  int64_t rows() const { return rows_; }
  const void* weight() const { return w_.data(); }
  const float* bias() const { return bias_.as<float>(); }

  // What is wrong with the product's algorithm; empty if nothing is.
  std::string objection(const LibraryProduct& product) {
    try {
      product.run(*stream_, x_.data(), static_cast<float*>(all_y_.data()), rows_);
      std::vector<float> all = fetch(all_y_, rows_);
      if (std::string wrong = compare_sums(all); !wrong.empty()) return wrong;
      // Alone at either end and between, two, parts of a tile, most of them.
      const std::pair<int64_t, int64_t> parts[] = {
          {0, 1}, {1, 1}, {rows_ - 1, 1}, {2, 2}, {5, 17}, {rows_ - 33, 33}, {3, rows_ / 2 + 1}};
      for (auto [first, count] : parts) {
        if (!same_bits(product, all, first, count)) {
          return str("the bits of a row are others among ", count, " rows than among ", rows_);
        }
      }
    } catch (const Error& error) {
      return error.what();
    }
    return {};
  }

 private:
  static constexpr int64_t kWeightAt = 12345;
  static constexpr int64_t kBiasAt = 54321;

  // Element i of an operand that begins at `at`.
  float number(int64_t at, int64_t i) const {
    return numbers_[static_cast<size_t>(at + i) % kPeriod];
  }
  static float rounded(float x, bool bf16) { return bf16 ? float(BFloat16(x)) : x; }

  DeviceMemory make_operand(const std::shared_ptr<Device>& device, int64_t at, int64_t count,
                            bool bf16) const {
    if (!bf16) {
      std::vector<float> values(static_cast<size_t>(count));
      for (int64_t i = 0; i < count; ++i) values[static_cast<size_t>(i)] = number(at, i);
      return {device, values.data(), count * int64_t{sizeof(float)}};
    }
    std::vector<BFloat16> values(static_cast<size_t>(count));
    for (int64_t i = 0; i < count; ++i) values[static_cast<size_t>(i)] = BFloat16(number(at, i));
    return {device, values.data(), count * int64_t{sizeof(BFloat16)}};
  }

  std::vector<float> fetch(const DeviceMemory& y, int64_t rows) {
    int64_t bytes = rows * shape_.cols * int64_t{sizeof(float)};
    staging_.reset();
    std::byte* pinned = staging_.take(bytes);
    stream_->copy_to_host(pinned, y.data(), bytes);
    stream_->synchronize();
    std::vector<float> values(static_cast<size_t>(rows * shape_.cols));
    std::memcpy(values.data(), pinned, static_cast<size_t>(bytes));
    return values;
  }

  std::string compare_sums(const std::vector<float>& all) const {
    for (int64_t i = 0; i < kSums; ++i) {
      // All over, and with the last element among them.
      int64_t at = (all.size() - 1) * i / (kSums - 1);
      int64_t row = at / shape_.cols, col = at % shape_.cols;
      double sum = shape_.bias ? number(kBiasAt, col) : 0;
      double sizes = std::abs(sum);
      for (int64_t k = 0; k < shape_.k; ++k) {
        double term = double{rounded(number(0, row * shape_.k + k), shape_.bf16)} *
                      rounded(number(kWeightAt, k * shape_.cols + col), shape_.bf16);
        sum += term;
        sizes += std::abs(term);
      }
      double got = all[static_cast<size_t>(at)];
      double allowed = (shape_.bf16 ? kToleranceBf16 : kToleranceF32) * sizes;
      if (std::abs(got - sum) <= allowed) continue;
      return str("got a sum of ", got, ", expected ", sum, " within ", allowed);
    }
    return {};
  }

  bool same_bits(const LibraryProduct& product, const std::vector<float>& all, int64_t first,
                 int64_t count) {
    int64_t row_bytes = x_.bytes() / rows_;
    stream_->copy_on_device(part_.data(), x_.as<std::byte>() + first * row_bytes,
                            count * row_bytes);
    product.run(*stream_, part_.data(), static_cast<float*>(part_y_.data()), count);
    std::vector<float> part = fetch(part_y_, count);
    return std::memcmp(part.data(), all.data() + first * shape_.cols,
                       part.size() * sizeof(float)) == 0;
  }

  ProductShape shape_;
  int64_t rows_;
  std::vector<float> numbers_;
  DeviceMemory x_, w_, bias_;
  DeviceMemory part_;
  DeviceMemory all_y_, part_y_;
  std::unique_ptr<Stream> stream_;
  Staging staging_;
};

}  // namespace

Products::Products(std::shared_ptr<Device> device, ProductSettings settings)
    : device_(std::move(device)), settings_(std::move(settings)) {
  if (settings_.use == ProductSettings::Use::kOn) {
    library_ = CublasLt::open(device_, settings_.libraries);
  }
}

// Where it may be used and a Plan has products: a library of half a gigabyte is not loaded for
// less.
void Products::open() {
  if (settings_.use == ProductSettings::Use::kOff) {
    unavailable_ = "cuBLASLt is off";
    return;
  }
  try {
    library_ = CublasLt::open(device_, settings_.libraries);
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::kBackendUnavailable) throw;
    unavailable_ = error.what();
  }
}

const Products::Choice& Products::choice_for(const ProductShape& shape) {
  auto [it, added] = choices_.try_emplace(shape);
  Choice& choice = it->second;
  if (!added) return choice;
  Trial trial(device_, shape);
  LibraryProduct product(library_, shape, trial.weight(), trial.bias());
  choice.reason = "cuBLASLt has no algorithm that neither splits k nor needs a workspace";
  for (const cublaslt::Algorithm& algorithm : product.algorithms(trial.rows())) {
    product.use(algorithm);
    choice.reason = trial.objection(product);
    if (!choice.reason.empty()) continue;
    choice.algorithm = algorithm;
    break;
  }
  return choice;
}

std::unique_ptr<LibraryProduct> Products::make(const ProductShape& shape, const void* weight,
                                               const float* bias) {
  if (!library_ && unavailable_.empty()) open();
  const Choice* choice = library_ && shape.k > 0 && shape.cols > 0 ? &choice_for(shape) : nullptr;
  if (choice == nullptr || !choice->algorithm) {
    ++by_own_kernels_;
    return nullptr;
  }
  auto product = std::make_unique<LibraryProduct>(library_, shape, weight, bias);
  product->use(*choice->algorithm);
  version_ = library_->version();
  ++by_library_;
  return product;
}

std::vector<std::string> Products::reasons() const {
  std::vector<std::string> reasons;
  if (!unavailable_.empty()) reasons.push_back(unavailable_);
  for (const auto& [shape, choice] : choices_) {
    if (choice.algorithm) continue;
    reasons.push_back(
        str(shape.k, " x ", shape.cols, shape.bf16 ? " in bf16: " : " in fp32: ", choice.reason));
  }
  return reasons;
}

}  // namespace headrace::cuda
