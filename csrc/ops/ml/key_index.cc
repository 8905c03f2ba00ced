#include "ops/ml/key_index.h"

#include <cmath>

namespace headrace {

KeyIndex::KeyIndex(std::vector<std::string> keys)
    : size_(static_cast<int64_t>(keys.size())), keys_(std::move(keys)) {
  for (size_t i = 0; i < keys_.size(); ++i) strings_[keys_[i]] = static_cast<int64_t>(i);
}

KeyIndex::KeyIndex(const std::vector<int64_t>& keys) : size_(static_cast<int64_t>(keys.size())) {
  for (size_t i = 0; i < keys.size(); ++i) ints_[keys[i]] = static_cast<int64_t>(i);
}

KeyIndex::KeyIndex(const std::vector<double>& keys) : size_(static_cast<int64_t>(keys.size())) {
  for (size_t i = 0; i < keys.size(); ++i) {
    (std::isnan(keys[i]) ? nan_ : floats_[keys[i]]) = static_cast<int64_t>(i);
  }
}

int64_t KeyIndex::find(std::string_view key) const {
  auto it = strings_.find(key);
  return it == strings_.end() ? -1 : it->second;
}

int64_t KeyIndex::find(int64_t key) const {
  auto it = ints_.find(key);
  return it == ints_.end() ? -1 : it->second;
}

int64_t KeyIndex::find(double key) const {
  if (std::isnan(key)) return nan_;
  auto it = floats_.find(key);
  return it == floats_.end() ? -1 : it->second;
}

}  // namespace headrace
