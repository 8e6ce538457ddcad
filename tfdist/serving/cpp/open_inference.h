// Bodies of the Open Inference Protocol, version 2, over HTTP: what clients of KServe and Triton
// send. https://github.com/kserve/open-inference-protocol
//
// A SparseTensor `tags` is three tensors: `tags/indices`, `tags/values` and `tags/dense_shape`.

#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "predictor.h"

namespace tfdist::oip {

struct RequestedOutput {
  std::string name;
  bool binary = false;
};

struct InferRequest {
  std::string id;
  std::string signature;
  Inputs inputs;
  std::vector<RequestedOutput> outputs;  // empty for all
  bool binary = false;                   // for outputs that the request does not list
};

// `json_size` is given if values follow the JSON as raw bytes (Triton's binary tensor extension,
// header `Inference-Header-Content-Length`). Throws Error.
InferRequest ReadInfer(std::string_view body, std::optional<size_t> json_size,
                       const Signatures& signatures);

struct InferResponse {
  std::string body;
  std::optional<size_t> json_size;  // if raw bytes follow the JSON
};

// Throws Error if the request lists an unknown output.
InferResponse WriteInfer(const Outputs& outputs, const InferRequest& request,
                         const std::string& model, int64_t version);

std::string WriteServerMetadata();
std::string WriteModelMetadata(const std::string& model, const std::vector<int64_t>& versions,
                               const Signatures& signatures);

}  // namespace tfdist::oip
