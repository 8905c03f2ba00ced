// A library with cuBLASLt's functions, as far as Headrace calls them, for the device that is
// emulated on the host. It is as strict as the documentation lets the real one be, computes when
// the stream is waited for, and can be told to misbehave.
#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "cuda/cuda_on_host.h"

namespace {

using headrace::BFloat16;

enum Status { kSuccess = 0, kNotInitialized = 1, kInvalidValue = 7, kNotSupported = 15 };
enum Type : int { kFloat = 0, kBf16 = 14 };

// What the candidates of the heuristic do, in order: one word each.
//   sound     adds along k
//   varies    adds the other way round where there are fewer than 64 rows
//   rounds    rounds its operands, as TF32 does
//   refuses   wants at least 4 rows
//   splits    adds the halves of k
//   reduces   says that it splits k in some other way
//   scratch   needs a workspace
// and of the library: "old" is of version 11, "deviceless" finds no device.
std::vector<std::string>& behaviour() {
  static std::vector<std::string> words{"sound"};
  return words;
}
bool behaves(const char* word) {
  return std::ranges::find(behaviour(), word) != behaviour().end();
}

std::atomic<int64_t> objects = 0;   // that were created and not destroyed
std::atomic<int64_t> products = 0;  // that were asked for

struct Algorithm {
  uint64_t kind;  // index into behaviour()
  uint64_t rest[7];
};
struct Candidate {
  Algorithm algorithm;
  size_t workspace_bytes;
  int state;
  float waves;
  int reserved[4];
};
struct Layout {
  uint64_t magic;
  int64_t type;
  int64_t rows, cols, stride;
  uint64_t rest[3];
};
constexpr uint64_t kMagic = 0x6c61796f75742121;

struct Desc {
  uint32_t epilogue = 1;
  const float* bias = nullptr;
};
struct Preference {
  uint64_t workspace_bytes = 0;
  uint32_t reductions = 7;
};

template <class T>
int create(void** object) {
  *object = new T();
  ++objects;
  return kSuccess;
}
template <class T>
int destroy(void* object) {
  delete static_cast<T*>(object);
  --objects;
  return kSuccess;
}
template <class T>
int set(T& to, const void* value, size_t bytes) {
  if (bytes != sizeof(T)) return kInvalidValue;
  std::memcpy(&to, value, bytes);
  return kSuccess;
}

// D (m x n) = A (m x k) * B (k x n), column by column.
bool fit(const Layout& a, const Layout& b, const Layout& d) {
  for (const Layout* one : {&a, &b, &d}) {
    if (one->magic != kMagic || one->rows < 1 || one->cols < 1 || one->stride < one->rows) {
      return false;
    }
  }
  return a.cols == b.rows && a.rows == d.rows && b.cols == d.cols && a.type == b.type &&
         d.type == kFloat;
}

struct Matrix {
  const void* data;
  Layout at;

  float operator()(int64_t row, int64_t col) const {
    int64_t i = col * at.stride + row;
    return at.type == kBf16 ? static_cast<float>(static_cast<const BFloat16*>(data)[i])
                            : static_cast<const float*>(data)[i];
  }
};

// To 10 bits behind the point.
float to_tf32(float x) {
  return std::bit_cast<float>((std::bit_cast<uint32_t>(x) + 0x1000) & ~uint32_t{0x1fff});
}

float sum(const std::string& kind, const Matrix& a, const Matrix& b, int64_t row, int64_t col) {
  int64_t k = a.at.cols;
  bool backwards = kind == "varies" && b.at.cols < 64;
  float total = 0;
  for (int64_t i = 0; i < k; ++i) {
    int64_t at = backwards ? k - 1 - i : i;
    float x = a(row, at), y = b(at, col);
    if (kind == "rounds") x = to_tf32(x), y = to_tf32(y);
    total = std::fma(x, y, total);
  }
  return total;
}

void multiply(const std::string& kind, const Matrix& a, const Matrix& b, const float* bias,
              float* d, int64_t stride) {
  for (int64_t col = 0; col < b.at.cols; ++col) {
    for (int64_t row = 0; row < a.at.rows; ++row) {
      float total = sum(kind, a, b, row, col);
      d[col * stride + row] = bias == nullptr ? total : total + bias[row];
    }
  }
}

bool begins_a_block(const void* p) {
  return p != nullptr && reinterpret_cast<uintptr_t>(p) % 256 == 0;
}

}  // namespace

