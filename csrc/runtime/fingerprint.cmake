# Writes OUTPUT, the definition of headrace::fingerprint(), from the files listed in LIST (paths
# relative to ROOT, one a line). Run by cmake -P whenever one of them changed.
file(STRINGS ${LIST} files)
set(digests "")
foreach(file IN LISTS files)
  file(SHA256 ${ROOT}/${file} digest)
  string(APPEND digests "${file} ${digest}\n")
endforeach()
string(SHA256 fingerprint "${digests}")
file(WRITE ${OUTPUT}
"#include \"runtime/fingerprint.h\"

std::string_view headrace::fingerprint() {
  return \"${fingerprint}\";
}
")
