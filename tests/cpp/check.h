// A small test harness: HR_TEST defines a test, HR_CHECK and friends report where they failed and
// go on. `headrace_tests [part of a name]...` runs the tests whose names have one of the parts;
// @batcher stands for the files whose names begin so. `--without PART` leaves out those that have
// it, and `--part 1/2` takes one half of the rest.
#pragma once

#include <cmath>
#include <iostream>
#include <sstream>
#include <string>
#include <vector>

namespace headrace::test {

struct Test {
  const char* name;
  const char* file;
  void (*run)();
};

inline std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}

inline int& failures() {
  static int count = 0;
  return count;
}

inline bool add_test(const char* name, const char* file, void (*run)()) {
  tests().push_back({name, file, run});
  return true;
}

template <class... Args>
void report(const char* file, int line, const Args&... args) {
  ++failures();
  std::ostringstream text;
  (text << ... << args);
  std::cerr << file << ":" << line << ": " << text.str() << "\n";
}

}  // namespace headrace::test

#define HR_TEST(name)                                           \
  static void test_##name();                                    \
  [[maybe_unused]] static const bool added_##name =             \
      ::headrace::test::add_test(#name, __FILE__, test_##name); \
  static void test_##name()

#define HR_CHECK(condition)                                                     \
  do {                                                                          \
    if (!(condition)) ::headrace::test::report(__FILE__, __LINE__, #condition); \
  } while (false)

#define HR_CHECK_EQ(got, expected)                                                      \
  do {                                                                                  \
    auto got_ = (got);                                                                  \
    auto expected_ = (expected);                                                        \
    if (!(got_ == expected_))                                                           \
      ::headrace::test::report(__FILE__, __LINE__, #got, ": got ", got_, ", expected ", \
                               expected_);                                              \
  } while (false)

// |got - expected| <= tolerance * max(1, |expected|)
#define HR_CHECK_NEAR(got, expected, tolerance)                                                    \
  do {                                                                                             \
    double got_ = (got);                                                                           \
    double expected_ = (expected);                                                                 \
    double bound_ = (tolerance) * std::max(1.0, std::abs(expected_));                              \
    if (!(std::abs(got_ - expected_) <= bound_))                                                   \
      ::headrace::test::report(__FILE__, __LINE__, #got, ": got ", got_, ", expected ", expected_, \
                               " within ", bound_);                                                \
  } while (false)

#define HR_CHECK_THROWS(expression, Exception)                                             \
  do {                                                                                     \
    bool threw_ = false;                                                                   \
    try {                                                                                  \
      (void)(expression);                                                                  \
    } catch (const Exception&) {                                                           \
      threw_ = true;                                                                       \
    }                                                                                      \
    if (!threw_)                                                                           \
      ::headrace::test::report(__FILE__, __LINE__, #expression, ": expected " #Exception); \
  } while (false)
