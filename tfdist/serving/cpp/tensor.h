// Tensors as this library takes and returns them. No header of TensorFlow is needed.

#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <stdexcept>
#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace tfdist {

// What is wrong with a request, a file or the model. The message is one line.
class Error : public std::runtime_error {
 public:
  enum class Code {
    kInvalid,      // the caller's values
    kNotFound,     // a model, version or signature of this name
    kUnavailable,  // memory or another resource, at the moment; in the server, too many requests
                   // wait
    kInternal,     // the model or the machine
  };

  Error(Code code, const std::string& message) : std::runtime_error(message), code_(code) {}
  Code code() const { return code_; }

 private:
  Code code_;
};

[[noreturn]] inline void ThrowInvalid(const std::string& message) {
  throw Error(Error::Code::kInvalid, message);
}

// In the order of the alternatives of Values.
enum class DataType {
  kFloat32,
  kFloat64,
  kInt8,
  kInt16,
  kInt32,
  kInt64,
  kUint8,
  kUint16,
  kUint32,
  kUint64,
  kBool,
  kString,
};

const char* NameOf(DataType dtype);  // "float32", as Python names it

using Values = std::variant<std::vector<float>, std::vector<double>, std::vector<int8_t>,
                            std::vector<int16_t>, std::vector<int32_t>, std::vector<int64_t>,
                            std::vector<uint8_t>, std::vector<uint16_t>, std::vector<uint32_t>,
                            std::vector<uint64_t>, std::vector<bool>, std::vector<std::string>>;

using Shape = std::vector<int64_t>;

std::string TextOf(const Shape& shape);  // "[?, 3]": a size below 0 is any size

// No values of this type.
Values NoValues(DataType dtype);

// A dense tensor. Its values are in the order of a C array: the last dimension changes fastest.
class Tensor {
 public:
  // An empty tensor of shape [0].
  Tensor() : shape_{0} {}

  // Throws Error if the number of values is not the product of the sizes.
  Tensor(Shape shape, Values values);
  template <class T>
  Tensor(Shape shape, std::vector<T> values)
      : Tensor(std::move(shape), Values(std::move(values))) {}

  DataType dtype() const { return static_cast<DataType>(values_.index()); }
  const Shape& shape() const { return shape_; }
  const Values& any_values() const { return values_; }

  // Throws Error if T is not the type of the values.
  template <class T>
  const std::vector<T>& values() const {
    if (const auto* found = std::get_if<std::vector<T>>(&values_)) return *found;
    ThrowInvalid(std::string("the values are ") + NameOf(dtype()));
  }

 private:
  Shape shape_;
  Values values_;
};

// Values at some places of a tensor; the other places are empty.
struct SparseTensor {
  Tensor indices;      // int64 [number of values, rank], in the order of a C array
  Tensor values;       // [number of values]
  Tensor dense_shape;  // int64 [rank]
};

// The rows of a SparseTensor with two dimensions, which can have different lengths.
template <class T>
SparseTensor SparseFromRows(const std::vector<std::vector<T>>& rows) {
  std::vector<int64_t> indices;
  std::vector<T> values;
  int64_t width = 0;
  for (size_t row = 0; row < rows.size(); ++row) {
    for (size_t column = 0; column < rows[row].size(); ++column) {
      indices.insert(indices.end(), {static_cast<int64_t>(row), static_cast<int64_t>(column)});
      values.push_back(rows[row][column]);
    }
    width = std::max<int64_t>(width, rows[row].size());
  }
  const int64_t size = values.size();
  return {Tensor({size, 2}, std::move(indices)), Tensor({size}, std::move(values)),
          Tensor({2}, std::vector<int64_t>{static_cast<int64_t>(rows.size()), width})};
}

using Input = std::variant<Tensor, SparseTensor>;
using Inputs = std::map<std::string, Input>;
using Outputs = std::map<std::string, Tensor>;

// An input or output of a signature.
struct Slot {
  DataType dtype = DataType::kFloat32;
  Shape shape;            // -1 for any size
  bool any_rank = false;  // then the shape is empty
  bool is_sparse = false;
  std::string tensor;  // its name in the graph, such as "x:0"; empty if it is sparse
};

struct Signature {
  std::map<std::string, Slot> inputs;
  std::map<std::string, Slot> outputs;
  std::string method;       // such as "tensorflow/serving/predict"
  std::string unsupported;  // why this library cannot run it; empty if it can
};

using Signatures = std::map<std::string, Signature>;

// Throws Error if there is no signature of that name, or if it cannot be run.
const Signature& FindSignature(const Signatures& signatures, const std::string& name);

// Throws Error if the input does not fit: its type, its shape, or the indices of a SparseTensor.
void CheckFits(const std::string& name, const Slot& slot, const Input& input);

}  // namespace tfdist
