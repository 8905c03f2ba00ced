#include <cmath>
#include <cstring>
#include <vector>

#include "check.h"
#include "core/cpu.h"
#include "linear_cases.h"
#include "runtime/plan.h"

namespace headrace {
namespace {

using test::make_op;
using test::random_tensor;
using test::run_one;
using test::run_op;
using test::Tensor;
using test::Tensors;

double activate(const std::string& name, double x) {
  if (name == "relu") return std::max(x, 0.0);
  if (name == "gelu_erf") return x * 0.5 * (1 + std::erf(x / std::sqrt(2.0)));
  if (name == "gelu_tanh") {
    return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
  }
  if (name == "sigmoid") return 1 / (1 + std::exp(-x));
  if (name == "tanh") return std::tanh(x);
  if (name == "silu") return x / (1 + std::exp(-x));
  return x;
}

// Y = act(X * W + bias) + residual in double precision.
std::vector<double> linear_in_double(const Tensors& in, const std::string& activation) {
  int64_t k = in[1].shape[0];
  int64_t n = in[1].shape[1];
  std::vector<float> x = in[0].values<float>(), w = in[1].values<float>(),
                     bias = in[2].values<float>(), residual = in[3].values<float>();
  int64_t rows = static_cast<int64_t>(x.size()) / k;
  std::vector<double> y;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < n; ++c) {
      double sum = bias.empty() ? 0.0 : bias[static_cast<size_t>(c)];
      for (int64_t i = 0; i < k; ++i) {
        sum += double{x[static_cast<size_t>(r * k + i)]} * w[static_cast<size_t>(i * n + c)];
      }
      sum = activate(activation, sum);
      y.push_back(residual.empty() ? sum : sum + residual[static_cast<size_t>(r * n + c)]);
    }
  }
  return y;
}

void check_near(const Tensor& got, const std::vector<double>& expected, double tolerance) {
  std::vector<float> values = got.values<float>();
  HR_CHECK_EQ(values.size(), expected.size());
  for (size_t i = 0; i < values.size() && i < expected.size(); ++i) {
    HR_CHECK_NEAR(values[i], expected[i], tolerance);
  }
}

HR_TEST(linear_agrees_with_double_precision) {
  struct Case {
    int64_t rows, k, n;
  };
  const Case cases[] = {{1, 1, 1},   {1, 7, 130},   {2, 385, 65},  {3, 400, 129}, {5, 64, 31},
                        {13, 9, 33}, {15, 800, 32}, {29, 384, 40}, {100, 33, 47}};
  for (Isa isa : available_isas()) {
    for (const Case& c : cases) {
      for (std::string activation :
           {"none", "relu", "gelu_erf", "gelu_tanh", "sigmoid", "tanh", "silu"}) {
        Tensors in = {random_tensor({c.rows, c.k}, 1), random_tensor({c.k, c.n}, 2),
                      random_tensor({c.n}, 3), random_tensor({c.rows, c.n}, 4)};
        auto op = make_op(isa, "headrace.Linear", in, {1, 2}, {{"activation", activation}});
        check_near(run_one(*op, {DType::kF32}, in)[0], linear_in_double(in, activation), 1e-4);
      }
    }
  }
}

HR_TEST(linear_takes_optional_inputs_leading_dims_and_empty_batches) {
  for (Isa isa : available_isas()) {
    Tensors in = {random_tensor({2, 3, 20}, 1), random_tensor({20, 10}, 2), Tensor{}, Tensor{}};
    auto op = make_op(isa, "headrace.Linear", in, {1});
    Tensor y = run_one(*op, {DType::kF32}, in)[0];
    HR_CHECK_EQ(to_string(y.shape), "[2, 3, 10]");
    check_near(y, linear_in_double(in, "none"), 1e-5);
    in[0] = random_tensor({20}, 1);
    HR_CHECK_EQ(to_string(run_one(*op, {DType::kF32}, in)[0].shape), "[10]");
    in[0] = random_tensor({0, 20}, 1);
    HR_CHECK_EQ(to_string(run_one(*op, {DType::kF32}, in)[0].shape), "[0, 10]");
  }
}

