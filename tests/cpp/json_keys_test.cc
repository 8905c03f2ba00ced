#include "core/json_keys.h"

#include "check.h"

namespace headrace {
namespace {

HR_TEST(json_keys_finds_those_that_are_there_twice) {
  for (const char* json : {
           R"({"a":1,"a":2})",
           R"({"a":1,"b":{},"a":2})",
           R"([{"b":[{"x" : 1 , "y":{}, "x"
 :3}]}])",
           R"({"a\"b":1,"a\"b":2})",
           R"({"inputs":1,"\u0069nputs":2})",
           R"({"\n":1,"\u000A":2})",
           R"({"é":1,"\u00e9":2})",
           R"({"😀":1,"\ud83d\uDE00":2})",
           R"({"\ud83d":1,"\ud83d":2})",
           R"({"":1,"":2})",
           R"({"a":"\\","a":2})",
       }) {
    HR_CHECK(twofold_key(json).has_value());
  }
  HR_CHECK_EQ(*twofold_key(R"({"a":{"b":1},"c":[{"d":1,"d":2}]})"), "d");
}

HR_TEST(json_keys_leaves_single_ones_alone) {
  for (const char* json : {
           R"({})",
           R"("a")",
           R"({"a":{"a":{"a":1}},"b":[{"a":1},{"a":2}]})",
           R"({"a":"a","b":"a","c":["a","a"]})",
           R"({"a":"{\"b\":1,\"b\":2}"})",
           R"({"a":"\\\"","b":"\",\"a\":1"})",
           R"({"a":1,"A":2,"a ":3,"a\\":4,"a\"":5})",
           R"({"a":"}","b":"{","c":":"})",
           R"({"\ud83d\ude00":1,"\ud83d\ude01":2,"\ud83d":3,"\ud83d\ud83d":4,"\ude00":5})",
       }) {
    HR_CHECK(!twofold_key(json).has_value());
  }
}

HR_TEST(json_keys_searches_objects_of_many) {
  std::string json = "{";
  for (int i = 0; i < 100000; ++i) json += "\"k" + std::to_string(i) + "\":0,";
  HR_CHECK(!twofold_key(json + "\"z\":{}}").has_value());
  HR_CHECK_EQ(*twofold_key(json + "\"k7\":{}}"), "k7");
}

HR_TEST(json_keys_survives_what_is_no_json) {
  for (const char* text :
       {"", "\"", "\"\\", "}}}", "{\"a\"", "{\"\\u00\":1,\"\\u00\":2", "{{{\"a\":"}) {
    twofold_key(text);
  }
  twofold_key(std::string(1000000, '{'));
}

}  // namespace
}  // namespace headrace
