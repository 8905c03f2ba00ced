// What a branch asks, in terms of the type in which inputs are compared.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "ops/trees/ensemble.h"

namespace headrace {

// The largest T <= value, so that for every x of type T: x <= value exactly if x <= this.
template <class T>
T round_down(double value) {
  T rounded = static_cast<T>(value);
  return static_cast<double>(rounded) > value
             ? std::nextafter(rounded, -std::numeric_limits<T>::infinity())
             : rounded;
}

// What a branch asks, reduced to one question on T: "x <= threshold" or "x is in the set", with
// the children swapped where ONNX's test is the opposite.
template <class T>
struct Question {
  bool is_set = false;
  bool swapped = false;
  bool nan_true = false;  // NaN counts as "yes", before any swap
  T threshold = 0;
  std::vector<T> members;
};

template <class T>
Question<T> question_of(const Branch& branch, const Ensemble& ensemble) {
  Question<T> q;
  bool strict = branch.test == BranchTest::kLt || branch.test == BranchTest::kGte;
  q.swapped = branch.test == BranchTest::kGte || branch.test == BranchTest::kGt ||
              branch.test == BranchTest::kNeq;
  // NaN differs from everything: it takes kNeq's true branch whatever nan_true says.
  q.nan_true = branch.test == BranchTest::kNeq ? false : branch.nan_true != q.swapped;
  auto add_member = [&](double value) {
    if (static_cast<double>(static_cast<T>(value)) == value) {
      q.members.push_back(static_cast<T>(value) + T{0});  // one zero, not two
    }
  };
  switch (branch.test) {
    case BranchTest::kEq:
    case BranchTest::kNeq:
      q.is_set = true;
      add_member(branch.value);
      return q;
    case BranchTest::kMember:
      q.is_set = true;
      for (double member : ensemble.sets[static_cast<size_t>(branch.set)]) add_member(member);
      std::ranges::sort(q.members);
      return q;
    default:
      break;
  }
  // Nothing is <= NaN or < -inf: the empty set.
  if (std::isnan(branch.value) ||
      (strict && branch.value == -std::numeric_limits<double>::infinity())) {
    q.is_set = true;
    return q;
  }
  q.threshold = round_down<T>(branch.value);
  if (strict && static_cast<double>(q.threshold) == branch.value) {
    q.threshold = std::nextafter(q.threshold, -std::numeric_limits<T>::infinity());
  }
  q.threshold += T{0};  // one zero, not two
  return q;
}

}  // namespace headrace