// A row's bits are the same alone, among any other rows, at any place and with any thread count.
HR_TEST(linear_bits_of_a_row_depend_on_the_row_alone) {
  const int64_t k = 401, n = 77;
  Tensor w = random_tensor({k, n}, 2), bias = random_tensor({n}, 3);
  std::vector<float> rows = random_tensor({1000, k}, 4).values<float>();
  auto slice = [&](int64_t begin, int64_t count) {
    auto first = rows.begin() + begin * k;
    return Tensor::of<float>({count, k}, {first, first + count * k});
  };
  for (Isa isa : available_isas()) {
    Tensors constants = {slice(0, 1), w, bias};
    auto op = make_op(isa, "headrace.Linear", constants, {1, 2}, {{"activation", "gelu_erf"}});
    std::vector<float> alone;
    for (int64_t r = 0; r < 1000; ++r) {
      std::vector<float> y = run_one(*op, {DType::kF32}, {slice(r, 1), w, bias})[0].values<float>();
      alone.insert(alone.end(), y.begin(), y.end());
    }
    for (int64_t count = 1; count <= 1000; count = count < 40 ? count + 1 : count * 2 + 1) {
      for (int threads : {1, 2, 5}) {
        int64_t begin = (count * 37) % (1001 - count);
        Tensor y = run_one(*op, {DType::kF32}, {slice(begin, count), w, bias}, threads)[0];
        HR_CHECK(std::memcmp(y.bytes.data(), alone.data() + begin * n, y.bytes.size()) == 0);
      }
    }
  }
}

HR_TEST(linear_bits_do_not_depend_on_the_batch) {
  Tensor w = random_tensor({64, 96}, 2);
  for (Isa isa : available_isas()) {
    std::vector<Tensors> requests;
    for (int64_t r = 0; r < 9; ++r) {
      auto seed = static_cast<uint32_t>(r);
      requests.push_back(
          {random_tensor({r * 5, 64}, seed), w, Tensor{}, random_tensor({r * 5, 96}, seed + 50)});
    }
    auto op = make_op(isa, "headrace.Linear", requests[0], {1});
    std::vector<Tensors> together = run_op(*op, {DType::kF32}, requests, 3);
    for (size_t r = 0; r < requests.size(); ++r) {
      Tensor alone = run_one(*op, {DType::kF32}, requests[r])[0];
      HR_CHECK(alone.bytes == together[r][0].bytes);
    }
  }
}

// In a Plan the second Linear writes over its residual.
HR_TEST(linear_may_overwrite_its_residual) {
  Tensors in = {random_tensor({50, 48}, 1), random_tensor({48, 70}, 2), Tensor{},
                random_tensor({50, 70}, 4)};
  for (Isa isa : available_isas()) {
    Tensor expected = run_one(*make_op(isa, "headrace.Linear", in, {1}), {DType::kF32}, in)[0];
    ProgramBuilder builder(isa);
    ValueId x = builder.add_input({.name = "x", .dtype = DType::kF32, .dims = {{}, {}}});
    ValueId one = builder.add_input({.name = "one", .dtype = DType::kF32, .dims = {{}, {}}});
    ValueId w = builder.add_constant("w", in[1].view(), nullptr);
    ValueId r = builder.add_constant("r", in[3].view(), nullptr);
    auto linear = [&](std::vector<ValueId> inputs) {
      NodeSpec node;
      node.op = "headrace.Linear";
      node.output_dtypes = {DType::kF32};
      return builder.add_op(std::move(node), inputs, {"y"})[0];
    };
    ValueId residual = linear({one, r});  // identity times r
    ValueId y = linear({x, w, kAbsent, residual});
    builder.add_output({.name = "y", .dtype = DType::kF32, .dims = {{}, {}}}, y);
    Program program = builder.finish();
    HR_CHECK_EQ(program.steps[1].overwrites, 3);
    Plan plan(std::move(program), 2);
    std::vector<float> identity(50 * 50, 0.0f);
    for (size_t i = 0; i < 50; ++i) identity[i * 51] = 1.0f;
    Tensor ones = Tensor::of<float>({50, 50}, identity);
    ConstTensorView inputs[] = {in[0].view(), ones.view()};
    RequestInputs request(inputs);
    Run run = plan.run({&request, 1});
    HR_CHECK(std::memcmp(run.output(0, 0).data, expected.bytes.data(), expected.bytes.size()) == 0);
  }
}

