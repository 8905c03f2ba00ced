#include <cfloat>
#include <cmath>
#include <functional>
#include <limits>
#include <random>

#include "check.h"
#include "op_harness.h"

namespace headrace {
namespace {

using test::Tensor;
using test::Tensors;

constexpr float kInf = std::numeric_limits<float>::infinity();

struct Sizes {
  int64_t batch, heads, kv_heads, queries, keys, dim;
};

NodeSpec attention(const Sizes& sizes, std::string layout, DType mask, Isa isa) {
  NodeSpec spec;
  spec.op = "headrace.Attention";
  spec.name = "node";
  spec.opset = 1;
  spec.attributes["num_heads"] = sizes.heads;
  spec.attributes["kv_heads"] = sizes.kv_heads;
  spec.attributes["scale"] = 1.0 / std::sqrt(static_cast<double>(sizes.dim));
  spec.attributes["layout"] = layout;
  DType operand = layout == "qkv" ? DType::kNone : DType::kF32;
  spec.input_dtypes = {DType::kF32, operand, operand, mask};
  spec.output_dtypes = {DType::kF32};
  spec.constants.resize(4);
  spec.isa = isa;
  return spec;
}

Tensor random_tensor(const Shape& shape, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, 1.0f);
  std::vector<float> values(static_cast<size_t>(shape.elements()));
  for (float& value : values) value = normal(random);
  return Tensor::of<float>(shape, values);
}

// Element (b, h, s, d) of a tensor of either layout.
using At = std::function<double(int64_t b, int64_t h, int64_t s, int64_t d)>;
using MaskAt = std::function<double(int64_t b, int64_t h, int64_t q, int64_t k)>;

At at_bhsd(const Tensor& tensor) {
  return [shape = tensor.shape, x = tensor.values<float>()](int64_t b, int64_t h, int64_t s,
                                                            int64_t d) {
    return x[static_cast<size_t>(((b * shape[1] + h) * shape[2] + s) * shape[3] + d)];
  };
}

At at_bsd(const Tensor& tensor, int64_t dim, int64_t offset = 0) {
  return [shape = tensor.shape, x = tensor.values<float>(), dim, offset](int64_t b, int64_t h,
                                                                         int64_t s, int64_t d) {
    return x[static_cast<size_t>((b * shape[1] + s) * shape[2] + offset + h * dim + d)];
  };
}

MaskAt mask_at(const Tensor& mask) {
  return [mask](int64_t b, int64_t h, int64_t q, int64_t k) {
    int64_t index[4] = {b, h, q, k};
    int64_t at = 0;
    for (int i = 0; i < mask.shape.rank(); ++i) {
      int64_t dim = mask.shape[i];
      at = at * dim + (dim == 1 ? 0 : index[4 - mask.shape.rank() + i]);
    }
    if (mask.dtype == DType::kF32) {
      return static_cast<double>(mask.values<float>()[static_cast<size_t>(at)]);
    }
    return mask.bytes[static_cast<size_t>(at)] != std::byte{0} ? 0.0 : static_cast<double>(-kInf);
  };
}

void check_attention(const Sizes& s, const At& q, const At& k, const At& v, const MaskAt& mask,
                     const At& got) {
  for (int64_t b = 0; b < s.batch; ++b) {
    for (int64_t h = 0; h < s.heads; ++h) {
      int64_t kv = h / (s.heads / s.kv_heads);
      for (int64_t i = 0; i < s.queries; ++i) {
        std::vector<double> p(static_cast<size_t>(s.keys));
        double max = -INFINITY;
        for (int64_t j = 0; j < s.keys; ++j) {
          double score = 0;
          for (int64_t d = 0; d < s.dim; ++d) score += q(b, h, i, d) * k(b, kv, j, d);
          auto at = static_cast<size_t>(j);
          p[at] = score / std::sqrt(static_cast<double>(s.dim)) + (mask ? mask(b, h, i, j) : 0.0);
          max = std::fmax(max, p[at]);
        }
        double sum = 0;
        for (double& value : p) sum += value = std::exp(value - max);
        for (int64_t d = 0; d < s.dim; ++d) {
          double expected = 0;
          for (int64_t j = 0; j < s.keys; ++j) {
            expected += p[static_cast<size_t>(j)] / sum * v(b, kv, j, d);
          }
          HR_CHECK_NEAR(got(b, h, i, d), expected, 2e-6);
        }
      }
    }
  }
}

const Sizes kSizes[] = {
    {1, 1, 1, 1, 1, 1},   {1, 2, 2, 3, 5, 4},     {2, 3, 3, 16, 16, 32}, {1, 2, 2, 33, 33, 20},
    {1, 2, 1, 7, 129, 8}, {2, 4, 2, 17, 300, 64}, {1, 1, 1, 31, 13, 80}, {1, 6, 2, 1, 257, 33},
};

HR_TEST(attention_matches_its_formula_in_every_layout) {
  for (Isa isa : available_isas()) {
    for (const Sizes& s : kSizes) {
      Tensors bhsd{random_tensor({s.batch, s.heads, s.queries, s.dim}, 1),
                   random_tensor({s.batch, s.kv_heads, s.keys, s.dim}, 2),
                   random_tensor({s.batch, s.kv_heads, s.keys, s.dim}, 3), Tensor{}};
      auto op = OpRegistry::global().make(attention(s, "bhsd", DType::kNone, isa));
      Tensor out = test::run_one(*op, {DType::kF32}, bhsd)[0];
      HR_CHECK(out.shape == bhsd[0].shape);
      check_attention(s, at_bhsd(bhsd[0]), at_bhsd(bhsd[1]), at_bhsd(bhsd[2]), nullptr,
                      at_bhsd(out));

      Tensors bsd{random_tensor({s.batch, s.queries, s.heads * s.dim}, 1),
                  random_tensor({s.batch, s.keys, s.kv_heads * s.dim}, 2),
                  random_tensor({s.batch, s.keys, s.kv_heads * s.dim}, 3), Tensor{}};
      op = OpRegistry::global().make(attention(s, "bsd", DType::kNone, isa));
      out = test::run_one(*op, {DType::kF32}, bsd)[0];
      HR_CHECK(out.shape == bsd[0].shape);
      check_attention(s, at_bsd(bsd[0], s.dim), at_bsd(bsd[1], s.dim), at_bsd(bsd[2], s.dim),
                      nullptr, at_bsd(out, s.dim));

      Sizes self{s.batch, s.heads, s.heads, s.queries, s.queries, s.dim};
      int64_t width = s.heads * s.dim;
      Tensor qkv = random_tensor({s.batch, s.queries, 3 * width}, 4);
      op = OpRegistry::global().make(attention(self, "qkv", DType::kNone, isa));
      out = test::run_one(*op, {DType::kF32}, {qkv, Tensor{}, Tensor{}, Tensor{}})[0];
      HR_CHECK(out.shape == (Shape{s.batch, s.queries, width}));
      check_attention(self, at_bsd(qkv, s.dim), at_bsd(qkv, s.dim, width),
                      at_bsd(qkv, s.dim, 2 * width), nullptr, at_bsd(out, s.dim));
    }
  }
}

Tensor bool_tensor(const Shape& shape, unsigned seed) {
  std::mt19937 random(seed);
  Tensor tensor{DType::kBool, shape, std::vector<std::byte>(static_cast<size_t>(shape.elements()))};
  for (std::byte& value : tensor.bytes) value = std::byte{random() % 3 != 0};
  tensor.bytes[0] = std::byte{1};
  return tensor;
}

HR_TEST(attention_adds_masks_of_every_shape) {
  Sizes s{2, 3, 3, 19, 150, 16};
  Tensors inputs{random_tensor({2, 3, 19, 16}, 1), random_tensor({2, 3, 150, 16}, 2),
                 random_tensor({2, 3, 150, 16}, 3), Tensor{}};
  const Shape shapes[] = {{},
                          {150},
                          {19, 1},
                          {19, 150},
                          {3, 1, 1},
                          {2, 1, 1, 150},
                          {1, 3, 19, 150},
                          {2, 1, 19, 150},
                          {2, 3, 19, 150}};
  for (Isa isa : available_isas()) {
    for (const Shape& shape : shapes) {
      for (DType dtype : {DType::kF32, DType::kBool}) {
        bool rows_differ = shape.elements() >= 150;
        if (dtype == DType::kBool && !rows_differ) continue;  // would exclude whole rows
        inputs[3] = dtype == DType::kF32 ? random_tensor(shape, 5) : bool_tensor(shape, 5);
        auto op = OpRegistry::global().make(attention(s, "bhsd", dtype, isa));
        Tensor out = test::run_one(*op, {DType::kF32}, inputs)[0];
        check_attention(s, at_bhsd(inputs[0]), at_bhsd(inputs[1]), at_bhsd(inputs[2]),
                        mask_at(inputs[3]), at_bhsd(out));
      }
    }
  }
}

HR_TEST(attention_with_a_mask_of_zeros_gives_the_bits_of_none) {
  Sizes s{1, 2, 2, 40, 40, 32};
  Tensor qkv = random_tensor({1, 40, 192}, 1);
  for (Isa isa : available_isas()) {
    auto plain = OpRegistry::global().make(attention(s, "qkv", DType::kNone, isa));
    auto masked = OpRegistry::global().make(attention(s, "qkv", DType::kF32, isa));
    Tensor zeros = Tensor::of<float>({1, 1, 1, 40}, std::vector<float>(40, 0.0f));
    HR_CHECK(test::run_one(*plain, {DType::kF32}, {qkv, {}, {}, {}})[0].bytes ==
             test::run_one(*masked, {DType::kF32}, {qkv, {}, {}, zeros})[0].bytes);
  }
}

HR_TEST(attention_of_excluded_keys) {
  Sizes s{1, 1, 1, 2, 3, 4};
  Tensors inputs{random_tensor({1, 1, 2, 4}, 1), random_tensor({1, 1, 3, 4}, 2),
                 random_tensor({1, 1, 3, 4}, 3), Tensor{}};
  std::vector<float> v = inputs[2].values<float>();
  for (Isa isa : available_isas()) {
    NodeSpec spec = attention(s, "bhsd", DType::kF32, isa);
    auto run = [&](std::vector<float> mask, bool guard) {
      spec.attributes["guard_nan"] = int64_t{guard};
      inputs[3] = Tensor::of<float>({2, 3}, mask);
      auto op = OpRegistry::global().make(spec);
      return test::run_one(*op, {DType::kF32}, inputs)[0].values<float>();
    };
    // Query 0 has nothing left, query 1 only key 2, whose value it gets exactly.
    std::vector<float> excluded{-kInf, -kInf, -kInf, -kInf, -FLT_MAX, 0.0f};
    for (bool guard : {false, true}) {
      std::vector<float> out = run(excluded, guard);
      for (size_t d = 0; d < 4; ++d) {
        HR_CHECK(guard ? out[d] == 0.0f : std::isnan(out[d]));
        HR_CHECK_EQ(out[4 + d], v[8 + d]);
      }
    }
    // Lowest everywhere is a mask that swallows the scores, not one that excludes.
    std::vector<float> out = run(std::vector<float>(6, -FLT_MAX), true);
    for (size_t d = 0; d < 4; ++d) {
      double mean = (static_cast<double>(v[d]) + v[4 + d] + v[8 + d]) / 3;
      HR_CHECK_NEAR(out[d], mean, 1e-6);
    }
  }
}

HR_TEST(attention_bits_do_not_depend_on_the_batch) {
  for (Isa isa : available_isas()) {
    Sizes s{0, 4, 4, 0, 0, 32};
    auto op = OpRegistry::global().make(attention(s, "qkv", DType::kF32, isa));
    std::vector<Tensors> requests;
    for (int64_t length : {5, 1, 0, 140, 33, 64, 16}) {
      requests.push_back({random_tensor({1, length, 384}, static_cast<unsigned>(length)), Tensor{},
                          Tensor{}, random_tensor({1, 1, 1, length}, 9)});
    }
    std::vector<Tensors> together = test::run_op(*op, {DType::kF32}, requests, 3);
    for (size_t r = 0; r < requests.size(); ++r) {
      HR_CHECK(together[r][0].bytes == test::run_one(*op, {DType::kF32}, requests[r])[0].bytes);
    }
    // Nor does a query's result depend on the queries around it: the first 5 of 140 alone.
    auto split = OpRegistry::global().make(attention(s, "bhsd", DType::kNone, isa));
    Tensors all{random_tensor({1, 4, 1, 32}, 1), random_tensor({1, 4, 140, 32}, 2),
                random_tensor({1, 4, 140, 32}, 3), Tensor{}};
    std::vector<float> one = all[0].values<float>();
    std::vector<float> many;
    for (size_t h = 0; h < 4; ++h) {
      for (int copy = 0; copy < 50; ++copy) {
        many.insert(many.end(), one.begin() + static_cast<long>(h * 32),
                    one.begin() + static_cast<long>(h * 32 + 32));
      }
    }
    std::vector<float> alone = test::run_one(*split, {DType::kF32}, all)[0].values<float>();
    all[0] = Tensor::of<float>({1, 4, 50, 32}, many);
    std::vector<float> among = test::run_one(*split, {DType::kF32}, all)[0].values<float>();
    for (size_t i = 0; i < among.size(); ++i) {
      HR_CHECK_EQ(among[i], alone[i / (50 * 32) * 32 + i % 32]);
    }
  }
}

HR_TEST(attention_without_keys_is_zero) {
  Sizes s{1, 1, 1, 2, 0, 4};
  auto op = OpRegistry::global().make(attention(s, "bhsd", DType::kNone, available_isas().back()));
  Tensor out = test::run_one(*op, {DType::kF32},
                             {random_tensor({1, 1, 2, 4}, 1), random_tensor({1, 1, 0, 4}, 1),
                              random_tensor({1, 1, 0, 4}, 1), Tensor{}})[0];
  HR_CHECK(out.values<float>() == std::vector<float>(8, 0.0f));
}

HR_TEST(attention_refuses_what_does_not_fit) {
  Isa isa = available_isas().back();
  Sizes s{1, 2, 2, 3, 3, 4};
  auto op = OpRegistry::global().make(attention(s, "bhsd", DType::kF32, isa));
  auto run = [&](Shape q, Shape k, Shape v, Shape mask) {
    return test::run_one(
        *op, {DType::kF32},
        {random_tensor(q, 1), random_tensor(k, 1), random_tensor(v, 1), random_tensor(mask, 1)});
  };
  HR_CHECK_EQ(run({1, 2, 3, 4}, {1, 2, 3, 4}, {1, 2, 3, 4}, {3}).size(), 1u);
  HR_CHECK_THROWS(run({1, 3, 3, 4}, {1, 3, 3, 4}, {1, 3, 3, 4}, {3}), Error);
  HR_CHECK_THROWS(run({1, 2, 3, 4}, {1, 2, 3, 5}, {1, 2, 3, 5}, {3}), Error);
  HR_CHECK_THROWS(run({1, 2, 3, 4}, {1, 2, 3, 4}, {1, 2, 4, 4}, {3}), Error);
  HR_CHECK_THROWS(run({1, 2, 3, 4}, {1, 2, 3, 4}, {1, 2, 3, 4}, {2}), Error);
  NodeSpec spec = attention(s, "sbhd", DType::kNone, isa);
  HR_CHECK_THROWS(OpRegistry::global().make(spec), Error);
  spec = attention(s, "bhsd", DType::kI64, isa);
  HR_CHECK_THROWS(OpRegistry::global().make(spec), Error);
  spec = attention({1, 3, 2, 3, 3, 4}, "bhsd", DType::kNone, isa);
  HR_CHECK_THROWS(OpRegistry::global().make(spec), Error);
}

}  // namespace
}  // namespace headrace
