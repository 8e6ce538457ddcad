// A libFuzzer target: what reads a request, checks it, and writes an answer. TensorFlow is not part
// of it.
//
// The first byte of the input says which reader gets the rest: see LLVMFuzzerTestOneInput.

#include <cstdio>
#include <cstdlib>
#include <optional>
#include <string>
#include <string_view>

#include "base64.h"
#include "json.h"
#include "open_inference.h"
#include "tensorflow_rest.h"

namespace tfdist {

// The real one, which is part of predictor.cc, needs TensorFlow. This one is about as large.
std::string Serialize(const Example& example) {
  std::string text;
  for (const auto& [name, feature] : example) {
    text += name;
    if (const auto* texts = std::get_if<std::vector<std::string>>(&feature)) {
      for (const auto& each : *texts) text += each;
    } else if (const auto* numbers = std::get_if<std::vector<int64_t>>(&feature)) {
      text.append(numbers->size() * 8, 'n');
    } else {
      text.append(std::get<std::vector<float>>(feature).size() * 4, 'f');
    }
  }
  return text;
}

namespace {

constexpr DataType kTypes[] = {DataType::kFloat32, DataType::kFloat64, DataType::kInt8,
                               DataType::kInt16,   DataType::kInt32,   DataType::kInt64,
                               DataType::kUint8,   DataType::kUint16,  DataType::kUint32,
                               DataType::kUint64,  DataType::kBool,    DataType::kString};
constexpr size_t kMaxErrorBytes = 310;

void Require(bool holds, const char* what, std::string_view text) {
  if (holds) return;
  std::fprintf(stderr, "%s: %.*s\n", what, static_cast<int>(text.size()), text.data());
  std::abort();
}

Slot Dense(DataType dtype, Shape shape) {
  Slot slot;
  slot.dtype = dtype;
  slot.shape = std::move(shape);
  return slot;
}

Slot Sparse(DataType dtype, Shape shape) {
  Slot slot = Dense(dtype, std::move(shape));
  slot.is_sparse = true;
  return slot;
}

Slot AnyRank(Slot slot) {
  slot.any_rank = true;
  slot.shape.clear();
  return slot;
}

// Each input is also the name of an output.
Signature Made(std::map<std::string, Slot> inputs, const std::string& method = "predict") {
  Signature signature;
  signature.inputs = std::move(inputs);
  for (const auto& [name, slot] : signature.inputs) signature.outputs[name].dtype = slot.dtype;
  signature.method = method;
  return signature;
}

std::map<std::string, Signature> AllSignatures() {
  std::map<std::string, Slot> types;
  for (DataType dtype : kTypes) types[NameOf(dtype)] = Dense(dtype, {-1});
  return {{"serving_default", Made({{"ids", Dense(DataType::kInt64, {-1})},
                                    {"dense", Dense(DataType::kFloat32, {-1, 3})},
                                    {"text_bytes", Dense(DataType::kString, {-1})},
                                    {"tags", Sparse(DataType::kString, {-1, -1})}})},
          {"types", Made(std::move(types))},
          {"any", Made({{"x", AnyRank(Dense(DataType::kFloat32, {}))},
                        {"s", AnyRank(Sparse(DataType::kInt64, {}))}})},
          {"text", Made({{"x", AnyRank(Dense(DataType::kString, {}))}})},
          {"bool", Made({{"x", Dense(DataType::kBool, {-1, -1})}})},
          {"sparse", Made({{"s", Sparse(DataType::kFloat32, {-1, 4})}})},
          {"examples", Made({{"examples", Dense(DataType::kString, {-1})}}, "classify")}};
}

const std::map<std::string, Signature>& Signatures() {
  static const auto signatures = AllSignatures();
  return signatures;
}

// An answer that repeats the inputs, once they fit.
Outputs Echoed(const Inputs& inputs, const std::string& signature) {
  Outputs outputs;
  for (const auto& [name, slot] : Signatures().at(signature).inputs) {
    const Input& input = inputs.at(name);
    CheckFits(name, slot, input);
    const auto* sparse = std::get_if<SparseTensor>(&input);
    outputs.emplace(name, sparse ? sparse->values : std::get<Tensor>(input));
  }
  return outputs;
}

void RequireJson(std::string_view text) {
  try {
    ParseJsonObject(text);
  } catch (const Error& error) {
    Require(false, error.what(), text);
  }
}

// An answer with an error is JSON, and the error is one short line.
void RequireLine(const Error& error) {
  const std::string written = rest::WriteError(error.what());
  RequireJson(written);
  const std::string_view line = ParseJsonObject(written)["error"].get_string().value();
  Require(line.size() <= kMaxErrorBytes, "a long error", line);
  for (const unsigned char byte : line) Require(byte >= 0x20, "not one line", written);
}

void Predict(std::string_view body) {
  const auto request = rest::ReadPredict(body, Signatures());
  RequireJson(rest::WritePredict(Echoed(request.inputs, request.signature), request));
}

void Golden(std::string_view body) {
  for (const auto& request : rest::ReadGolden(body, Signatures())) {
    Echoed(request.inputs, request.signature);
  }
}

void Examples(std::string_view body) {
  rest::ExamplesInput(rest::ReadExamples(body), "classify", Signatures());
}

void Infer(std::string_view body, std::optional<size_t> json_size) {
  const auto request = oip::ReadInfer(body, json_size, Signatures());
  const auto outputs = Echoed(request.inputs, request.signature);
  const auto response = oip::WriteInfer(outputs, request, "model", 1);
  const std::string_view written = response.body;
  RequireJson(written.substr(0, response.json_size.value_or(written.size())));
}

void Base64(std::string_view text) {
  Require(DecodeBase64(EncodeBase64(text)) == text, "another text after base64", text);
  DecodeBase64(text);
}

void Read(std::string_view input) {
  if (input.empty()) return;
  const char reader = input.front();
  input.remove_prefix(1);
  if (reader == 'p') {
    Predict(input);
  } else if (reader == 'g') {
    Golden(input);
  } else if (reader == 'e') {
    Examples(input);
  } else if (reader == 'i') {
    Infer(input, std::nullopt);
  } else if (reader == 'r' && input.size() >= 2) {
    // Two bytes with the size of the JSON, the JSON, and raw bytes.
    const size_t size = static_cast<uint8_t>(input[0]) | static_cast<uint8_t>(input[1]) << 8;
    Infer(input.substr(2), size);
  } else if (reader == 'b') {
    Base64(input);
  }
}

}  // namespace
}  // namespace tfdist

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace tfdist;
  try {
    Read({reinterpret_cast<const char*>(data), size});
  } catch (const Error& error) {
    RequireLine(error);
  }
  return 0;
}
