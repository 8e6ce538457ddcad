#include "open_inference.h"

#include <algorithm>
#include <cstring>
#include <set>
#include <utility>

#include "json.h"

namespace tfdist::oip {
namespace {

constexpr const char* kTypes[] = {"FP32",  "FP64",   "INT8",   "INT16",  "INT32", "INT64",
                                  "UINT8", "UINT16", "UINT32", "UINT64", "BOOL",  "BYTES"};
static_assert(std::size(kTypes) == std::variant_size_v<Values>);
constexpr const char* kParts[] = {"indices", "values", "dense_shape"};

const char* TypeText(DataType dtype) { return kTypes[static_cast<int>(dtype)]; }

bool Flag(const JsonObject& object, const char* key) {
  Json parameters;
  bool flag = false;
  if (object["parameters"].get(parameters)) return false;
  JsonObject members;
  if (parameters.get(members)) ThrowInvalid("parameters must be an object");
  Json value;
  if (!members[key].get(value) && value.get(flag)) {
    ThrowInvalid(std::string(key) + " must be true or false, not " + Excerpt(value));
  }
  return flag;
}

Shape ReadShape(const std::string& name, const JsonObject& tensor) {
  Json value;
  if (tensor["shape"].get(value)) ThrowInvalid(name + " has no shape");
  Values sizes = NoValues(DataType::kInt64);
  if (ReadNested(name + ".shape", value, &sizes).size() != 1) {
    ThrowInvalid(name + ".shape must be a list of numbers");
  }
  const auto& shape = std::get<std::vector<int64_t>>(sizes);
  for (int64_t size : shape) {
    if (size < 0) ThrowInvalid(name + ".shape must have sizes from 0, not " + std::to_string(size));
  }
  return shape;
}

Tensor Made(const std::string& name, Shape shape, Values values) {
  try {
    return Tensor(std::move(shape), std::move(values));
  } catch (const Error& error) {
    ThrowInvalid(name + ": " + error.what());
  }
}

std::vector<std::string> RawTexts(const std::string& name, std::string_view raw) {
  std::vector<std::string> texts;
  while (!raw.empty()) {
    uint32_t size = 0;  // little-endian, as this machine
    if (raw.size() < sizeof(size)) ThrowInvalid(name + " ends within the size of a text");
    std::memcpy(&size, raw.data(), sizeof(size));
    raw.remove_prefix(sizeof(size));
    if (raw.size() < size) ThrowInvalid(name + " ends within a text");
    texts.emplace_back(raw.substr(0, size));
    raw.remove_prefix(size);
  }
  return texts;
}

Values RawValues(const std::string& name, DataType dtype, std::string_view raw) {
  Values values = NoValues(dtype);
  std::visit(
      [&](auto& typed) {
        using T = typename std::decay_t<decltype(typed)>::value_type;
        if constexpr (std::is_same_v<T, std::string>) {
          typed = RawTexts(name, raw);
        } else if constexpr (std::is_same_v<T, bool>) {
          for (const char byte : raw) typed.push_back(byte != 0);
        } else {
          if (raw.size() % sizeof(T) != 0) {
            ThrowInvalid(name + " has " + std::to_string(raw.size()) + " bytes, which are no " +
                         NameOf(dtype) + " values");
          }
          typed.resize(raw.size() / sizeof(T));
          if (!raw.empty()) std::memcpy(typed.data(), raw.data(), raw.size());
        }
      },
      values);
  return values;
}

template <class T>
std::string RawBytes(const std::vector<T>& values) {
  std::string raw;
  if constexpr (std::is_same_v<T, std::string>) {
    for (const auto& text : values) {
      const uint32_t size = text.size();
      raw.append(reinterpret_cast<const char*>(&size), sizeof(size)).append(text);
    }
  } else if constexpr (std::is_same_v<T, bool>) {
    for (const bool flag : values) raw.push_back(flag);
  } else {
    raw.assign(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T));
  }
  return raw;
}

// Takes the raw bytes of the tensor, if it has some, from the start of `raw`.
Tensor ReadTensor(const std::string& name, const JsonObject& tensor, DataType dtype,
                  std::string_view* raw) {
  const std::string type = TextMember(tensor, "datatype", "");
  if (type != TypeText(dtype)) {
    ThrowInvalid(name + ".datatype must be " + TypeText(dtype) + ", not \"" + Shortened(type) +
                 "\"");
  }
  Shape shape = ReadShape(name, tensor);
  uint64_t raw_size = 0;
  Json data;
  if (!tensor["data"].get(data)) {
    Values values = NoValues(dtype);
    ReadNested(name, data, &values);  // flat, or nested as the shape
    return Made(name, std::move(shape), std::move(values));
  }
  if (tensor["parameters"]["binary_data_size"].get(raw_size) || raw_size > raw->size()) {
    ThrowInvalid(name + " must have data, or a binary_data_size within the body");
  }
  const std::string_view bytes = raw->substr(0, raw_size);
  raw->remove_prefix(raw_size);
  return Made(name, std::move(shape), RawValues(name, dtype, bytes));
}

// The tensors of which an input consists, by the names that the protocol has for them.
std::vector<std::pair<std::string, Slot>> PartsOf(const std::string& name, const Slot& slot) {
  if (!slot.is_sparse) return {{name, slot}};
  Slot numbers;
  numbers.dtype = DataType::kInt64;
  Slot indices = numbers, values = slot, dense_shape = numbers;
  indices.shape = {-1, slot.any_rank ? -1 : static_cast<int64_t>(slot.shape.size())};
  values.shape = {-1};
  values.any_rank = false;
  dense_shape.shape = {indices.shape[1]};
  return {{name + "/" + kParts[0], indices},
          {name + "/" + kParts[1], values},
          {name + "/" + kParts[2], dense_shape}};
}

Inputs ReadInputs(const JsonArray& list, const Signature& signature, std::string_view raw) {
  std::map<std::string, DataType> known;
  for (const auto& [name, slot] : signature.inputs) {
    for (const auto& [part, part_slot] : PartsOf(name, slot)) known[part] = part_slot.dtype;
  }
  std::map<std::string, Tensor> tensors;
  for (Json each : list) {
    JsonObject tensor;
    if (each.get(tensor)) ThrowInvalid("an input must be an object, not " + Excerpt(each));
    const std::string name = TextMember(tensor, "name", "");
    const auto found = known.find(name);
    if (found == known.end()) ThrowInvalid("there is no input \"" + Shortened(name) + "\"");
    if (!tensors.emplace(name, ReadTensor(name, tensor, found->second, &raw)).second) {
      ThrowInvalid("the input " + name + " is given twice");
    }
  }
  if (!raw.empty()) ThrowInvalid(std::to_string(raw.size()) + " bytes belong to no input");
  const auto take = [&](const std::string& name) {
    const auto found = tensors.find(name);
    if (found == tensors.end()) ThrowInvalid("the input " + name + " is missing");
    return std::move(found->second);
  };
  Inputs inputs;
  for (const auto& [name, slot] : signature.inputs) {
    if (slot.is_sparse) {
      inputs.emplace(name, SparseTensor{take(name + "/" + kParts[0]), take(name + "/" + kParts[1]),
                                        take(name + "/" + kParts[2])});
    } else {
      inputs.emplace(name, take(name));
    }
  }
  return inputs;
}

std::vector<RequestedOutput> ReadOutputs(const JsonObject& object, const Signature& signature,
                                         bool binary) {
  std::vector<RequestedOutput> outputs;
  std::set<std::string> names;
  Json value;
  if (object["outputs"].get(value)) return outputs;
  JsonArray list;
  if (value.get(list)) ThrowInvalid("\"outputs\" must be a list, not " + Excerpt(value));
  for (Json each : list) {
    JsonObject output;
    if (each.get(output)) ThrowInvalid("an output must be an object, not " + Excerpt(each));
    const std::string name = TextMember(output, "name", "");
    if (signature.outputs.count(name) == 0) {
      ThrowInvalid("there is no output \"" + Shortened(name) + "\"");
    }
    if (!names.insert(name).second) ThrowInvalid("the output " + name + " is listed twice");
    Json unused;
    if (!output["parameters"]["classification"].get(unused)) {
      ThrowInvalid(name + ": the classification extension is not supported");
    }
    outputs.push_back({name, binary || Flag(output, "binary_data")});
  }
  return outputs;
}

void WriteSlots(const std::map<std::string, Slot>& slots, std::string* json) {
  const char* comma = "";
  for (const auto& [name, slot] : slots) {
    for (const auto& [part, about] : PartsOf(name, slot)) {
      json->append(comma).append("{\"name\": ");
      WriteText(part, json);
      json->append(", \"datatype\": \"").append(TypeText(about.dtype)).append("\", \"shape\": ");
      WriteFlat(Tensor({static_cast<int64_t>(about.shape.size())}, about.shape), json);
      json->append("}");
      comma = ", ";
    }
  }
}

}  // namespace