HR_TEST(linear_refuses_what_does_not_fit) {
  Isa isa = Isa::kReference;
  Tensors in = {random_tensor({2, 20}, 1), random_tensor({20, 10}, 2), Tensor{},
                random_tensor({2, 9}, 3)};
  HR_CHECK_THROWS(run_one(*make_op(isa, "headrace.Linear", in, {1}), {DType::kF32}, in), Error);
  in[3] = Tensor{};
  in[0] = random_tensor({2, 21}, 1);
  HR_CHECK_THROWS(run_one(*make_op(isa, "headrace.Linear", in, {1}), {DType::kF32}, in), Error);
  HR_CHECK_THROWS(make_op(isa, "headrace.Linear", in, {}), Error);
  HR_CHECK_THROWS(make_op(isa, "headrace.Linear", in, {1}, {{"activation", "mish"}}), Error);
}

// numpy.matmul for operands of rank 2 or more, dims of b's batch being 1 or a's.
template <class T>
std::vector<double> matmul_in_double(const Tensor& a, const Tensor& b, bool b_batched) {
  int64_t m = a.shape[a.shape.rank() - 2], k = a.shape[a.shape.rank() - 1];
  int64_t n = b.shape[b.shape.rank() - 1];
  std::vector<T> x = a.values<T>(), y = b.values<T>();
  std::vector<double> c;
  for (int64_t batch = 0; batch * m * k < a.shape.elements(); ++batch) {
    const T* left = x.data() + batch * m * k;
    const T* right = y.data() + (b_batched ? batch * k * n : 0);
    for (int64_t r = 0; r < m; ++r) {
      for (int64_t j = 0; j < n; ++j) {
        double sum = 0;
        for (int64_t i = 0; i < k; ++i) {
          sum += static_cast<double>(left[r * k + i]) * static_cast<double>(right[i * n + j]);
        }
        c.push_back(sum);
      }
    }
  }
  return c;
}

HR_TEST(matmul_broadcasts_and_agrees_with_double_precision) {
  for (Isa isa : available_isas()) {
    for (int threads : {1, 3}) {
      Tensor a = random_tensor({2, 3, 37, 50}, 1);
      for (bool batched : {false, true}) {
        Tensor b = batched ? random_tensor({2, 3, 50, 45}, 2) : random_tensor({1, 50, 45}, 2);
        auto op = make_op(isa, "MatMul", {a, b}, {});
        Tensor y = run_one(*op, {DType::kF32}, {a, b}, threads)[0];
        HR_CHECK_EQ(to_string(y.shape), "[2, 3, 37, 45]");
        check_near(y, matmul_in_double<float>(a, b, batched), 1e-5);
      }
      Tensor big = random_tensor({300, 401}, 3), wide = random_tensor({401, 500}, 4);
      auto op = make_op(isa, "MatMul", {big, wide}, {});
      auto packed = make_op(isa, "MatMul", {big, wide}, {1});
      Tensor y = run_one(*op, {DType::kF32}, {big, wide}, threads)[0];
      check_near(y, matmul_in_double<float>(big, wide, false), 1e-4);
      // Constant or not, an element is the same chain.
      HR_CHECK(y.bytes == run_one(*packed, {DType::kF32}, {big, wide}, threads)[0].bytes);
    }
  }
}

HR_TEST(matmul_takes_vectors_and_empty_operands) {
  Isa isa = available_isas().back();
  auto shape_of = [&](Shape a, Shape b) {
    Tensors in = {random_tensor(a, 1), random_tensor(b, 2)};
    return to_string(run_one(*make_op(isa, "MatMul", in, {}), {DType::kF32}, in)[0].shape);
  };
  HR_CHECK_EQ(shape_of({5}, {5}), "[]");
  HR_CHECK_EQ(shape_of({5}, {5, 3}), "[3]");
  HR_CHECK_EQ(shape_of({2, 4, 5}, {5}), "[2, 4]");
  HR_CHECK_EQ(shape_of({5}, {7, 5, 2}), "[7, 2]");
  HR_CHECK_EQ(shape_of({0, 5}, {5, 3}), "[0, 3]");
  HR_CHECK_EQ(shape_of({2, 0}, {0, 3}), "[2, 3]");
  HR_CHECK_THROWS(shape_of({2, 3}, {4, 2}), Error);
  HR_CHECK_THROWS(shape_of({}, {4, 2}), Error);
  Tensors in = {random_tensor({2, 0}, 1), random_tensor({0, 3}, 2)};
  Tensor y = run_one(*make_op(isa, "MatMul", in, {}), {DType::kF32}, in)[0];
  HR_CHECK(y.values<float>() == std::vector<float>(6, 0.0f));
}

