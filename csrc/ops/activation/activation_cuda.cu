// Functions of one float, over the elements of all Requests as one long row.
#include "cuda/math.h"
#include "cuda/ragged.h"
#include "cuda/rooms.h"

namespace headrace::cuda {
namespace {

enum class Function {
  kRelu,
  kLeakyRelu,
  kElu,
  kSigmoid,
  kHardSigmoid,
  kSwish,
  kHardSwish,
  kTanh,
  kErf,
  kExp,
  kLog,
  kSoftplus,
  kSqrt,
  kReciprocal,
  kFloor,
  kCeil,
  kRound,
  kAbs,
  kNeg,
  kGeluErf,
  kGeluTanh,
};

__device__ float clamp_01(float x) {
  return activate(Act::kClip, x, 0.0f, 1.0f);
}

__device__ float apply(Function f, float x, float a, float b) {
  switch (f) {
    case Function::kRelu:
      return activate(Act::kRelu, x, 0, 0);
    case Function::kLeakyRelu:
      return x < 0 ? a * x : x;
    case Function::kElu:
      return x < 0 ? a * expm1f(x) : x;
    case Function::kSigmoid:
      return sigmoid(x);
    case Function::kHardSigmoid:
      return clamp_01(a * x + b);
    case Function::kSwish:
      return x * sigmoid(a * x);
    case Function::kHardSwish:
      return x * clamp_01(a * x + b);
    case Function::kTanh:
      return tanhf(x);
    case Function::kErf:
      return erff(x);
    case Function::kExp:
      return expf(x);
    case Function::kLog:
      return logf(x);
    case Function::kSoftplus:
      return fmaxf(x, 0.0f) + log1pf(expf(-fabsf(x)));
    case Function::kSqrt:
      return sqrtf(x);
    case Function::kReciprocal:
      return 1.0f / x;
    case Function::kFloor:
      return floorf(x);
    case Function::kCeil:
      return ceilf(x);
    case Function::kRound:
      return nearbyintf(x);
    case Function::kAbs:
      return fabsf(x);
    case Function::kNeg:
      return -x;
    case Function::kGeluErf:
      return gelu_erf(x);
    case Function::kGeluTanh:
      return gelu_tanh(x);
  }
  return x;
}

__global__ void unary_kernel(Function f, const float* x, float* y, int64_t count, float a,
                             float b) {
  int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += step) {
    y[i] = apply(f, x[i], a, b);
  }
}

class UnaryOp final : public CudaOp {
 public:
  UnaryOp(Function f, float a, float b) : f_(f), a_(a), b_(b) {}
  void run(CudaRun& run) const override {
    int64_t count = run.output(0).elements();
    if (count == 0) return;
    launch(run.stream(), loop_shape(count), unary_kernel, f_, run.in<float>(0), run.out<float>(0),
           count, a_, b_);
  }

 private:
  Function f_;
  float a_;
  float b_;
};

// A function and its attributes' defaults, as the activation room has them.
struct Named {
  const char* op;
  Function function;
  float alpha = 0;
  float beta = 0;
};
constexpr Named kFunctions[] = {
    {"Relu", Function::kRelu},
    {"LeakyRelu", Function::kLeakyRelu, 0.01f},
    {"Elu", Function::kElu, 1.0f},
    {"Sigmoid", Function::kSigmoid},
    {"HardSigmoid", Function::kHardSigmoid, 0.2f, 0.5f},
    {"Swish", Function::kSwish, 1.0f},
    {"HardSwish", Function::kHardSwish, 1.0f / 6.0f, 0.5f},
    {"Tanh", Function::kTanh},
    {"Erf", Function::kErf},
    {"Exp", Function::kExp},
    {"Log", Function::kLog},
    {"Softplus", Function::kSoftplus},
    {"Sqrt", Function::kSqrt},
    {"Reciprocal", Function::kReciprocal},
    {"Floor", Function::kFloor},
    {"Ceil", Function::kCeil},
    {"Round", Function::kRound},
    {"Abs", Function::kAbs},
    {"Neg", Function::kNeg},
};

std::unique_ptr<CudaOp> make(const NodeSpec& spec, const Named& named) {
  require_dtype(spec, DType::kF32);
  if (spec.is_constant(0)) spec.unsupported("device cuda: input 0 is a constant");
  return std::make_unique<UnaryOp>(named.function, spec.float_or("alpha", named.alpha),
                                   spec.float_or("beta", named.beta));
}

std::unique_ptr<CudaOp> make_unary(const CudaNode& node) {
  for (const Named& named : kFunctions) {
    if (node.spec.op == named.op) return make(node.spec, named);
  }
  node.spec.invalid("not in the table of unary functions; this is a bug");
}

std::unique_ptr<CudaOp> make_gelu(const CudaNode& node) {
  bool tanh = node.spec.string_or("approximate", "none") == "tanh";
  return make(node.spec, {"Gelu", tanh ? Function::kGeluTanh : Function::kGeluErf});
}

}  // namespace

void register_activation_cuda(CudaRegistry& registry) {
  for (const Named& named : kFunctions) registry.add(named.op, make_unary);
  registry.add("Gelu", make_gelu);
}

}  // namespace headrace::cuda
