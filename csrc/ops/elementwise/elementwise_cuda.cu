// Elementwise ops with broadcasting. What an op does is decided inside the kernel: these wait for
// memory, not for a branch that all threads take alike.
#include "cuda/math.h"
#include "cuda/ragged.h"
#include "cuda/rooms.h"
#include "ops/node_inputs.h"

namespace headrace::cuda {
namespace {

enum class Binary {
  kAdd,
  kSub,
  kMul,
  kDiv,
  kMin,
  kMax,
  kPow,
  kEqual,
  kLess,
  kLessOrEqual,
  kGreater,
  kGreaterOrEqual,
  kAnd,
  kOr,
  kXor,
};

bool gives_bool(Binary op) {
  return op >= Binary::kEqual;
}

template <class T>
__device__ T arithmetic(Binary op, T a, T b) {
  constexpr bool kInt = std::is_integral_v<T>;
  switch (op) {
    case Binary::kAdd:
      if constexpr (kInt) return static_cast<T>(uint64_t(a) + uint64_t(b));  // wraps around
      return a + b;
    case Binary::kSub:
      if constexpr (kInt) return static_cast<T>(uint64_t(a) - uint64_t(b));
      return a - b;
    case Binary::kMul:
      if constexpr (kInt) return static_cast<T>(uint64_t(a) * uint64_t(b));
      return a * b;
    case Binary::kDiv:
      if constexpr (kInt) {
        if (b == 0) return 0;
        if (b == static_cast<T>(-1)) return static_cast<T>(uint64_t{0} - uint64_t(a));
      }
      return a / b;
    case Binary::kMin:
      return a < b || a != a ? a : b;
    case Binary::kMax:
      return a > b || a != a ? a : b;
    case Binary::kPow:
      if constexpr (!kInt) return b == 2.0f ? a * a : powf(a, b);
      return a;
    default:
      return a;
  }
}

template <class T>
__device__ bool compare(Binary op, T a, T b) {
  switch (op) {
    case Binary::kEqual:
      return a == b;
    case Binary::kLess:
      return a < b;
    case Binary::kLessOrEqual:
      return a <= b;
    case Binary::kGreater:
      return a > b;
    case Binary::kGreaterOrEqual:
      return a >= b;
    case Binary::kAnd:
      return a && b;
    case Binary::kOr:
      return a || b;
    case Binary::kXor:
      return (a != 0) != (b != 0);
    default:
      return false;
  }
}

template <class T>
__global__ void binary_kernel(const StridedLoop<2>* loops, Binary op, const T* a, const T* b,
                              void* y) {
  const StridedLoop<2>& loop = loops[blockIdx.y];
  int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < loop.count; i += step) {
    int64_t at[2];
    loop.offsets(i, at);
    if (op >= Binary::kEqual) {
      static_cast<bool*>(y)[loop.out + i] = compare(op, a[at[0]], b[at[1]]);
    } else {
      static_cast<T*>(y)[loop.out + i] = arithmetic(op, a[at[0]], b[at[1]]);
    }
  }
}

template <class T>
__global__ void where_kernel(const StridedLoop<3>* loops, const bool* condition, const T* a,
                             const T* b, T* y) {
  const StridedLoop<3>& loop = loops[blockIdx.y];
  int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < loop.count; i += step) {
    int64_t at[3];
    loop.offsets(i, at);
    y[loop.out + i] = condition[at[0]] ? a[at[1]] : b[at[2]];
  }
}

// Of one element, as what it is read from and written to.
__device__ double load_number(DType dtype, const void* x, int64_t i) {
  switch (dtype) {
    case DType::kBool:
    case DType::kU8:
      return static_cast<const uint8_t*>(x)[i];
    case DType::kF32:
      return static_cast<const float*>(x)[i];
    case DType::kF64:
      return static_cast<const double*>(x)[i];
    case DType::kBF16:
      return to_float(static_cast<const __nv_bfloat16*>(x)[i]);
    default:
      return 0;
  }
}
__device__ bool is_integer(DType dtype) {
  return dtype == DType::kI32 || dtype == DType::kI64;
}

// Towards zero, and the least integer for what does not fit and for NaN, as the CPU's op has it: a
// device's own conversion saturates, and makes 0 of NaN.
__device__ int64_t truncate(double number, DType to) {
  double end = to == DType::kI32 ? 0x1p31 : 0x1p63;
  if (number >= -end && number < end) return static_cast<int64_t>(number);
  return to == DType::kI32 ? INT32_MIN : INT64_MIN;
}

