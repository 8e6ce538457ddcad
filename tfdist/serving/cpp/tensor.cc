#include "tensor.h"

#include <algorithm>
#include <iterator>

namespace tfdist {
namespace {

constexpr const char* kNames[] = {"float32", "float64", "int8",   "int16",  "int32", "int64",
                                  "uint8",   "uint16",  "uint32", "uint64", "bool",  "string"};
static_assert(std::size(kNames) == std::variant_size_v<Values>);

template <size_t... kIndices>
Values Emplaced(size_t index, std::index_sequence<kIndices...>) {
  Values values;
  ((index == kIndices ? static_cast<void>(values.emplace<kIndices>()) : void()), ...);
  return values;
}

constexpr size_t kMaxRank = 254;  // TensorFlow aborts on a tensor with more dimensions
// A size that no value stands for costs a request nothing, but an operation can allocate that much.
constexpr int64_t kMaxRows = int64_t{1} << 24;         // of a SparseTensor
constexpr int64_t kMaxEmptyPlaces = int64_t{1} << 28;  // of an empty tensor, if 0 counts as 1

bool Matches(const Shape& shape, const Shape& wanted) {
  return std::equal(shape.begin(), shape.end(), wanted.begin(), wanted.end(),
                    [](int64_t size, int64_t other) { return other < 0 || size == other; });
}

void CheckTensor(const std::string& name, const Tensor& tensor, DataType dtype,
                 const Shape& shape) {
  if (tensor.dtype() != dtype) {
    ThrowInvalid(name + " must be " + NameOf(dtype) + ", not " + NameOf(tensor.dtype()));
  }
  if (!Matches(tensor.shape(), shape)) {
    ThrowInvalid(name + " must have the shape " + TextOf(shape) + ", not " +
                 TextOf(tensor.shape()));
  }
  const Shape& sizes = tensor.shape();
  if (std::find(sizes.begin(), sizes.end(), 0) == sizes.end()) return;
  int64_t places = 1;
  for (int64_t size : sizes) {
    if (size > kMaxEmptyPlaces / places) {
      ThrowInvalid(name + " is empty and must have sizes up to " + std::to_string(kMaxEmptyPlaces) +
                   " together, not " + TextOf(sizes));
    }
    places *= std::max<int64_t>(size, 1);
  }
}

void CheckSparse(const std::string& name, const Slot& slot, const SparseTensor& sparse) {
  CheckTensor(name + ".values", sparse.values, slot.dtype, {-1});
  CheckTensor(name + ".dense_shape", sparse.dense_shape, DataType::kInt64, {-1});
  const int64_t size = sparse.values.shape()[0], rank = sparse.dense_shape.shape()[0];
  CheckTensor(name + ".indices", sparse.indices, DataType::kInt64, {size, rank});
  const auto& bounds = sparse.dense_shape.values<int64_t>();
  if (bounds.size() > kMaxRank) {
    ThrowInvalid(name + ".dense_shape must have at most " + std::to_string(kMaxRank) +
                 " sizes, not " + std::to_string(rank));
  }
  // TensorFlow multiplies the sizes, and aborts on an overflow.
  constexpr int64_t kMostPlaces = int64_t{1} << 62;
  int64_t places = 1;
  for (int64_t bound : bounds) {
    if (bound < 0) {
      ThrowInvalid(name + ".dense_shape must have sizes from 0, not " + std::to_string(bound));
    }
    if (bound > 0 && places > kMostPlaces / bound) {
      ThrowInvalid(name + ".dense_shape must have sizes whose product is below 2^62, not " +
                   TextOf(bounds));
    }
    places *= std::max<int64_t>(bound, 1);
  }
  if (!bounds.empty() && bounds[0] > kMaxRows) {
    ThrowInvalid(name + ".dense_shape must have at most " + std::to_string(kMaxRows) +
                 " rows, not " + std::to_string(bounds[0]));
  }
  if (!slot.any_rank && !Matches(bounds, slot.shape)) {
    ThrowInvalid(name + ".dense_shape must be " + TextOf(slot.shape) + ", not " + TextOf(bounds));
  }
  const auto& indices = sparse.indices.values<int64_t>();
  for (size_t i = 0; i < indices.size(); ++i) {
    if (indices[i] < 0 || indices[i] >= bounds[i % rank]) {
      ThrowInvalid(name + ".indices must be within the dense shape " + TextOf(bounds) + ", not " +
                   std::to_string(indices[i]));
    }
  }
}

}  // namespace

const char* NameOf(DataType dtype) { return kNames[static_cast<int>(dtype)]; }

std::string TextOf(const Shape& shape) {
  std::string text;
  for (int64_t size : shape) {
    text += (text.empty() ? "" : ", ") + (size < 0 ? std::string("?") : std::to_string(size));
  }
  return "[" + text + "]";
}

Values NoValues(DataType dtype) {
  return Emplaced(static_cast<size_t>(dtype), std::make_index_sequence<std::size(kNames)>());
}

Tensor::Tensor(Shape shape, Values values) : shape_(std::move(shape)), values_(std::move(values)) {
  if (shape_.size() > kMaxRank) {
    ThrowInvalid("a tensor has at most " + std::to_string(kMaxRank) + " dimensions, not " +
                 std::to_string(shape_.size()));
  }
  int64_t wanted = 1;
  bool valid = true;
  for (int64_t size : shape_) {
    valid = valid && size >= 0 && !__builtin_mul_overflow(wanted, size, &wanted);
  }
  const size_t size = std::visit([](const auto& each) { return each.size(); }, values_);
  if (!valid || size != static_cast<size_t>(wanted)) {
    ThrowInvalid("a tensor of the shape " + TextOf(shape_) + " has " + std::to_string(size) +
                 " values");
  }
}

const Signature& FindSignature(const Signatures& signatures, const std::string& name) {
  constexpr size_t kShown = 100;
  const auto found = signatures.find(name);
  if (found == signatures.end()) {
    std::string names;
    for (const auto& [each, signature] : signatures) names += (names.empty() ? "" : ", ") + each;
    ThrowInvalid("the signature must be one of " + names + ", not " + name.substr(0, kShown));
  }
  const std::string& unsupported = found->second.unsupported;
  if (!unsupported.empty())
    ThrowInvalid("the signature " + name + " cannot be run: " + unsupported);
  return found->second;
}

void CheckFits(const std::string& name, const Slot& slot, const Input& input) {
  if (slot.is_sparse != std::holds_alternative<SparseTensor>(input)) {
    ThrowInvalid(name +
                 (slot.is_sparse ? " must be a SparseTensor" : " must not be a SparseTensor"));
  }
  if (slot.is_sparse) {
    CheckSparse(name, slot, std::get<SparseTensor>(input));
    return;
  }
  const Tensor& tensor = std::get<Tensor>(input);
  CheckTensor(name, tensor, slot.dtype, slot.any_rank ? tensor.shape() : slot.shape);
}

}  // namespace tfdist
