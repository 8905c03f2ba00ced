#include <algorithm>
#include <exception>
#include <string_view>
#include <vector>

#include "check.h"

int main(int argc, char** argv) {
  std::vector<std::string_view> wanted(argv + 1, argv + argc);
  auto is_wanted = [&](std::string_view name) {
    return wanted.empty() || std::ranges::any_of(wanted, [&](std::string_view part) {
             return name.find(part) != std::string_view::npos;
           });
  };
  int passed = 0;
  int failed = 0;
  for (const auto& test : headrace::test::tests()) {
    if (!is_wanted(test.name)) continue;
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
  return failed == 0 ? 0 : 1;
}
