#include "json.h"

#include <charconv>
#include <cmath>
#include <limits>
#include <utility>

#include "base64.h"

namespace tfdist {
namespace {

// A parser keeps its memory for the next request, but not that of a huge one.
constexpr size_t kKeptBytes = 1 << 20;

// Writes quotes around NaN, Infinity and -Infinity where they are no text: JSON does not have them.
std::string WithQuotedNumbers(std::string_view text) {
  std::string quoted;
  bool in_text = false;
  for (size_t i = 0; i < text.size();) {
    const std::string_view rest = text.substr(i);
    size_t size = 1;
    bool is_number = false;
    if (in_text) {
      if (rest[0] == '\\') size = std::min<size_t>(2, rest.size());
    } else {
      for (const std::string_view number : {"NaN", "Infinity", "-Infinity"}) {
        if (rest.substr(0, number.size()) == number) {
          size = number.size();
          is_number = true;
        }
      }
    }
    if (rest[0] == '"') in_text = !in_text;
    if (is_number) quoted += '"';
    quoted += rest.substr(0, size);
    if (is_number) quoted += '"';
    i += size;
  }
  return quoted;
}

std::string Reason(simdjson::error_code error) {
  if (error == simdjson::DEPTH_ERROR) {
    return "it is nested deeper than " + std::to_string(kMaxJsonDepth);
  }
  // Each of these messages is one line; some name an option of the library after the first
  // sentence.
  const std::string message = simdjson::error_message(error);
  return message.substr(0, message.find('.'));
}

[[noreturn]] void ThrowNot(const std::string& name, const char* wanted, Json got) {
  ThrowInvalid(name + " must be " + wanted + ", not " + Excerpt(got));
}

double ReadReal(const std::string& name, Json value, const char* wanted) {
  double number;
  if (!value.get(number)) return number;
  std::string_view text;
  if (!value.get(text)) {
    if (text == "NaN") return std::numeric_limits<double>::quiet_NaN();
    if (text == "Infinity") return std::numeric_limits<double>::infinity();
    if (text == "-Infinity") return -std::numeric_limits<double>::infinity();
  }
  ThrowNot(name, wanted, value);
}

// Reads one value of the type of the vector.
void Append(const std::string& name, Json value, std::vector<float>* values) {
  const double number = ReadReal(name, value, "float32");
  const float narrow = static_cast<float>(number);
  if (std::isinf(narrow) && !std::isinf(number)) ThrowNot(name, "float32", value);
  values->push_back(narrow);
}

void Append(const std::string& name, Json value, std::vector<double>* values) {
  values->push_back(ReadReal(name, value, "float64"));
}

void Append(const std::string& name, Json value, std::vector<bool>* values) {
  bool flag;
  if (value.get(flag)) ThrowNot(name, "bool", value);
  values->push_back(flag);
}

void Append(const std::string& name, Json value, std::vector<std::string>* values) {
  std::string_view text;
  if (!value.get(text)) {
    values->emplace_back(text);
  } else if (IsBytes(value)) {
    try {
      values->push_back(DecodeBase64(value["b64"].get_string().value()));
    } catch (const Error& error) {
      ThrowInvalid(name + ": " + error.what());
    }
  } else {
    ThrowNot(name, "a text or {\"b64\": ...}", value);
  }
}

template <class T>
void Append(const std::string& name, Json value, std::vector<T>* values) {
  static_assert(std::is_integral_v<T>);
  int64_t number;
  uint64_t large;
  using Limits = std::numeric_limits<T>;
  if (value.is_int64() && !value.get(number)) {
    const bool fits = std::is_signed_v<T>
                          ? number >= static_cast<int64_t>(Limits::min()) &&
                                number <= static_cast<int64_t>(Limits::max())
                          : number >= 0 && static_cast<uint64_t>(number) <= Limits::max();
    if (fits) {
      values->push_back(static_cast<T>(number));
      return;
    }
  } else if (value.is_uint64() && !value.get(large)) {
    if (std::is_same_v<T, uint64_t>) {
      values->push_back(static_cast<T>(large));
      return;
    }
  }
  ThrowNot(name, NameOf(Tensor({0}, std::vector<T>()).dtype()), value);
}

int64_t SizeOf(const JsonArray& list) {
  constexpr size_t kSaturated = 0xffffff;  // the parser counts no further
  if (list.size() < kSaturated) return list.size();
  int64_t size = 0;
  for ([[maybe_unused]] Json each : list) ++size;
  return size;
}

// The sizes of the first list, of its first list, and so on.
Shape FirstSizes(Json value) {
  Shape shape;
  JsonArray list;
  while (!value.get(list)) {
    shape.push_back(SizeOf(list));
    if (shape.back() == 0) break;
    value = *list.begin();
  }
  return shape;
}

template <class T>
void Fill(const std::string& name, Json value, const Shape& shape, size_t depth, T* values) {
  if (depth == shape.size()) {
    Append(name, value, values);
    return;
  }
  JsonArray list;
  if (value.get(list) || SizeOf(list) != shape[depth]) {
    ThrowNot(name, ("a list of " + std::to_string(shape[depth]) + " like the first one").c_str(),
             value);
  }
  for (Json each : list) Fill(name, each, shape, depth + 1, values);
}

Tensor ReadDense(const std::string& name, Json value, DataType dtype) {
  Values values = NoValues(dtype);
  Shape shape = ReadNested(name, value, &values);
  return Tensor(std::move(shape), std::move(values));
}

SparseTensor ReadSparse(const std::string& name, Json value, const Slot& slot) {
  JsonObject parts;
  if (value.get(parts)) {
    ThrowNot(name, "{\"indices\": ..., \"values\": ..., \"dense_shape\": ...}", value);
  }
  const auto read = [&](const char* part, DataType dtype) {
    Json found;
    if (parts[part].get(found)) ThrowInvalid(name + "." + part + " is missing");
    return ReadDense(name + "." + part, found, dtype);
  };
  SparseTensor sparse{read("indices", DataType::kInt64), read("values", slot.dtype),
                      read("dense_shape", DataType::kInt64)};
  if (parts.size() > 3) ThrowInvalid(name + " must have only indices, values and dense_shape");
  const Shape& rank = sparse.dense_shape.shape();
  if (sparse.indices.shape() == Shape{0} && rank.size() == 1) {
    // [] does not say how long its lists would be.
    sparse.indices = Tensor({0, rank[0]}, std::vector<int64_t>());
  }
  return sparse;
}

SparseTensor SparseFromRows(const std::string& name, const std::vector<Json>& rows,
                            const Slot& slot) {
  if (slot.any_rank || slot.shape.size() != 2) {
    ThrowInvalid(name + " is a SparseTensor without two dimensions: send \"inputs\"");
  }
  std::vector<int64_t> indices;
  Values values = NoValues(slot.dtype);
  int64_t width = std::max<int64_t>(slot.shape[1], 0);
  for (size_t row = 0; row < rows.size(); ++row) {
    JsonArray list;
    if (rows[row].get(list)) ThrowNot(name, "a list", rows[row]);
    int64_t column = 0;
    for (Json each : list) {
      std::visit([&](auto& typed) { Append(name, each, &typed); }, values);
      indices.push_back(row);
      indices.push_back(column++);
    }
    if (slot.shape[1] < 0) width = std::max(width, column);
  }
  const int64_t size = indices.size() / 2;
  return {Tensor({size, 2}, std::move(indices)), Tensor({size}, std::move(values)),
          Tensor({2}, std::vector<int64_t>{static_cast<int64_t>(rows.size()), width})};
}

template <class T>
void WriteNumber(T number, std::string* json) {
  char digits[32];
  const auto end = std::to_chars(digits, digits + sizeof(digits), number).ptr;
  const std::string_view text(digits, end - digits);
  json->append(text);
  // The usual way to mark a real number without a fraction.
  if (std::is_floating_point_v<T> && text.find_first_of(".e") == text.npos) json->append(".0");
}

template <class T>
void WriteValue(const T& value, bool as_bytes, std::string* json) {
  if constexpr (std::is_same_v<T, std::string>) {
    if (as_bytes || !simdjson::validate_utf8(value)) {
      json->append("{\"b64\": \"").append(EncodeBase64(value)).append("\"}");
    } else {
      WriteText(value, json);
    }
  } else if constexpr (std::is_same_v<T, bool>) {
    json->append(value ? "true" : "false");
  } else {
    if constexpr (std::is_floating_point_v<T>) {
      if (!std::isfinite(value)) {
        json->append(std::isnan(value) ? "NaN" : value > 0 ? "Infinity" : "-Infinity");
        return;
      }
    }
    WriteNumber(value, json);
  }
}

bool HasBytes(const std::string& name) {
  constexpr std::string_view kSuffix = "_bytes";
  return name.size() >= kSuffix.size() &&
         name.compare(name.size() - kSuffix.size(), kSuffix.size(), kSuffix) == 0;
}

// Writes the values from `*next`, nested as the sizes from `depth` say.
template <class T>
void WriteLists(const std::vector<T>& values, const Shape& shape, size_t depth, bool as_bytes,
                size_t* next, std::string* json) {
  if (depth == shape.size()) {
    WriteValue<T>(values[(*next)++], as_bytes, json);
    return;
  }
  json->push_back('[');
  for (int64_t i = 0; i < shape[depth]; ++i) {
    if (i > 0) json->append(", ");
    WriteLists(values, shape, depth + 1, as_bytes, next, json);
  }
  json->push_back(']');
}

}  // namespace

JsonObject ParseJsonObject(std::string_view text) {
  thread_local simdjson::dom::parser parser;
  thread_local bool has_depth = false;
  if (parser.capacity() > kKeptBytes) {
    parser = simdjson::dom::parser();
    has_depth = false;
  }
  if (!has_depth) {
    has_depth = parser.allocate(4096, kMaxJsonDepth) == simdjson::SUCCESS;
  }
  Json parsed;
  auto error = parser.parse(text.data(), text.size()).get(parsed);
  if (error && error != simdjson::DEPTH_ERROR &&
      (text.find("NaN") != text.npos || text.find("Infinity") != text.npos)) {
    const std::string quoted = WithQuotedNumbers(text);
    error = parser.parse(quoted).get(parsed);
  }
  if (error) ThrowInvalid("the body is not JSON: " + Reason(error));
  JsonObject object;
  if (parsed.get(object)) ThrowInvalid("the body must be a JSON object, not " + Excerpt(parsed));
  return object;
}

std::string Excerpt(Json value) {
  // A huge value is not printed in order to be cut.
  JsonArray list;
  if (!value.get(list)) return "a list of " + std::to_string(list.size());
  JsonObject object;
  if (!value.get(object)) return "an object with " + std::to_string(object.size()) + " members";
  return Shortened(simdjson::minify(value));
}

std::string Shortened(std::string_view text, size_t max_bytes) {
  if (text.size() <= max_bytes) return std::string(text);
  size_t end = max_bytes;
  while (end > 0 && (text[end] & 0xc0) == 0x80) --end;  // between two characters
  return std::string(text.substr(0, end)) + "...";
}

bool IsBytes(Json value) {
  JsonObject object;
  Json bytes;
  return !value.get(object) && object.size() == 1 && !object["b64"].get(bytes) && bytes.is_string();
}

std::vector<Json> ElementsOf(const JsonArray& list) {
  std::vector<Json> elements;
  for (Json each : list) elements.push_back(each);
  return elements;
}

std::string TextMember(const JsonObject& object, const char* key, const std::string& fallback) {
  Json value;
  if (object[key].get(value)) return fallback;
  std::string_view text;
  if (value.get(text)) ThrowNot(key, "a text", value);
  return std::string(text);
}

Shape ReadNested(const std::string& name, Json value, Values* values) {
  Shape shape = FirstSizes(value);
  std::visit([&](auto& typed) { Fill(name, value, shape, 0, &typed); }, *values);
  return shape;
}

Input ReadInput(const std::string& name, Json value, const Slot& slot) {
  if (slot.is_sparse) return ReadSparse(name, value, slot);
  return ReadDense(name, value, slot.dtype);
}

Input ReadRows(const std::string& name, const std::vector<Json>& rows, const Slot& slot) {
  if (slot.is_sparse) return SparseFromRows(name, rows, slot);
  Shape row_shape;
  if (!rows.empty()) row_shape = FirstSizes(rows.front());
  Values values = NoValues(slot.dtype);
  std::visit(
      [&](auto& typed) {
        for (Json row : rows) Fill(name, row, row_shape, 0, &typed);
      },
      values);
  row_shape.insert(row_shape.begin(), rows.size());
  return Tensor(std::move(row_shape), std::move(values));
}

void WriteText(std::string_view text, std::string* json) {
  json->push_back('"');
  for (const char character : text) {
    const auto code = static_cast<unsigned char>(character);
    if (character == '"' || character == '\\') {
      json->push_back('\\');
      json->push_back(character);
    } else if (code < 0x20) {
      constexpr char kHex[] = "0123456789abcdef";
      json->append("\\u00").push_back(kHex[code >> 4]);
      json->push_back(kHex[code & 15]);
    } else {
      json->push_back(character);
    }
  }
  json->push_back('"');
}

void WriteNested(const std::string& name, const Tensor& tensor, std::string* json) {
  size_t next = 0;
  std::visit(
      [&](const auto& values) {
        WriteLists(values, tensor.shape(), 0, HasBytes(name), &next, json);
      },
      tensor.any_values());
}

void WriteRow(const std::string& name, const Tensor& tensor, int64_t row, std::string* json) {
  std::visit(
      [&](const auto& values) {
        size_t next = values.size() / tensor.shape()[0] * row;
        WriteLists(values, tensor.shape(), 1, HasBytes(name), &next, json);
      },
      tensor.any_values());
}

void WriteFlat(const Tensor& tensor, std::string* json) {
  std::visit(
      [&](const auto& values) {
        size_t next = 0;
        const Shape flat = {static_cast<int64_t>(values.size())};
        WriteLists(values, flat, 0, false, &next, json);
      },
      tensor.any_values());
}

}  // namespace tfdist
