#include <exception>
#include <string_view>

#include "check.h"

int main(int argc, char** argv) {
  std::string_view wanted = argc > 1 ? argv[1] : "";
  int passed = 0;
  int failed = 0;
  for (const auto& test : headrace::test::tests()) {
    if (std::string_view(test.name).find(wanted) == std::string_view::npos) continue;
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
