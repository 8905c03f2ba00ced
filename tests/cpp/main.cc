#include <algorithm>
#include <cstdlib>
#include <exception>
#include <string_view>
#include <vector>

#include "check.h"

namespace {

using headrace::test::Test;

bool has_one(const Test& test, const std::vector<std::string_view>& parts) {
  std::string_view path = test.file;
  std::string_view file = path.substr(path.rfind('/') + 1);
  return std::ranges::any_of(parts, [&](std::string_view part) {
    if (part.starts_with('@')) return file.starts_with(part.substr(1));
    return std::string_view(test.name).find(part) != std::string_view::npos;
  });
}

// The tests that the command line asks for; check.h says how.
std::vector<Test> selected(const std::vector<std::string_view>& words) {
  std::vector<std::string_view> wanted;
  std::vector<std::string_view> unwanted;
  size_t part = 0;
  size_t parts = 1;
  for (size_t i = 0; i < words.size(); ++i) {
    if (words[i] == "--without" && i + 1 < words.size()) {
      unwanted.push_back(words[++i]);
    } else if (words[i] == "--part" && i + 1 < words.size() && words[i + 1].size() == 3) {
      part = static_cast<size_t>(words[++i][0] - '1');
      parts = static_cast<size_t>(words[i][2] - '0');
    } else {
      wanted.push_back(words[i]);
    }
  }
  std::vector<Test> chosen;
  size_t index = 0;
  for (const Test& test : headrace::test::tests()) {
    bool fits = (wanted.empty() || has_one(test, wanted)) && !has_one(test, unwanted);
    if (fits && index++ % parts == part) chosen.push_back(test);
  }
  return chosen;
}

}  // namespace

int main(int argc, char** argv) {
  int passed = 0;
  int failed = 0;
  for (const Test& test : selected({argv + 1, argv + argc})) {
    int before = headrace::test::failures();
    try {
      test.run();
    } catch (const std::exception& error) {
      headrace::test::report(test.name, 0, "threw: ", error.what());
    }
    bool ok = headrace::test::failures() == before;
    (ok ? passed : failed) += 1;
    if (!ok) std::cerr << "FAILED " << test.name << "\n";
  }
  std::cout << passed << " passed, " << failed << " failed\n";
  return failed == 0 && passed > 0 ? 0 : 1;
}