HR_TEST(matmul_wraps_integers_as_numpy_does) {
  Tensor a = Tensor::of<int32_t>({1, 2}, {INT32_MAX, 3});
  Tensor b = Tensor::of<int32_t>({2, 2}, {2, -1, 5, 7});
  auto op = make_op(Isa::kReference, "MatMul", {a, b}, {});
  std::vector<int32_t> y = run_one(*op, {DType::kI32}, {a, b})[0].values<int32_t>();
  HR_CHECK(y == (std::vector<int32_t>{13, -INT32_MAX + 21}));
  Tensor c = Tensor::of<double>({2, 2}, {1.5, 2.5, -1.0, 4.0});
  auto wide = make_op(Isa::kReference, "MatMul", {c, c}, {});
  std::vector<double> z = run_one(*wide, {DType::kF64}, {c, c})[0].values<double>();
  HR_CHECK(z == (std::vector<double>{-0.25, 13.75, -5.5, 13.5}));
}

HR_TEST(matmul_bits_do_not_depend_on_the_batch) {
  for (Isa isa : available_isas()) {
    std::vector<Tensors> requests;
    for (int64_t r = 0; r < 7; ++r) {
      auto seed = static_cast<uint32_t>(r);
      requests.push_back({random_tensor({2, r * 9, 70}, seed), random_tensor({2, 70, 40}, seed)});
    }
    auto op = make_op(isa, "MatMul", requests[0], {});
    for (int threads : {1, 2, 4}) {
      std::vector<Tensors> together = run_op(*op, {DType::kF32}, requests, threads);
      for (size_t r = 0; r < requests.size(); ++r) {
        Tensor alone = run_one(*op, {DType::kF32}, requests[r])[0];
        HR_CHECK(alone.bytes == together[r][0].bytes);
      }
    }
  }
}

// alpha * A' * B' + beta * C, with C's strides over Y given.
template <class T>
std::vector<double> gemm_in_double(const Tensors& in, bool transpose_a, bool transpose_b,
                                   double alpha, double beta, int64_t c_row, int64_t c_col) {
  std::vector<T> a = in[0].values<T>(), b = in[1].values<T>(), c = in[2].values<T>();
  int64_t m = in[0].shape[transpose_a ? 1 : 0], k = in[0].shape[transpose_a ? 0 : 1];
  int64_t n = in[1].shape[transpose_b ? 0 : 1];
  std::vector<double> y;
  for (int64_t r = 0; r < m; ++r) {
    for (int64_t j = 0; j < n; ++j) {
      double sum = 0;
      for (int64_t i = 0; i < k; ++i) {
        sum += double{a[static_cast<size_t>(transpose_a ? i * m + r : r * k + i)]} *
               b[static_cast<size_t>(transpose_b ? j * k + i : i * n + j)];
      }
      y.push_back(alpha * sum +
                  (c.empty() ? 0.0 : beta * c[static_cast<size_t>(r * c_row + j * c_col)]));
    }
  }
  return y;
}

HR_TEST(gemm_agrees_with_double_precision) {
  struct C {
    Shape shape;
    int64_t row, col;
  };
  const int64_t m = 21, k = 43, n = 39;
  const C cs[] = {{{m, n}, n, 1}, {{n}, 0, 1}, {{1, n}, 0, 1}, {{m, 1}, 1, 0}, {{}, 0, 0}};
  for (Isa isa : available_isas()) {
    for (int flags = 0; flags < 8; ++flags) {
      bool transpose_a = flags & 1, transpose_b = flags & 2, constant = flags & 4;
      for (const C& c : cs) {
        Tensors in = {random_tensor(transpose_a ? Shape{k, m} : Shape{m, k}, 1),
                      random_tensor(transpose_b ? Shape{n, k} : Shape{k, n}, 2),
                      random_tensor(c.shape, 3)};
        std::vector<size_t> constants;
        if (constant) constants = {1, 2};
        auto op = make_op(isa, "Gemm", in, constants,
                          {{"alpha", 0.5},
                           {"beta", 2.0},
                           {"transA", int64_t{transpose_a}},
                           {"transB", int64_t{transpose_b}}});
        check_near(run_one(*op, {DType::kF32}, in, 2)[0],
                   gemm_in_double<float>(in, transpose_a, transpose_b, 0.5, 2.0, c.row, c.col),
                   1e-5);
      }
    }
  }
}

