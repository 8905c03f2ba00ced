#include "bindings/convert.h"

#include <array>
#include <cstring>

#include "bindings/gil.h"

namespace py = pybind11;

namespace headrace {
namespace {

// From here on numpy would take fresh pages from the system for every array.
constexpr int64_t kBlockBytes = int64_t{1} << 20;

py::object& bfloat16_type() {
  // Leaked on purpose: it must outlive every array, and there is no safe moment to drop it.
  static auto* type =
      new py::object(py::dtype::from_args(py::module_::import("ml_dtypes").attr("bfloat16")));
  return *type;
}

bool is_bfloat16(const py::array& array) {
  return array.dtype().kind() == 'V' && array.itemsize() == 2 &&
         py::str(array.dtype().attr("name")).cast<std::string>() == "bfloat16";
}

std::string to_string(const TensorName& where) {
  return str(where.role, " '", where.name, "'");
}

std::string_view text_of(py::handle unicode) {
  Py_ssize_t size = 0;
  const char* data = PyUnicode_AsUTF8AndSize(unicode.ptr(), &size);
  if (data == nullptr) throw py::error_already_set();
  return {data, static_cast<size_t>(size)};
}

py::array as_array(py::handle object, const TensorName& where) {
  if (py::isinstance<py::array>(object)) return py::reinterpret_borrow<py::array>(object);
  py::module_ numpy = py::module_::import("numpy");
  try {
    if (!py::hasattr(object, "__array__") && py::hasattr(object, "__dlpack__")) {
      return numpy.attr("from_dlpack")(object);
    }
    return numpy.attr("asarray")(object);
  } catch (const py::error_already_set& error) {
    fail(ErrorKind::kDtypeMismatch, to_string(where), ": got ",
         py::str(py::type::handle_of(object)).cast<std::string>(),
         ", expected something numpy can read as an array (", error.what(), ")");
  }
}

DType integer_dtype(char kind, int64_t bytes) {
  bool is_signed = kind == 'i';
  switch (bytes) {
    case 1:
      return is_signed ? DType::kI8 : DType::kU8;
    case 2:
      return is_signed ? DType::kI16 : DType::kU16;
    case 4:
      return is_signed ? DType::kI32 : DType::kU32;
    default:
      return is_signed ? DType::kI64 : DType::kU64;
  }
}

// Strings converted between two chances for other threads: some 100 us.
constexpr size_t kTurn = 1024;

void let_others_run() {
  GilReleased released;
}

StringRef utf8_of(py::handle text, const TensorName& where) {
  if (PyBytes_Check(text.ptr())) {
    return {PyBytes_AS_STRING(text.ptr()), PyBytes_GET_SIZE(text.ptr())};
  }
  Py_ssize_t size = 0;
  const char* data =
      PyUnicode_Check(text.ptr()) ? PyUnicode_AsUTF8AndSize(text.ptr(), &size) : nullptr;
  if (data == nullptr) {
    PyErr_Clear();
    fail(ErrorKind::kDtypeMismatch, to_string(where), ": got an element of type ",
         py::str(py::type::handle_of(text)).cast<std::string>(), ", expected valid str");
  }
  return {data, size};
}

// kString for str, bytes and object arrays.
DType dtype_of(const py::array& array, const TensorName& where) {
  char kind = array.dtype().kind();
  int64_t bytes = array.itemsize();
  bool swapped = array.dtype().byteorder() == '>';
  if (!swapped) {
    switch (kind) {
      case 'b':
        return DType::kBool;
      case 'i':
      case 'u':
        return integer_dtype(kind, bytes);
      case 'f':
        if (bytes == 2) return DType::kF16;
        if (bytes == 4) return DType::kF32;
        if (bytes == 8) return DType::kF64;
        break;
      case 'U':
      case 'S':
      case 'O':
        return DType::kString;
      default:
        if (is_bfloat16(array)) return DType::kBF16;
    }
  }
  fail(ErrorKind::kDtypeMismatch, to_string(where), ": got dtype ",
       py::str(array.dtype()).cast<std::string>(),
       ", expected bool, (u)int8..64, float16..64, bfloat16 or strings");
}

// Looked up once each: numpy takes longer to find a dtype by its name than a small model to run.
const py::dtype& numpy_dtype(DType dtype) {
  // Leaked like bfloat16_type().
  static auto* const cache = new std::array<py::object, static_cast<size_t>(DType::kString) + 1>;
  py::object& cached = (*cache)[static_cast<size_t>(dtype)];
  if (!cached) {
    if (dtype == DType::kBF16) {
      cached = bfloat16_type();
    } else {
      cached = py::dtype(dtype == DType::kString ? "O" : std::string(name_of(dtype)));
    }
  }
  return static_cast<py::dtype&>(cached);
}

}  // namespace

HeldTensor::HeldTensor(py::handle object, const TensorName& where) {
  py::array array = as_array(object, where);
  view_.dtype = dtype_of(array, where);
  if (array.ndim() > kMaxRank) {
    fail(ErrorKind::kShapeMismatch, to_string(where), ": got ", array.ndim(),
         " dims, expected at most ", kMaxRank);
  }
  for (py::ssize_t axis = 0; axis < array.ndim(); ++axis) view_.shape.push_back(array.shape(axis));
  if (view_.dtype == DType::kString) {
    // Object arrays keep the str objects, whose UTF-8 form Python caches inside them.
    py::list flat = array.attr("astype")("O").attr("ravel")().attr("tolist")();
    strings_.reserve(flat.size());
    for (py::handle text : flat) {
      strings_.push_back(utf8_of(text, where));
      if (strings_.size() % kTurn == 0) let_others_run();
    }
    view_.data = strings_.data();
    owner_ = flat;
    return;
  }
  if (!(array.flags() & py::array::c_style)) {
    array = py::module_::import("numpy").attr("ascontiguousarray")(array);
  }
  view_.data = array.data();
  owner_ = array;
}

HeldRequest::HeldRequest(const Signature& signature, const py::dict& request) {
  const std::vector<TensorSpec>& specs = signature.inputs();
  tensors_.resize(specs.size());
  views_.resize(specs.size());
  // Held first: reading an array-like may run code that changes the dict.
  std::vector<py::object> values(specs.size());
  size_t found = 0;
  for (auto [key, value] : request) {
    int index = PyUnicode_Check(key.ptr()) ? signature.input_index(text_of(key)) : -1;
    if (index < 0) continue;
    values[static_cast<size_t>(index)] = py::reinterpret_borrow<py::object>(value);
    ++found;
  }
  for (size_t i = 0; i < specs.size(); ++i) {
    if (!values[i]) continue;
    tensors_[i] = HeldTensor(values[i], {"input", specs[i].name});
    views_[i] = tensors_[i].view();
  }
  signature.check(views_);
  if (found == request.size()) return;
  std::string expected;
  for (const TensorSpec& spec : specs) expected += str(expected.empty() ? "" : ", ", spec.name);
  for (auto item : request) {
    std::string name = py::str(item.first);
    if (!PyUnicode_Check(item.first.ptr()) || signature.input_index(name) < 0) {
      fail(ErrorKind::kUnknownInput, "got input '", name, "', expected only: ", expected);
    }
  }
}

py::array keep_numpy(const ConstTensorView& tensor, Block block) {
  py::capsule owner(new Block(std::move(block)),
                    [](void* memory) { delete static_cast<Block*>(memory); });
  return share_numpy(tensor, owner);
}

py::array to_numpy(const ConstTensorView& tensor) {
  if (tensor.bytes() >= kBlockBytes && tensor.dtype != DType::kString) {
    Block block(tensor.bytes());
    std::memcpy(block.data(), tensor.data, static_cast<size_t>(tensor.bytes()));
    ConstTensorView copy = tensor;
    copy.data = block.data();
    return keep_numpy(copy, std::move(block));
  }
  std::vector<py::ssize_t> dims(tensor.shape.dims().begin(), tensor.shape.dims().end());
  py::array array(numpy_dtype(tensor.dtype), dims);
  if (tensor.dtype != DType::kString) {
    if (tensor.bytes() > 0) {
      std::memcpy(array.mutable_data(), tensor.data, static_cast<size_t>(tensor.bytes()));
    }
    return array;
  }
  auto** slots = static_cast<PyObject**>(array.mutable_data());
  size_t made = 0;
  for (const StringRef& text : tensor.span<StringRef>()) {
    if (++made % kTurn == 0) let_others_run();
    PyObject* object = PyUnicode_DecodeUTF8(text.data, text.size, "replace");
    if (object == nullptr) throw py::error_already_set();
    Py_XSETREF(*slots, object);
    ++slots;
  }
  return array;
}

py::array share_numpy(const ConstTensorView& tensor, py::handle owner) {
  if (tensor.dtype == DType::kString) return to_numpy(tensor);
  std::vector<py::ssize_t> dims(tensor.shape.dims().begin(), tensor.shape.dims().end());
  return py::array(numpy_dtype(tensor.dtype), dims, tensor.data, owner);
}

TensorSpec to_spec(const std::string& name, const std::string& dtype, const py::sequence& dims) {
  TensorSpec spec{.name = name, .dtype = dtype_named(dtype), .dims = {}};
  if (spec.dtype == DType::kNone) {
    fail(ErrorKind::kInvalidModel, "tensor '", name, "': got dtype '", dtype,
         "', which Headrace does not have");
  }
  for (py::handle dim : dims) {
    if (py::isinstance<py::str>(dim)) {
      spec.dims.push_back({-1, dim.cast<std::string>()});
    } else {
      spec.dims.push_back({dim.cast<int64_t>(), ""});
    }
  }
  return spec;
}

}  // namespace headrace
