#include "tensorflow_rest.h"

#include <algorithm>
#include <utility>

#include "json.h"

namespace tfdist::rest {
namespace {

constexpr const char* kDefaultSignature = "serving_default";
constexpr size_t kMaxErrorBytes = 300;
// Features of the context in all examples together.
constexpr size_t kMaxContextBytes = 64 << 20;

void CheckKeys(const JsonObject& object, const std::vector<std::string_view>& known) {
  for (const auto& [key, value] : object) {
    if (std::find(known.begin(), known.end(), key) == known.end()) {
      ThrowInvalid("there is no key " + Shortened(key));
    }
  }
}

// Inputs by name; a value without a name is the only input.
bool HasNames(Json value) { return value.is_object() && !IsBytes(value); }

void CheckNames(const JsonObject& object, const Signature& signature) {
  for (const auto& [key, value] : object) {
    if (signature.inputs.count(std::string(key)) == 0) {
      ThrowInvalid("there is no input " + Shortened(key));
    }
  }
}

Json Member(const JsonObject& object, const std::string& name) {
  Json value;
  if (object[name].get(value)) ThrowInvalid("the input " + name + " is missing");
  return value;
}

const std::pair<const std::string, Slot>& OnlyInput(const Signature& signature) {
  if (signature.inputs.size() != 1) {
    ThrowInvalid("the signature has " + std::to_string(signature.inputs.size()) +
                 " inputs: name each one");
  }
  return *signature.inputs.begin();
}

Inputs ReadColumns(Json columns, const Signature& signature) {
  Inputs inputs;
  // A SparseTensor is an object too. It needs no name if its keys are not names of inputs.
  const bool has_names =
      HasNames(columns) &&
      !(signature.inputs.size() == 1 && signature.inputs.begin()->second.is_sparse &&
        columns.get_object().value()[signature.inputs.begin()->first].error());
  if (!has_names) {
    const auto& [name, slot] = OnlyInput(signature);
    inputs.emplace(name, ReadInput(name, columns, slot));
    return inputs;
  }
  const JsonObject object = columns.get_object().value();
  CheckNames(object, signature);
  for (const auto& [name, slot] : signature.inputs) {
    inputs.emplace(name, ReadInput(name, Member(object, name), slot));
  }
  return inputs;
}

Inputs ReadInstances(const std::vector<Json>& rows, const Signature& signature) {
  std::map<std::string, std::vector<Json>> columns;
  for (Json row : rows) {
    if (!HasNames(row)) {
      columns[OnlyInput(signature).first].push_back(row);
      continue;
    }
    const JsonObject object = row.get_object().value();
    CheckNames(object, signature);
    for (const auto& [name, slot] : signature.inputs) {
      columns[name].push_back(Member(object, name));
    }
  }
  Inputs inputs;
  for (const auto& [name, slot] : signature.inputs) {
    inputs.emplace(name, ReadRows(name, columns[name], slot));
  }
  return inputs;
}

Feature ReadFeature(const std::string& name, Json value) {
  std::vector<Json> values = {value};
  JsonArray list;
  if (!value.get(list)) values = ElementsOf(list);
  const auto read = [&](DataType dtype) {
    Values read = NoValues(dtype);
    for (Json each : values) {
      if (each.is_array()) ThrowInvalid(name + " must be a value or a list of values");
      ReadNested(name, each, &read);
    }
    return read;
  };
  const auto are = [&](auto check) { return std::all_of(values.begin(), values.end(), check); };
  if (are([](Json each) { return each.is_int64() || each.is_uint64(); })) {
    return std::get<std::vector<int64_t>>(read(DataType::kInt64));
  }
  if (are([](Json each) { return each.is_number(); })) {
    return std::get<std::vector<float>>(read(DataType::kFloat32));
  }
  return std::get<std::vector<std::string>>(read(DataType::kString));
}

void AddFeatures(Json value, const std::string& what, Example* example) {
  JsonObject features;
  if (value.get(features)) ThrowInvalid(what + " must be an object, not " + Excerpt(value));
  for (const auto& [key, feature] : features) {
    const std::string name(key);
    if (!example->emplace(name, ReadFeature(Shortened(name), feature)).second) {
      ThrowInvalid("the feature " + Shortened(name) + " is given twice");
    }
  }
}

size_t BytesOf(const Example& example) {
  size_t bytes = 0;
  for (const auto& [name, feature] : example) {
    bytes += name.size() + sizeof(feature);
    if (const auto* texts = std::get_if<std::vector<std::string>>(&feature)) {
      for (const auto& text : *texts) bytes += text.size() + sizeof(text);
    } else {
      bytes += sizeof(int64_t) * std::visit([](const auto& each) { return each.size(); }, feature);
    }
  }
  return bytes;
}

const Tensor& Output(const Outputs& outputs, const std::string& name, size_t rank) {
  const auto found = outputs.find(name);
  if (found == outputs.end() || found->second.shape().size() != rank) {
    throw Error(Error::Code::kInternal, "the signature has no output " + name + " with " +
                                            std::to_string(rank) + " dimensions");
  }
  return found->second;
}

std::string TypeText(const Slot& slot) {
  constexpr const char* kNames[] = {"DT_FLOAT",  "DT_DOUBLE", "DT_INT8",  "DT_INT16",
                                    "DT_INT32",  "DT_INT64",  "DT_UINT8", "DT_UINT16",
                                    "DT_UINT32", "DT_UINT64", "DT_BOOL",  "DT_STRING"};
  return kNames[static_cast<int>(slot.dtype)];
}

void WriteSlots(const std::map<std::string, Slot>& slots, std::string* json) {
  const char* comma = "";
  for (const auto& [name, slot] : slots) {
    json->append(comma);
    WriteText(name, json);
    json->append(": {\"dtype\": \"" + TypeText(slot) + "\", \"tensor_shape\": {\"dim\": [");
    for (size_t i = 0; i < slot.shape.size(); ++i) {
      json->append(i > 0 ? ", " : "").append("{\"size\": \"" + std::to_string(slot.shape[i]));
      json->append("\", \"name\": \"\"}");
    }
    json->append("], \"unknown_rank\": ").append(slot.any_rank ? "true" : "false");
    json->append("}, \"name\": ");
    WriteText(slot.tensor, json);
    json->append("}");
    comma = ", ";
  }
}

}  // namespace

PredictRequest ReadPredict(std::string_view body, const Signatures& signatures) {
  const JsonObject object = ParseJsonObject(body);
  CheckKeys(object, {"signature_name", "instances", "inputs"});
  PredictRequest request;
  request.signature = TextMember(object, "signature_name", kDefaultSignature);
  const Signature& signature = FindSignature(signatures, request.signature);
  Json instances, columns;
  const bool has_rows = !object["instances"].get(instances);
  const bool has_columns = !object["inputs"].get(columns);
  if (has_rows == has_columns) {
    ThrowInvalid("the body must have either \"instances\" or \"inputs\"");
  }
  if (has_columns) {
    request.inputs = ReadColumns(columns, signature);
    return request;
  }
  JsonArray list;
  if (instances.get(list) || list.size() == 0) {
    ThrowInvalid("\"instances\" must be a list with at least one row, not " + Excerpt(instances));
  }
  const std::vector<Json> rows = ElementsOf(list);
  request.num_rows = rows.size();
  request.inputs = ReadInstances(rows, signature);
  return request;
}

std::string WritePredict(const Outputs& outputs, const PredictRequest& request) {
  std::string json;
  const bool has_names = outputs.size() != 1;
  const char* comma = "";
  if (request.num_rows < 0) {
    json = has_names ? "{\"outputs\": {" : "{\"outputs\": ";
    for (const auto& [name, output] : outputs) {
      json += comma;
      if (has_names) {
        WriteText(name, &json);
        json += ": ";
      }
      WriteNested(name, output, &json);
      comma = ", ";
    }
    return json + (has_names ? "}}" : "}");
  }
  for (const auto& [name, output] : outputs) {
    if (output.shape().empty() || output.shape()[0] != request.num_rows) {
      ThrowInvalid("the output " + name + " has the shape " + TextOf(output.shape()) +
                   " and no row for each instance: send \"inputs\"");
    }
  }
  json = "{\"predictions\": [";
  for (int64_t row = 0; row < request.num_rows; ++row) {
    if (row > 0) json += ", ";
    if (has_names) json += '{';
    comma = "";
    for (const auto& [name, output] : outputs) {
      json += comma;
      if (has_names) {
        WriteText(name, &json);
        json += ": ";
      }
      WriteRow(name, output, row, &json);
      comma = ", ";
    }
    if (has_names) json += '}';
  }
  return json + "]}";
}

std::vector<PredictRequest> ReadGolden(std::string_view text, const Signatures& signatures) {
  const JsonObject object = ParseJsonObject(text);
  JsonArray list;
  if (object["requests"].get(list)) ThrowInvalid("golden.json must have a list \"requests\"");
  std::vector<PredictRequest> requests;
  for (Json each : list) {
    JsonObject members;
    Json columns;
    if (each.get(members) || members["inputs"].get(columns)) {
      ThrowInvalid("golden.json must have inputs for each request");
    }
    PredictRequest request;
    request.signature = TextMember(members, "signature_name", kDefaultSignature);
    request.inputs = ReadColumns(columns, FindSignature(signatures, request.signature));
    requests.push_back(std::move(request));
  }
  return requests;
}

ExamplesRequest ReadExamples(std::string_view body) {
  const JsonObject object = ParseJsonObject(body);
  CheckKeys(object, {"signature_name", "context", "examples"});
  ExamplesRequest request;
  request.signature = TextMember(object, "signature_name", kDefaultSignature);
  Example context;
  Json value;
  if (!object["context"].get(value)) AddFeatures(value, "\"context\"", &context);
  JsonArray list;
  if (object["examples"].get(list) || list.size() == 0) {
    ThrowInvalid("\"examples\" must be a list with at least one example");
  }
  if (BytesOf(context) > kMaxContextBytes / list.size()) {
    ThrowInvalid("\"context\" is too large to be copied into " + std::to_string(list.size()) +
                 " examples");
  }
  for (Json each : list) {
    Example example = context;
    AddFeatures(each, "an example", &example);
    request.examples.push_back(std::move(example));
  }
  return request;
}

Inputs ExamplesInput(const ExamplesRequest& request, const std::string& method,
                     const Signatures& signatures) {
  const Signature& signature = FindSignature(signatures, request.signature);
  if (signature.method != method) {
    ThrowInvalid("the method of the signature " + request.signature + " must be " + method +
                 ", not " + signature.method);
  }
  std::vector<std::string> serialized;
  for (const auto& example : request.examples) serialized.push_back(Serialize(example));
  const int64_t size = serialized.size();
  return {{OnlyInput(signature).first, Tensor({size}, std::move(serialized))}};
}

std::string WriteClassify(const Outputs& outputs) {
  // A model has classes, scores, or both, of the shape [examples, classes].
  const Tensor* classes = outputs.count("classes") ? &Output(outputs, "classes", 2) : nullptr;
  const Tensor* scores =
      outputs.count("scores") || !classes ? &Output(outputs, "scores", 2) : nullptr;
  const Shape& shape = (classes ? classes : scores)->shape();
  if (classes && scores && scores->shape() != shape) {
    throw Error(Error::Code::kInternal, "the outputs classes and scores have not the same shape");
  }
  std::string json = "{\"results\": [";
  for (int64_t i = 0; i < shape[0] * shape[1]; ++i) {
    json += i % shape[1] > 0 ? ", " : i > 0 ? "], [" : "[";
    json += '[';
    WriteText(classes ? classes->values<std::string>()[i] : "", &json);
    json += ", ";
    WriteNested("", Tensor({}, std::vector<float>{scores ? scores->values<float>()[i] : 0}), &json);
    json += ']';
  }
  return json + (shape[0] * shape[1] > 0 ? "]]}" : "]}");
}

std::string WriteRegress(const Outputs& outputs) {
  const auto found = outputs.find("outputs");
  if (found == outputs.end()) {
    throw Error(Error::Code::kInternal, "the signature has no output named outputs");
  }
  std::string json = "{\"results\": ";
  WriteFlat(found->second, &json);  // [examples] or [examples, 1]
  return json + "}";
}

std::string WriteStatus(const std::vector<VersionStatus>& versions) {
  std::string json = "{\"model_version_status\": [";
  for (const auto& each : versions) {
    if (&each != &versions.front()) json += ", ";
    json += "{\"version\": \"" + std::to_string(each.version) + "\", \"state\": \"" + each.state +
            "\", \"status\": {\"error_code\": \"" + (each.error.empty() ? "OK" : "UNKNOWN") +
            "\", \"error_message\": ";
    WriteText(each.error, &json);
    json += "}}";
  }
  return json + "]}\n";
}

std::string WriteMetadata(const std::string& model, int64_t version, const Signatures& signatures) {
  std::string json = "{\"model_spec\": {\"name\": ";
  WriteText(model, &json);
  json += ", \"signature_name\": \"\", \"version\": \"" + std::to_string(version) +
          "\"}, \"metadata\": {\"signature_def\": {\"signature_def\": {";
  const char* comma = "";
  for (const auto& [name, signature] : signatures) {
    json += comma;
    WriteText(name, &json);
    json += ": {\"inputs\": {";
    WriteSlots(signature.inputs, &json);
    json += "}, \"outputs\": {";
    WriteSlots(signature.outputs, &json);
    json += "}, \"method_name\": ";
    WriteText(signature.method, &json);
    json += "}";
    comma = ", ";
  }
  return json + "}}}}\n";
}

std::string WriteError(std::string_view message) {
  std::string text(message);
  if (!simdjson::validate_utf8(text)) {
    std::replace_if(text.begin(), text.end(), [](char byte) { return (byte & 0x80) != 0; }, '?');
  }
  // A key of the request, or what TensorFlow quotes of its values, can have any characters.
  std::replace_if(
      text.begin(), text.end(), [](unsigned char byte) { return byte < 0x20 || byte == 0x7f; },
      ' ');
  text = Shortened(text, kMaxErrorBytes);
  std::string json = "{\"error\": ";
  WriteText(text, &json);
  return json + "}\n";
}

}  // namespace tfdist::rest
