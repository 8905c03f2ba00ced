// Products by cuBLASLt, for which a library stands in that computes on the host: when it is used,
// when it is not, and that nothing of it stays behind.
#include <dlfcn.h>

#include "cuda/cublaslt.h"
#include "op_case.h"

namespace headrace::cuda::test {
namespace {

using Use = ProductSettings::Use;

template <class F>
F* in_stand_in(const char* name) {
  static void* library = dlopen(STAND_IN, RTLD_NOW);
  return reinterpret_cast<F*>(dlsym(library, name));
}
int64_t objects() {
  return in_stand_in<int64_t()>("stand_in_objects")();
}
int64_t products() {
  return in_stand_in<int64_t()>("stand_in_products")();
}

// The stand-in behaves like that while this lives.
class Behaviour {
 public:
  explicit Behaviour(const char* words) { set(words); }
  ~Behaviour() { set("sound"); }

 private:
  static void set(const char* words) { in_stand_in<void(const char*)>("stand_in_behave")(words); }
};

ProductSettings settings(Use use, std::vector<std::string> libraries = {STAND_IN}) {
  return {use, std::move(libraries)};
}

struct Layer {
  std::string act = "none";
  std::string precision = "fp32";
  bool residual = false;
  DType x = DType::kF32;
  DType y = DType::kF32;
  bool bias = true;
};

Tensor narrowed(const Tensor& tensor, DType dtype) {
  if (dtype == DType::kF32) return tensor;
  std::vector<BFloat16> narrow;
  for (float value : tensor.values<float>()) narrow.push_back(BFloat16(value));
  return Tensor::of(tensor.shape, narrow);
}

OpCase linear(const Layer& layer = {}, int64_t k = 20, int64_t cols = 33) {
  Attributes attributes{{"activation", layer.act}, {"precision", layer.precision}};
  std::vector<Shape> shapes = {{3, k}, {1, k}, {2, 35, k}};
  OpCase c{node_of("headrace.Linear", 1, attributes, {layer.y}),
           {},
           layer.precision == "fp32" ? 1e-5 : 2e-2};
  Tensors rows;
  for (const Tensor& tensor : randoms(shapes)) rows.push_back(narrowed(tensor, layer.x));
  c.inputs = {per_request(rows), constant(random({k, cols}, 3, 0.2f)),
              layer.bias ? constant(random({cols}, 4)) : absent()};
  if (!layer.residual) return c;
  for (Shape& shape : shapes) shape[shape.rank() - 1] = cols;
  c.inputs.push_back(per_request(randoms(shapes, 60)));
  return c;
}

std::string all_reasons(const DevicePlan& plan) {
  std::string all;
  for (const std::string& reason : plan.products().reasons()) all += reason + "\n";
  return all;
}

void check_contains(const std::string& text, const std::string& part) {
  if (text.find(part) != std::string::npos) return;
  headrace::test::report(__FILE__, __LINE__, "got '", text, "', expected '", part, "' in it");
}

HR_TEST(cuda_library_computes_what_the_cpu_does_with_every_epilogue) {
  int64_t before = products();
  ProductSettings on = settings(Use::kOn);
  for (const Layer& layer : std::vector<Layer>{
           {},
           {.bias = false},
           {.act = "relu"},
           {.act = "gelu_erf", .residual = true},
           {.residual = true, .bias = false},
           {.precision = "bf16"},
           {.act = "gelu_erf", .precision = "bf16", .residual = true},
           {.precision = "bf16", .x = DType::kBF16},
           {.precision = "bf16", .y = DType::kBF16},
       }) {
    check_on_host(linear(layer), on, 1);
  }
  check_on_host(linear({}, 1, 1), on, 1);
  HR_CHECK(products() > before);
}

HR_TEST(cuda_library_computes_convolutions_of_single_pixels) {
  std::vector<Shape> x = {{1, 4, 4, 5}, {3, 2, 7, 5}};
  std::vector<Shape> y = {{1, 4, 4, 70}, {3, 2, 7, 70}};
  Attributes attributes{{"layout", std::string("nhwc")}, {"activation", std::string("relu")}};
  OpCase conv{node_of("headrace.FusedConv", 1, attributes),
              {per_request(randoms(x)), constant(random({70, 5, 1, 1}, 3, 0.2f)),
               constant(random({70}, 4)), per_request(randoms(y, 70))}};
  check_on_host(conv, settings(Use::kOn), 1);
  conv.inputs.pop_back();
  for (const char* other : {"strides", "pads"}) {
    conv.node.attributes = attributes;
    conv.node.attributes[other] = std::vector<int64_t>(other[0] == 's' ? 2 : 4, 2);
    check_on_host(conv, settings(Use::kOn), 0);
  }
  conv.node.attributes = attributes;
  conv.inputs[1] = constant(random({70, 5, 3, 2}, 3, 0.2f));
  conv.inputs[0] = per_request(randoms({{1, 4, 4, 5}}));
  check_on_host(conv, settings(Use::kOn), 0);
}

HR_TEST(cuda_library_is_refused_whose_bits_or_sums_are_not_ours) {
  std::pair<const char*, const char*> wrong[] = {
      {"varies", "20 x 33 in fp32: the bits of a row are others among 1 rows than among 1024"},
      {"rounds", "20 x 33 in fp32: got a sum of "},
      {"refuses", "cublasLtMatmul failed: CUBLAS_STATUS_NOT_SUPPORTED"},
      {"splits", "no algorithm that neither splits k nor needs a workspace"},
      {"reduces", "no algorithm that neither splits k nor needs a workspace"},
      {"scratch", "no algorithm that neither splits k nor needs a workspace"},
      {"", "no algorithm that neither splits k nor needs a workspace"},
  };
  for (auto [words, reason] : wrong) {
    Behaviour behaviour(words);
    check_on_host(linear(), settings(Use::kOn), 0);
    DevicePlan plan(program_of(linear(), true), open_device(0), settings(Use::kAuto));
    HR_CHECK_EQ(plan.products().by_own_kernels(), size_t{1});
    HR_CHECK_EQ(plan.products().version(), "");
    check_contains(all_reasons(plan), reason);
  }
}

HR_TEST(cuda_library_gets_another_chance_with_its_next_algorithm) {
  Behaviour behaviour("splits varies rounds sound refuses");
  check_on_host(linear(), settings(Use::kOn), 1);
}

HR_TEST(cuda_library_that_cannot_be_used_is_an_error_where_it_was_asked_for) {
  struct Case {
    const char* words;
    std::vector<std::string> libraries;
    std::string reason;
  };
  std::vector<Case> cases = {
      {"sound", {"libnowhere.so.13"}, "libnowhere.so.13: cannot open shared object"},
      {"sound", {CRIPPLED_STAND_IN}, "crippled.so: it has no cublasLtMatmul"},
      {"old", {STAND_IN}, "got version 11.9.1, expected 12 or later"},
      {"deviceless", {STAND_IN}, "cublasLtCreate failed: CUBLAS_STATUS_NOT_INITIALIZED"},
      {"sound", {}, "no library to look for was given"},
  };
  for (const Case& c : cases) {
    Behaviour behaviour(c.words);
    std::string message;
    try {
      DevicePlan(program_of(linear(), true), open_device(0), settings(Use::kOn, c.libraries));
    } catch (const Error& error) {
      HR_CHECK(error.kind() == ErrorKind::kBackendUnavailable);
      message = error.what();
    }
    check_contains(message, c.reason);
    DevicePlan plan(program_of(linear(), true), open_device(0), settings(Use::kAuto, c.libraries));
    HR_CHECK_EQ(plan.products().by_own_kernels(), size_t{1});
    check_contains(all_reasons(plan), c.reason);
  }
}

HR_TEST(cuda_library_is_the_first_that_can_be_used) {
  std::vector<std::string> libraries = {"libnowhere.so.13", CRIPPLED_STAND_IN, STAND_IN};
  DevicePlan plan(program_of(linear(), true), open_device(0), settings(Use::kAuto, libraries));
  HR_CHECK_EQ(plan.products().by_library(), size_t{1});
  HR_CHECK_EQ(plan.products().version(), "13.2.3");
  HR_CHECK(plan.products().reasons().empty());
}

HR_TEST(cuda_library_is_left_alone_where_it_is_off_or_of_no_use) {
  int64_t before = products();
  DevicePlan off(program_of(linear(), true), open_device(0), settings(Use::kOff));
  HR_CHECK_EQ(objects(), int64_t{0});
  HR_CHECK_EQ(off.products().by_own_kernels(), size_t{1});
  OpCase relu{node_of("Relu", 14), {per_request(randoms({{3, 4}}))}};
  DevicePlan without(program_of(relu, true), open_device(0), settings(Use::kAuto));
  HR_CHECK_EQ(objects(), int64_t{0});
  HR_CHECK(without.products().reasons().empty());
  HR_CHECK_EQ(products(), before);
}

HR_TEST(cuda_library_is_tried_out_once_per_shape) {
  std::shared_ptr<Device> device = open_device(0);
  Products choosing(device, settings(Use::kOn));
  DeviceMemory weight(device, 8 * 8 * int64_t{sizeof(float)});
  ProductShape shape{8, 8, false, false};
  auto first = choosing.make(shape, weight.data(), nullptr);
  int64_t tried = products();
  auto second = choosing.make(shape, weight.data(), nullptr);
  HR_CHECK(first != nullptr && second != nullptr);
  HR_CHECK_EQ(products(), tried);
  shape.bf16 = true;
  HR_CHECK(choosing.make(shape, weight.data(), nullptr) != nullptr);
  HR_CHECK(products() > tried);
}

HR_TEST(cuda_library_leaves_nothing_behind) {
  {
    DevicePlan plan(program_of(linear(), true), open_device(0), settings(Use::kOn));
    HR_CHECK(objects() > 0);
  }
  HR_CHECK_EQ(objects(), int64_t{0});
  OpCase int8 = linear();  // the Plan is refused after its library was opened
  int8.node.attributes["precision"] = std::string("int8");
  bool refused = false;
  try {
    DevicePlan(program_of(int8, true), open_device(0), settings(Use::kOn));
  } catch (const RefusedOps&) {
    refused = true;
  }
  HR_CHECK(refused);
  HR_CHECK_EQ(objects(), int64_t{0});
}

}  // namespace
}  // namespace headrace::cuda::test