__global__ void cast_kernel(DType from, DType to, const void* x, void* y, int64_t count) {
  int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += step) {
    int64_t whole = 0;
    double number = 0;
    if (is_integer(from)) {  // 64-bit integers do not fit a double
      whole = from == DType::kI32 ? static_cast<const int32_t*>(x)[i]
                                  : static_cast<const int64_t*>(x)[i];
      number = static_cast<double>(whole);
    } else {
      number = load_number(from, x, i);
      if (is_integer(to)) whole = truncate(number, to);
    }
    switch (to) {
      case DType::kBool:
        static_cast<bool*>(y)[i] = number != 0;
        break;
      case DType::kI32:
        static_cast<int32_t*>(y)[i] = static_cast<int32_t>(whole);
        break;
      case DType::kI64:
        static_cast<int64_t*>(y)[i] = whole;
        break;
      case DType::kF64:
        static_cast<double*>(y)[i] = number;
        break;
      case DType::kBF16:
        static_cast<__nv_bfloat16*>(y)[i] = from_float<__nv_bfloat16>(static_cast<float>(number));
        break;
      default:
        // From a 64-bit integer rounded once.
        static_cast<float*>(y)[i] =
            is_integer(from) ? static_cast<float>(whole) : static_cast<float>(number);
    }
  }
}

__global__ void clip_kernel(const float* x, const float* low, const float* high, float open_low,
                            float open_high, float* y, int64_t count) {
  float from = low == nullptr ? open_low : *low;
  float to = high == nullptr ? open_high : *high;
  int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += step) {
    y[i] = activate(Act::kClip, x[i], from, to);
  }
}

__global__ void not_kernel(const bool* x, bool* y, int64_t count) {
  int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += step) {
    y[i] = !x[i];
  }
}

template <class T>
class BinaryOp final : public CudaOp {
 public:
  explicit BinaryOp(Binary op) : op_(op) {}
  void run(CudaRun& run) const override {
    int64_t longest = 0;
    auto loops = broadcast_loops(run, {0, 1}, longest);
    if (longest == 0) return;
    launch_rows(run.stream(), loop_shape(longest), binary_kernel<T>, loops, op_, run.in<T>(0),
                run.in<T>(1), run.out<void>(0));
  }

 private:
  Binary op_;
};

template <class T>
class WhereOp final : public CudaOp {
 public:
  void run(CudaRun& run) const override {
    int64_t longest = 0;
    auto loops = broadcast_loops(run, {0, 1, 2}, longest);
    if (longest == 0) return;
    launch_rows(run.stream(), loop_shape(longest), where_kernel<T>, loops, run.in<bool>(0),
                run.in<T>(1), run.in<T>(2), run.out<T>(0));
  }
};

// Base of ops over the elements of all Requests as one long row; constants alone do not come here.
class FlatOp : public CudaOp {
 public:
  void run(CudaRun& run) const final {
    int64_t count = run.output(0).elements();
    if (count > 0) apply(run, count);
  }

 protected:
  virtual void apply(CudaRun& run, int64_t count) const = 0;
};

class CastOp final : public FlatOp {
 private:
  void apply(CudaRun& run, int64_t count) const override {
    launch(run.stream(), loop_shape(count), cast_kernel, run.input(0).dtype, run.output(0).dtype,
           run.in<void>(0), run.out<void>(0), count);
  }
};

class ClipOp final : public FlatOp {
 public:
  ClipOp(float low, float high) : low_(low), high_(high) {}

 private:
  void apply(CudaRun& run, int64_t count) const override {
    launch(run.stream(), loop_shape(count), clip_kernel, run.in<float>(0), run.in<float>(1),
           run.in<float>(2), low_, high_, run.out<float>(0), count);
  }
  float low_;
  float high_;
};

class NotOp final : public FlatOp {
 private:
  void apply(CudaRun& run, int64_t count) const override {
    launch(run.stream(), loop_shape(count), not_kernel, run.in<bool>(0), run.out<bool>(0), count);
  }
};

[[noreturn]] void refuse_dtype(const NodeSpec& spec, size_t input) {
  spec.unsupported(str("device cuda: no kernel for input ", input, " of dtype ",
                       name_of(spec.input_dtypes[input])));
}

