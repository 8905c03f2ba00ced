#include "runtime/signature.h"

#include <algorithm>
#include <map>

namespace headrace {
namespace {

// More symbols than this are checked axis by axis but not against each other.
constexpr int kMaxSymbols = 64;

}  // namespace

std::string to_string(const TensorSpec& spec) {
  std::string text = str(spec.name, ": ", name_of(spec.dtype), "[");
  for (size_t i = 0; i < spec.dims.size(); ++i) {
    const Dim& dim = spec.dims[i];
    text += str(i > 0 ? ", " : "", dim.symbol.empty() ? std::to_string(dim.length) : dim.symbol);
  }
  return text + "]";
}

Signature::Signature(std::vector<TensorSpec> inputs, std::vector<TensorSpec> outputs)
    : inputs_(std::move(inputs)), outputs_(std::move(outputs)) {
  std::map<std::string, int> ids;
  for (const TensorSpec& spec : inputs_) {
    auto& axes = symbol_ids_.emplace_back();
    for (const Dim& dim : spec.dims) {
      if (dim.symbol.empty()) {
        axes.push_back(-1);
      } else {
        int id = ids.emplace(dim.symbol, static_cast<int>(ids.size())).first->second;
        axes.push_back(id < kMaxSymbols ? id : -1);
      }
    }
  }
  symbols_ = std::min(static_cast<int>(ids.size()), kMaxSymbols);
}

int Signature::input_index(std::string_view name) const {
  for (size_t i = 0; i < inputs_.size(); ++i) {
    if (inputs_[i].name == name) return static_cast<int>(i);
  }
  return -1;
}

void Signature::check(std::span<const ConstTensorView> inputs) const {
  int64_t bound[kMaxSymbols];
  const TensorSpec* bound_by[kMaxSymbols] = {};
  for (size_t i = 0; i < inputs_.size(); ++i) {
    const TensorSpec& spec = inputs_[i];
    const ConstTensorView& got = inputs[i];
    if (!got.present()) {
      fail(ErrorKind::kMissingInput, "input '", spec.name, "': got none, expected ",
           to_string(spec));
    }
    if (got.dtype != spec.dtype) {
      fail(ErrorKind::kDtypeMismatch, "input '", spec.name, "': got dtype ", name_of(got.dtype),
           ", expected ", name_of(spec.dtype));
    }
    bool fits = got.shape.rank() == static_cast<int>(spec.dims.size());
    for (int axis = 0; fits && axis < got.shape.rank(); ++axis) {
      const Dim& dim = spec.dims[static_cast<size_t>(axis)];
      fits = got.shape[axis] >= 0 && (!dim.symbol.empty() || got.shape[axis] == dim.length);
    }
    if (!fits) {
      fail(ErrorKind::kShapeMismatch, "input '", spec.name, "': got shape ", to_string(got.shape),
           ", expected ", to_string(spec));
    }
    for (int axis = 0; axis < got.shape.rank(); ++axis) {
      int id = symbol_ids_[i][static_cast<size_t>(axis)];
      if (id < 0) continue;
      if (bound_by[id] == nullptr) {
        bound[id] = got.shape[axis];
        bound_by[id] = &spec;
      } else if (bound[id] != got.shape[axis]) {
        fail(ErrorKind::kShapeMismatch, "input '", spec.name, "': got shape ", to_string(got.shape),
             ", where dim '", spec.dims[static_cast<size_t>(axis)].symbol, "' is ", got.shape[axis],
             ", expected ", bound[id], " as in input '", bound_by[id]->name, "'");
      }
    }
  }
}

int64_t Signature::work(std::span<const ConstTensorView> inputs) const {
  int64_t work = 1;
  for (size_t i = 0; i < inputs_.size(); ++i) {
    int64_t product = 1;
    for (int axis = 0; axis < inputs[i].shape.rank(); ++axis) {
      if (!inputs_[i].dims[static_cast<size_t>(axis)].symbol.empty()) {
        product *= inputs[i].shape[axis];
      }
    }
    work = std::max(work, product);
  }
  return work;
}

}  // namespace headrace