HR_TEST(gemm_takes_other_dtypes_and_refuses_bad_shapes) {
  Tensors in = {Tensor::of<double>({2, 1}, {1.5, -2.0}), Tensor::of<double>({1, 2}, {4.0, 3.0}),
                Tensor::of<double>({2}, {0.25, 1.0})};
  auto op = make_op(Isa::kReference, "Gemm", in, {}, {{"beta", 2.0}});
  std::vector<double> y = run_one(*op, {DType::kF64}, in)[0].values<double>();
  HR_CHECK(y == gemm_in_double<double>(in, false, false, 1.0, 2.0, 0, 1));
  Tensors bad = {random_tensor({2, 3}, 1), random_tensor({3, 4}, 2), random_tensor({5}, 3)};
  HR_CHECK_THROWS(run_one(*make_op(Isa::kReference, "Gemm", bad, {}), {DType::kF32}, bad), Error);
  bad[1] = random_tensor({2, 4}, 2);
  HR_CHECK_THROWS(run_one(*make_op(Isa::kReference, "Gemm", bad, {}), {DType::kF32}, bad), Error);
}

// The product of integers less their zero points, which numpy gives for the same numbers.
HR_TEST(quantized_matmuls_subtract_zero_points_and_saturate) {
  Tensors in = {Tensor::of<uint8_t>({2, 2}, {11, 7, 3, 250}),
                Tensor::of<int8_t>({2, 2}, {1, -4, 2, 5}), Tensor::of<uint8_t>({2}, {12, 3}),
                Tensor::of<int8_t>({}, {1})};
  auto op = make_op(Isa::kReference, "MatMulInteger", in, {});
  std::vector<int32_t> sums = run_one(*op, {DType::kI32}, in)[0].values<int32_t>();
  HR_CHECK(sums == (std::vector<int32_t>{-5, -15, 247, 988}));
  Tensor scale = Tensor::of<float>({}, {0.5f});
  Tensors linear = {in[0], scale, in[2], in[1], scale, in[3], scale, Tensor::of<int8_t>({}, {1})};
  auto quantized = make_op(Isa::kReference, "QLinearMatMul", linear, {});
  std::vector<int8_t> y = run_one(*quantized, {DType::kI8}, linear)[0].values<int8_t>();
  HR_CHECK(y == (std::vector<int8_t>{-1, -7, 125, 127}));  // -2.5 and -7.5 round to even
}

HR_TEST(einsum_reads_its_equation) {
  Tensor a = Tensor::of<float>({2, 2}, {1, 2, 3, 4}), b = Tensor::of<float>({2, 2}, {5, 6, 7, 8});
  auto run = [&](const std::string& equation, const Tensors& in) {
    auto op = make_op(Isa::kReference, "Einsum", in, {}, {{"equation", equation}});
    return run_one(*op, {DType::kF32}, in)[0].values<float>();
  };
  using Floats = std::vector<float>;
  HR_CHECK(run("ij, jk -> ik", {a, b}) == (Floats{19, 22, 43, 50}));
  HR_CHECK(run("ij,jk", {a, b}) == (Floats{19, 22, 43, 50}));
  HR_CHECK(run("ii", {a}) == (Floats{5}));
  HR_CHECK(run("ba", {a}) == (Floats{1, 3, 2, 4}));
  HR_CHECK(run("...i->...", {a}) == (Floats{3, 7}));
  HR_CHECK(run("...ij,...jk->...ik", {Tensor::of<float>({1, 2, 2}, {1, 2, 3, 4}), b}) ==
           (Floats{19, 22, 43, 50}));
  HR_CHECK_THROWS(run("ij,jk->iz", {a, b}), Error);
  HR_CHECK_THROWS(run("ijk", {a}), Error);
}

}  // namespace
}  // namespace headrace