template <Binary kOp>
std::unique_ptr<CudaOp> make_binary(const CudaNode& node) {
  const NodeSpec& spec = node.spec;
  if (spec.inputs() != 2) spec.unsupported("device cuda: expected two inputs");
  DType dtype = spec.input_dtypes[0];
  if (spec.input_dtypes[1] != dtype) refuse_dtype(spec, 1);
  bool logical = kOp >= Binary::kAnd;
  if (logical != (dtype == DType::kBool) && !(kOp == Binary::kEqual && dtype == DType::kBool)) {
    refuse_dtype(spec, 0);
  }
  if (spec.output_dtypes[0] != (gives_bool(kOp) ? DType::kBool : dtype)) refuse_dtype(spec, 0);
  switch (dtype) {
    case DType::kF32:
      return std::make_unique<BinaryOp<float>>(kOp);
    case DType::kI32:
      if (kOp == Binary::kPow) break;
      return std::make_unique<BinaryOp<int32_t>>(kOp);
    case DType::kI64:
      if (kOp == Binary::kPow) break;
      return std::make_unique<BinaryOp<int64_t>>(kOp);
    case DType::kBool:
      return std::make_unique<BinaryOp<uint8_t>>(kOp);
    default:
      break;
  }
  refuse_dtype(spec, 0);
}

std::unique_ptr<CudaOp> make_where(const CudaNode& node) {
  require_inputs(node.spec, 3);
  switch (size_of(node.spec.input_dtypes[1])) {
    case 1:
      return std::make_unique<WhereOp<uint8_t>>();
    case 2:
      return std::make_unique<WhereOp<uint16_t>>();
    case 4:
      return std::make_unique<WhereOp<uint32_t>>();
    case 8:
      return std::make_unique<WhereOp<uint64_t>>();
    default:
      refuse_dtype(node.spec, 1);
  }
}

// The loops of FlatOp take values of which every Request has its own.
void require_own(const NodeSpec& spec) {
  if (spec.is_constant(0)) spec.unsupported("device cuda: input 0 is a constant");
}

std::unique_ptr<CudaOp> make_cast(const CudaNode& node) {
  const NodeSpec& spec = node.spec;
  require_own(spec);
  auto known = [](DType dtype) {
    return dtype == DType::kBool || dtype == DType::kI32 || dtype == DType::kI64 ||
           dtype == DType::kF32 || dtype == DType::kF64 || dtype == DType::kBF16;
  };
  if (!known(spec.input_dtypes[0])) refuse_dtype(spec, 0);
  if (!known(spec.output_dtypes[0])) {
    spec.unsupported(
        str("device cuda: no kernel for an output of dtype ", name_of(spec.output_dtypes[0])));
  }
  return std::make_unique<CastOp>();
}

std::unique_ptr<CudaOp> make_clip(const CudaNode& node) {
  const NodeSpec& spec = node.spec;
  require_own(spec);
  require_dtype(spec, DType::kF32);
  for (size_t i = 1; i < spec.inputs(); ++i) {
    if (spec.has_input(i) && !spec.is_constant(i)) {
      spec.unsupported("device cuda: bounds that are not constant");
    }
  }
  constexpr float kInfinity = __builtin_inff();
  return std::make_unique<ClipOp>(spec.float_or("min", -kInfinity),
                                  spec.float_or("max", kInfinity));
}

std::unique_ptr<CudaOp> make_not(const CudaNode& node) {
  require_own(node.spec);
  return std::make_unique<NotOp>();
}

}  // namespace

void register_elementwise_cuda(CudaRegistry& registry) {
  registry.add("Add", make_binary<Binary::kAdd>);
  registry.add("Sub", make_binary<Binary::kSub>);
  registry.add("Mul", make_binary<Binary::kMul>);
  registry.add("Div", make_binary<Binary::kDiv>);
  registry.add("Min", make_binary<Binary::kMin>);
  registry.add("Max", make_binary<Binary::kMax>);
  registry.add("Pow", make_binary<Binary::kPow>);
  registry.add("Equal", make_binary<Binary::kEqual>);
  registry.add("Less", make_binary<Binary::kLess>);
  registry.add("LessOrEqual", make_binary<Binary::kLessOrEqual>);
  registry.add("Greater", make_binary<Binary::kGreater>);
  registry.add("GreaterOrEqual", make_binary<Binary::kGreaterOrEqual>);
  registry.add("And", make_binary<Binary::kAnd>);
  registry.add("Or", make_binary<Binary::kOr>);
  registry.add("Xor", make_binary<Binary::kXor>);
  registry.add("Where", make_where);
  registry.add("Cast", make_cast);
  registry.add("Clip", make_clip);
  registry.add("Not", make_not);
}

}  // namespace headrace::cuda