InferRequest ReadInfer(std::string_view body, std::optional<size_t> json_size,
                       const Signatures& signatures) {
  if (json_size && *json_size > body.size()) {
    ThrowInvalid("Inference-Header-Content-Length must be at most the size of the body");
  }
  const JsonObject object = ParseJsonObject(body.substr(0, json_size.value_or(body.size())));
  const std::string_view raw = body.substr(json_size.value_or(body.size()));
  InferRequest request;
  request.id = TextMember(object, "id", "");
  request.binary = Flag(object, "binary_data_output");
  request.signature = "serving_default";
  JsonObject parameters;
  if (!object["parameters"].get(parameters)) {
    request.signature = TextMember(parameters, "signature_name", request.signature);
  }
  const Signature& signature = FindSignature(signatures, request.signature);
  JsonArray list;
  if (object["inputs"].get(list)) ThrowInvalid("the body must have a list \"inputs\"");
  request.inputs = ReadInputs(list, signature, raw);
  request.outputs = ReadOutputs(object, signature, request.binary);
  return request;
}

InferResponse WriteInfer(const Outputs& outputs, const InferRequest& request,
                         const std::string& model, int64_t version) {
  std::vector<RequestedOutput> wanted = request.outputs;
  if (wanted.empty()) {
    for (const auto& [name, output] : outputs) wanted.push_back({name, request.binary});
  }
  std::string json = "{\"model_name\": ", raw;
  WriteText(model, &json);
  json += ", \"model_version\": \"" + std::to_string(version) + "\"";
  if (!request.id.empty()) {
    json += ", \"id\": ";
    WriteText(request.id, &json);
  }
  json += ", \"outputs\": [";
  bool any_binary = false;
  const char* comma = "";
  for (const auto& [name, binary] : wanted) {
    const Tensor& output = outputs.at(name);
    json.append(comma).append("{\"name\": ");
    WriteText(name, &json);
    json.append(", \"datatype\": \"").append(TypeText(output.dtype())).append("\", \"shape\": ");
    WriteFlat(Tensor({static_cast<int64_t>(output.shape().size())}, output.shape()), &json);
    if (binary) {
      const std::string bytes =
          std::visit([](const auto& values) { return RawBytes(values); }, output.any_values());
      json += ", \"parameters\": {\"binary_data_size\": " + std::to_string(bytes.size()) + "}}";
      raw += bytes;
      any_binary = true;
    } else {
      json += ", \"data\": ";
      WriteFlat(output, &json);
      json += "}";
    }
    comma = ", ";
  }
  json += "]}";
  InferResponse response;
  if (any_binary) response.json_size = json.size();
  response.body = json + raw;
  return response;
}

std::string WriteServerMetadata() {
  return "{\"name\": \"tfdist\", \"version\": \"1\", \"extensions\": [\"binary_tensor_data\"]}\n";
}

std::string WriteModelMetadata(const std::string& model, const std::vector<int64_t>& versions,
                               const Signatures& signatures) {
  std::string json = "{\"name\": ";
  WriteText(model, &json);
  json += ", \"versions\": [";
  for (size_t i = 0; i < versions.size(); ++i) {
    json += (i > 0 ? ", \"" : "\"") + std::to_string(versions[i]) + "\"";
  }
  json += "], \"platform\": \"tensorflow_savedmodel\", \"inputs\": [";
  const auto found = signatures.find("serving_default");
  if (found != signatures.end()) WriteSlots(found->second.inputs, &json);
  json += "], \"outputs\": [";
  if (found != signatures.end()) WriteSlots(found->second.outputs, &json);
  return json + "]}\n";
}

}  // namespace tfdist::oip
