// Tensors from and to JSON.

#pragma once

#include <simdjson.h>

#include <string>
#include <string_view>
#include <vector>

#include "tensor.h"

namespace tfdist {

using Json = simdjson::dom::element;
using JsonObject = simdjson::dom::object;
using JsonArray = simdjson::dom::array;

// Lists and objects can be nested this deep.
constexpr size_t kMaxJsonDepth = 64;

// Parses an object. NaN, Infinity and -Infinity are accepted as numbers. The result is valid until
// the next call by the same thread. Throws Error.
JsonObject ParseJsonObject(std::string_view text);

// The start of a value as JSON, for an error message.
std::string Excerpt(Json value);

// The start of a text, for an error message.
std::string Shortened(std::string_view text, size_t max_bytes = 40);

// {"b64": "..."}: bytes that are not text.
bool IsBytes(Json value);

std::vector<Json> ElementsOf(const JsonArray& list);

// The member of an object, which must be a text. `fallback` if it is missing. Throws Error.
std::string TextMember(const JsonObject& object, const char* key, const std::string& fallback);

// Values of a type from a number, text or nested list, in the order of a C array. Adds them to
// `values`, and returns the shape. Throws Error that starts with `name`.
Shape ReadNested(const std::string& name, Json value, Values* values);

// An input from its JSON. A SparseTensor is {"indices": ..., "values": ..., "dense_shape": ...}.
Input ReadInput(const std::string& name, Json value, const Slot& slot);

// An input from its JSON in each of several rows. The rows of a SparseTensor with two dimensions
// are lists, which can have different lengths.
Input ReadRows(const std::string& name, const std::vector<Json>& rows, const Slot& slot);

// Appends a text in quotes.
void WriteText(std::string_view text, std::string* json);

// Appends the values as nested lists. Text that is not UTF-8, or that belongs to a tensor whose
// name ends with `_bytes`, is written as {"b64": "..."}.
void WriteNested(const std::string& name, const Tensor& tensor, std::string* json);

// Appends the values of one row, which is a place in the first dimension.
void WriteRow(const std::string& name, const Tensor& tensor, int64_t row, std::string* json);

// Appends the values as one list.
void WriteFlat(const Tensor& tensor, std::string* json);

}  // namespace tfdist