extern "C" {

void stand_in_behave(const char* words) {
  behaviour().clear();
  std::string text = words;
  for (size_t at = 0; at < text.size();) {
    size_t end = std::min(text.find(' ', at), text.size());
    behaviour().push_back(text.substr(at, end - at));
    at = end + 1;
  }
}
int64_t stand_in_objects() {
  return objects;
}
int64_t stand_in_products() {
  return products;
}

size_t cublasLtGetVersion() {
  return behaves("old") ? 110901 : 130203;
}
const char* cublasLtGetStatusName(int status) {
  switch (status) {
    case kSuccess:
      return "CUBLAS_STATUS_SUCCESS";
    case kNotInitialized:
      return "CUBLAS_STATUS_NOT_INITIALIZED";
    case kInvalidValue:
      return "CUBLAS_STATUS_INVALID_VALUE";
    default:
      return "CUBLAS_STATUS_NOT_SUPPORTED";
  }
}

int cublasLtCreate(void** handle) {
  return behaves("deviceless") ? int{kNotInitialized} : create<int>(handle);
}
int cublasLtDestroy(void* handle) {
  return destroy<int>(handle);
}

int cublasLtMatrixLayoutInit_internal(Layout* layout, size_t bytes, int type, uint64_t rows,
                                      uint64_t cols, int64_t stride) {
  if (bytes != 64 || (type != kFloat && type != kBf16)) return kInvalidValue;
  *layout = {kMagic, type, static_cast<int64_t>(rows), static_cast<int64_t>(cols), stride, {}};
  return kSuccess;
}

int cublasLtMatmulDescCreate(void** desc, int compute_type, int scale_type) {
  return compute_type == 68 && scale_type == kFloat ? create<Desc>(desc) : int{kInvalidValue};
}
int cublasLtMatmulDescDestroy(void* desc) {
  return destroy<Desc>(desc);
}
int cublasLtMatmulDescSetAttribute(Desc* desc, int attribute, const void* value, size_t bytes) {
  if (attribute == 7) return set(desc->epilogue, value, bytes);
  if (attribute == 8) return set(desc->bias, value, bytes);
  return kInvalidValue;
}

int cublasLtMatmulPreferenceCreate(void** preference) {
  return create<Preference>(preference);
}
int cublasLtMatmulPreferenceDestroy(void* preference) {
  return destroy<Preference>(preference);
}
int cublasLtMatmulPreferenceSetAttribute(Preference* preference, int attribute, const void* value,
                                         size_t bytes) {
  if (attribute == 1) return set(preference->workspace_bytes, value, bytes);
  if (attribute == 3) return set(preference->reductions, value, bytes);
  return kInvalidValue;
}

int cublasLtMatmulAlgoGetHeuristic(void* handle, Desc*, const Layout* a, const Layout* b,
                                   const Layout* c, const Layout* d, Preference*, int wanted,
                                   Candidate* candidates, int* count) {
  if (handle == nullptr || !fit(*a, *b, *d) || c != d) return kInvalidValue;
  *count = std::min(wanted, static_cast<int>(behaviour().size()));
  for (int i = 0; i < *count; ++i) {
    candidates[i] = {};
    candidates[i].algorithm.kind = static_cast<uint64_t>(i);
    if (behaviour()[static_cast<size_t>(i)] == "scratch") candidates[i].workspace_bytes = 4096;
  }
  return *count > 0 ? kSuccess : kNotSupported;
}

int cublasLtMatmulAlgoConfigGetAttribute(const Algorithm* algorithm, int attribute, void* value,
                                         size_t bytes, size_t* written) {
  if (bytes != 4 || (attribute != 2 && attribute != 3)) return kInvalidValue;
  const std::string& kind = behaviour()[algorithm->kind];
  uint32_t splits = kind == "splits" ? 2 : 1;
  uint32_t reduction = kind == "reduces" ? 2 : 0;
  std::memcpy(value, attribute == 2 ? &splits : &reduction, 4);
  *written = 4;
  return kSuccess;
}

int cublasLtMatmul(void* handle, const Desc* desc, const float* alpha, const void* a,
                   const Layout* a_at, const void* b, const Layout* b_at, const float* beta,
                   const void* c, const Layout* c_at, void* d, const Layout* d_at,
                   const Algorithm* algorithm, void* workspace, size_t workspace_bytes,
                   void* stream) {
  ++products;
  if (handle == nullptr || *alpha != 1 || *beta != 0 || c != d || c_at != d_at ||
      workspace != nullptr || workspace_bytes != 0 || !fit(*a_at, *b_at, *d_at) ||
      !begins_a_block(a) || !begins_a_block(b) || !begins_a_block(d)) {
    return kInvalidValue;
  }
  bool biased = desc->epilogue == 4;
  if (biased && !begins_a_block(desc->bias)) return kInvalidValue;
  std::string kind = behaviour()[algorithm->kind];
  if (kind == "refuses" && b_at->cols < 4) return kNotSupported;
  // All of it is copied: the caller's layouts may be gone when the stream gets there.
  static_cast<headrace::on_host::Queue*>(stream)->push(
      [kind, a = Matrix{a, *a_at}, b = Matrix{b, *b_at}, bias = biased ? desc->bias : nullptr, d,
       stride = d_at->stride] { multiply(kind, a, b, bias, static_cast<float*>(d), stride); });
  return kSuccess;
}

}  // extern "C"
