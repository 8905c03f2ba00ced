#include "core/json_keys.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

namespace headrace {
namespace {

// Objects of so few keys are searched pair by pair.
constexpr size_t kFew = 16;

bool is_space(char c) {
  return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

bool matters(char c) {
  return c == '"' || c == '{' || c == '}';
}

bool has_zero_byte(uint64_t word) {
  return ((word - 0x0101010101010101u) & ~word & 0x8080808080808080u) != 0;
}

// Where the next character that matters is, or the end. Numbers, of which there may be megabytes,
// are passed over by eight characters at a time.
size_t next_that_matters(std::string_view json, size_t at) {
  for (; at + 8 <= json.size(); at += 8) {
    uint64_t word;
    std::memcpy(&word, json.data() + at, 8);
    // '{' and '}' differ in two bits; the few others that are alike then are looked at below.
    uint64_t braces = (word | 0x0606060606060606u) ^ 0x7F7F7F7F7F7F7F7Fu;
    if (has_zero_byte(word ^ 0x2222222222222222u) || has_zero_byte(braces)) {
      for (size_t i = at; i < at + 8; ++i) {
        if (matters(json[i])) return i;
      }
    }
  }
  while (at < json.size() && !matters(json[at])) ++at;
  return at;
}

// The value of four hexadecimal digits.
uint32_t unit_at(std::string_view digits) {
  uint32_t unit = 0;
  for (char c : digits) {
    unit = unit * 16 + static_cast<uint32_t>(c <= '9' ? c - '0' : (c | 0x20) - 'a' + 10);
  }
  return unit;
}

// The character of a surrogate pair.
uint32_t joined(uint32_t high, uint32_t low) {
  return 0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00);
}

// A key as it would be spelled without escapes. Half a surrogate pair becomes what UTF-8 would make
// of it if it might.
std::string without_escapes(std::string_view key) {
  std::string plain;
  auto put = [&](uint32_t code) {
    auto six_bits = [&](int from) { return static_cast<char>(0x80 | (code >> from & 0x3F)); };
    if (code < 0x80) {
      plain += static_cast<char>(code);
    } else if (code < 0x800) {
      plain += {static_cast<char>(0xC0 | code >> 6), six_bits(0)};
    } else if (code < 0x10000) {
      plain += {static_cast<char>(0xE0 | code >> 12), six_bits(6), six_bits(0)};
    } else {
      plain += {static_cast<char>(0xF0 | code >> 18), six_bits(12), six_bits(6), six_bits(0)};
    }
  };
  for (size_t i = 0; i < key.size(); ++i) {
    if (key[i] != '\\' || i + 1 == key.size()) {
      plain += key[i];
      continue;
    }
    char kind = key[++i];
    constexpr std::string_view kShort = "bfnrt", kMeant = "\b\f\n\r\t";
    if (kind == 'u' && i + 4 < key.size()) {
      uint32_t unit = unit_at(key.substr(i + 1, 4));
      i += 4;
      bool may_join =
          (unit & 0xFC00) == 0xD800 && i + 6 < key.size() && key.substr(i + 1, 2) == "\\u";
      uint32_t next = may_join ? unit_at(key.substr(i + 3, 4)) : 0;
      if ((next & 0xFC00) == 0xDC00) {
        unit = joined(unit, next);
        i += 6;
      }
      put(unit);
    } else if (size_t place = kShort.find(kind); place != kShort.npos) {
      plain += kMeant[place];
    } else {
      plain += kind;
    }
  }
  return plain;
}

// The keys of the objects that are open, outermost first.
class Keys {
 public:
  void open() { begins_.push_back(keys_.size()); }

  // The key, if the object has had it before.
  std::optional<std::string> add(std::string_view key) {
    bool escaped = key.find('\\') != key.npos;
    keys_.push_back(escaped ? without_escapes(key) : std::string(key));
    size_t begin = begins_.empty() ? 0 : begins_.back();
    if (keys_.size() - begin > kFew) return {};  // close() will look
    auto last = keys_.end() - 1;
    if (std::find(keys_.begin() + static_cast<ptrdiff_t>(begin), last, *last) == last) return {};
    return *last;
  }

  // The key that the object has twice, if it has many.
  std::optional<std::string> close() {
    if (begins_.empty()) return {};
    auto begin = keys_.begin() + static_cast<ptrdiff_t>(begins_.back());
    begins_.pop_back();
    std::optional<std::string> found;
    if (keys_.end() - begin > static_cast<ptrdiff_t>(kFew)) {
      std::sort(begin, keys_.end());
      auto same = std::adjacent_find(begin, keys_.end());
      if (same != keys_.end()) found = *same;
    }
    keys_.erase(begin, keys_.end());
    return found;
  }

 private:
  std::vector<std::string> keys_;
  std::vector<size_t> begins_;
};

// Past the end of a string that begins before `at`.
size_t after_string(std::string_view json, size_t at) {
  const size_t begin = at;
  while ((at = json.find('"', at)) != json.npos) {
    size_t escapes = at;
    while (escapes > begin && json[escapes - 1] == '\\') --escapes;
    ++at;
    if ((at - 1 - escapes) % 2 == 0) return at;
  }
  return json.size();
}

}  // namespace

std::optional<std::string> twofold_key(std::string_view json) {
  Keys keys;
  for (size_t at = 0; (at = next_that_matters(json, at)) < json.size();) {
    char c = json[at++];
    if (c == '{') {
      keys.open();
    } else if (c == '}') {
      if (auto found = keys.close()) return found;
    } else {
      size_t begin = at;
      at = after_string(json, begin);
      size_t next = at;
      while (next < json.size() && is_space(json[next])) ++next;
      // Of all strings only keys have a colon behind them.
      if (next == json.size() || json[next] != ':') continue;
      std::string_view key = json.substr(begin, at - 1 - begin);
      if (auto found = keys.add(key)) return found;
    }
  }
  return {};
}

}  // namespace headrace
