// Finding a value among the keys of a LabelEncoder, CategoryMapper or OneHotEncoder.
#pragma once

#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "core/tensor.h"

namespace headrace {

// Positions of keys, which are all strings, all integers or all floating-point numbers. NaN is
// found where it is a key. Of equal keys the last one counts.
class KeyIndex {
 public:
  KeyIndex() = default;
  explicit KeyIndex(std::vector<std::string> keys);
  explicit KeyIndex(const std::vector<int64_t>& keys);
  explicit KeyIndex(const std::vector<double>& keys);

  // Strings are looked up by their pointers into `keys_`, which copying would leave behind.
  KeyIndex(const KeyIndex&) = delete;
  KeyIndex(KeyIndex&&) = default;
  KeyIndex& operator=(KeyIndex&&) = default;

  int64_t size() const { return size_; }
  // The position of a key, or -1.
  int64_t find(std::string_view key) const;
  int64_t find(int64_t key) const;
  int64_t find(double key) const;

 private:
  int64_t size_ = 0;
  std::vector<std::string> keys_;
  std::unordered_map<std::string_view, int64_t> strings_;
  std::unordered_map<int64_t, int64_t> ints_;
  std::unordered_map<double, int64_t> floats_;
  int64_t nan_ = -1;
};

}  // namespace headrace
