#include "cuda/cublaslt.h"

#include <dlfcn.h>

#include "core/error.h"

namespace headrace::cuda {

using cublaslt::Algorithm;
using cublaslt::Candidate;
using cublaslt::Functions;
using cublaslt::kSuccess;
using cublaslt::Layout;
using cublaslt::Status;

namespace {

// Values of cublasLt.h and library_types.h.
constexpr int kTypeFloat = 0;      // CUDA_R_32F
constexpr int kTypeBf16 = 14;      // CUDA_R_16BF
constexpr int kComputeFloat = 68;  // CUBLAS_COMPUTE_32F: no TF32
constexpr int kDescEpilogue = 7;
constexpr int kDescBiasPointer = 8;
constexpr uint32_t kEpilogueBias = 4;
constexpr int kPreferenceWorkspaceBytes = 1;
constexpr int kPreferenceReductions = 3;
constexpr int kAlgorithmSplits = 2;
constexpr int kAlgorithmReduction = 3;
constexpr uint32_t kReductionNone = 0;

// Candidates that are looked at, should the first ones not do.
constexpr int kCandidates = 8;

static_assert(sizeof(Candidate) == 96, "as cublasLtMatmulHeuristicResult_t");

std::string to_version(size_t number) {
  return str(number / 10000, ".", number / 100 % 100, ".", number % 100);
}

// Closes a library that turned out to be another one. Once called it stays: what it has told the
// driver does not bear to be unloaded.
struct Close {
  void operator()(void* library) const { dlclose(library); }
};

// Sets the function, or says which one is not there.
template <class F>
void find(void* library, const char* name, F& function, std::string& missing) {
  void* found = dlsym(library, name);
  if (found == nullptr) missing += str(missing.empty() ? "it has no " : ", ", name);
  function = reinterpret_cast<F>(found);
}

// Why the library cannot be used; empty if all its functions were found.
std::string find_all(void* library, Functions& f) {
  std::string missing;
  find(library, "cublasLtGetVersion", f.get_version, missing);
  if (f.get_version != nullptr && f.get_version() < 120000) {
    return str("got version ", to_version(f.get_version()), ", expected 12 or later");
  }
  find(library, "cublasLtGetStatusName", f.get_status_name, missing);
  find(library, "cublasLtCreate", f.create, missing);
  find(library, "cublasLtDestroy", f.destroy, missing);
  // What cublasLtMatrixLayoutInit calls, which is inline.
  find(library, "cublasLtMatrixLayoutInit_internal", f.layout_init, missing);
  find(library, "cublasLtMatmulDescCreate", f.desc_create, missing);
  find(library, "cublasLtMatmulDescDestroy", f.desc_destroy, missing);
  find(library, "cublasLtMatmulDescSetAttribute", f.desc_set, missing);
  find(library, "cublasLtMatmulPreferenceCreate", f.preference_create, missing);
  find(library, "cublasLtMatmulPreferenceDestroy", f.preference_destroy, missing);
  find(library, "cublasLtMatmulPreferenceSetAttribute", f.preference_set, missing);
  find(library, "cublasLtMatmulAlgoGetHeuristic", f.get_heuristic, missing);
  find(library, "cublasLtMatmulAlgoConfigGetAttribute", f.algorithm_get, missing);
  find(library, "cublasLtMatmul", f.matmul, missing);
  return missing;
}

}  // namespace

std::shared_ptr<CublasLt> CublasLt::open(std::shared_ptr<Device> device,
                                         std::span<const std::string> libraries) {
  std::string reasons;
  for (const std::string& name : libraries) {
    std::unique_ptr<void, Close> library(dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL));
    std::string reason;
    Functions functions{};
    if (!library) {
      const char* error = dlerror();
      reason = error != nullptr ? error : str(name, ": it cannot be loaded");
    } else if (reason = find_all(library.get(), functions); !reason.empty()) {
      reason = str(name, ": ", reason);
    } else {
      library.release();
      void* handle = nullptr;
      Status status = functions.create(&handle);
      if (status == kSuccess) {
        return std::shared_ptr<CublasLt>(new CublasLt(std::move(device), functions, handle));
      }
      reason = str(name, ": cublasLtCreate failed: ", functions.get_status_name(status));
    }
    reasons += str(reasons.empty() ? "" : "; ", reason);
  }
  fail(ErrorKind::kBackendUnavailable,
       "cuBLASLt cannot be used: ", reasons.empty() ? "no library to look for was given" : reasons,
       "; pip install nvidia-cublas, see docs/gpu.md");
}

