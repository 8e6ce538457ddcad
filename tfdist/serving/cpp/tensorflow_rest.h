// Bodies of TensorFlow Serving's REST API.
// https://www.tensorflow.org/tfx/serving/api_rest

#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "predictor.h"

namespace tfdist::rest {

struct PredictRequest {
  std::string signature;
  Inputs inputs;
  int64_t num_rows = -1;  // of the row format; -1 for the columnar format
};

// Throws Error.
PredictRequest ReadPredict(std::string_view body, const Signatures& signatures);

// The answer in the format of the request. Throws Error if it has the row format and an output has
// not as many rows.
std::string WritePredict(const Outputs& outputs, const PredictRequest& request);

// The requests of a golden.json, which `tfdist export` writes. Throws Error.
std::vector<PredictRequest> ReadGolden(std::string_view text, const Signatures& signatures);

// Of :classify and :regress.
struct ExamplesRequest {
  std::string signature;
  std::vector<Example> examples;
};

// Throws Error.
ExamplesRequest ReadExamples(std::string_view body);

// The input of the signature: the serialized examples. Throws Error if the signature has another
// method or does not take examples.
Inputs ExamplesInput(const ExamplesRequest& request, const std::string& method,
                     const Signatures& signatures);

// Throw Error if the outputs are not those of the method.
std::string WriteClassify(const Outputs& outputs);
std::string WriteRegress(const Outputs& outputs);

struct VersionStatus {
  int64_t version;
  std::string state;  // such as "AVAILABLE"
  std::string error;  // empty if there is none
};

std::string WriteStatus(const std::vector<VersionStatus>& versions);
std::string WriteMetadata(const std::string& model, int64_t version, const Signatures& signatures);
std::string WriteError(std::string_view message);

}  // namespace tfdist::rest