CublasLt::CublasLt(std::shared_ptr<Device> device, const Functions& functions, void* handle)
    : device_(std::move(device)), functions_(functions), handle_(handle) {}

CublasLt::~CublasLt() {
  try {
    OnDevice here(*device_);
    functions_.destroy(handle_);
  } catch (const Error&) {  // the device is lost, and the handle with it
  }
}

std::string CublasLt::version() const {
  return to_version(functions_.get_version());
}

void CublasLt::check(Status status, const char* what) const {
  if (status == kSuccess) return;
  fail(ErrorKind::kExecution, "cuBLASLt: ", what, " failed: ", functions_.get_status_name(status));
}

LibraryProduct::LibraryProduct(std::shared_ptr<CublasLt> library, const ProductShape& shape,
                               const void* weight, const float* bias)
    : library_(std::move(library)), shape_(shape), weight_(weight) {
  const Functions& f = library_->functions_;
  void* desc = nullptr;
  library_->check(f.desc_create(&desc, kComputeFloat, kTypeFloat), "cublasLtMatmulDescCreate");
  desc_ = Object(desc, f.desc_destroy);
  if (!shape.bias) return;
  library_->check(f.desc_set(desc, kDescEpilogue, &kEpilogueBias, sizeof(kEpilogueBias)),
                  "setting an epilogue");
  // Its type is Y's.
  library_->check(f.desc_set(desc, kDescBiasPointer, &bias, sizeof(bias)), "setting a bias");
}

// The library counts along columns: a matrix that lies row by row is its own transpose there.
Layout LibraryProduct::layout(bool operand, int64_t rows, int64_t cols) const {
  Layout layout;
  int type = operand && shape_.bf16 ? kTypeBf16 : kTypeFloat;
  library_->check(
      library_->functions_.layout_init(&layout, sizeof(layout), type, static_cast<uint64_t>(cols),
                                       static_cast<uint64_t>(rows), cols),
      "cublasLtMatrixLayoutInit");
  return layout;
}

std::vector<Algorithm> LibraryProduct::algorithms(int64_t rows) const {
  const Functions& f = library_->functions_;
  void* made = nullptr;
  library_->check(f.preference_create(&made), "cublasLtMatmulPreferenceCreate");
  Object preference(made, f.preference_destroy);
  uint64_t workspace_bytes = 0;
  library_->check(
      f.preference_set(made, kPreferenceWorkspaceBytes, &workspace_bytes, sizeof(workspace_bytes)),
      "setting the size of the workspace");
  library_->check(
      f.preference_set(made, kPreferenceReductions, &kReductionNone, sizeof(kReductionNone)),
      "setting the ways of reduction");
  Layout w = layout(true, shape_.k, shape_.cols);
  Layout x = layout(true, rows, shape_.k);
  Layout y = layout(false, rows, shape_.cols);
  Candidate candidates[kCandidates] = {};
  int count = 0;
  Status status = f.get_heuristic(library_->handle_, desc_.get(), &w, &x, &y, &y, made, kCandidates,
                                  candidates, &count);
  std::vector<Algorithm> found;
  if (status != kSuccess) return found;  // there is none
  for (const Candidate& candidate : std::span(candidates, static_cast<size_t>(count))) {
    int32_t splits = 0;
    uint32_t reduction = ~kReductionNone;
    size_t written = 0;
    bool whole = candidate.state == kSuccess && candidate.workspace_bytes == 0 &&
                 f.algorithm_get(&candidate.algorithm, kAlgorithmSplits, &splits, sizeof(splits),
                                 &written) == kSuccess &&
                 f.algorithm_get(&candidate.algorithm, kAlgorithmReduction, &reduction,
                                 sizeof(reduction), &written) == kSuccess &&
                 splits <= 1 && reduction == kReductionNone;
    if (whole) found.push_back(candidate.algorithm);
  }
  return found;
}

void LibraryProduct::run(Stream& stream, const void* x, float* y, int64_t rows) const {
  // On the stack: there is one for every number of rows.
  Layout w_at = layout(true, shape_.k, shape_.cols);
  Layout x_at = layout(true, rows, shape_.k);
  Layout y_at = layout(false, rows, shape_.cols);
  const float one = 1;
  const float zero = 0;
  std::lock_guard lock(library_->mutex_);
  library_->check(library_->functions_.matmul(library_->handle_, desc_.get(), &one, weight_, &w_at,
                                              x, &x_at, &zero, y, &y_at, y, &y_at, &algorithm_,
                                              nullptr, 0, stream.native()),
                  "cublasLtMatmul");
}

}  // namespace headrace::cuda
