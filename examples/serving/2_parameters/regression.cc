// Loads one model from three kinds of files, and shows that the answers agree:
//
//   regression model/1 model/1/frozen.pb checkpoint/graph.pb checkpoint/model
//
// The computation is a graph of operations. Its parameters are variables, whose values training has
// found. The three forms differ in where these values are.

#include <cmath>
#include <cstdio>
#include <exception>
#include <memory>
#include <vector>

#include "predictor.h"

namespace {

// y for two rows of x. A matrix is one vector, row after row.
std::vector<float> Compute(const char* form, const tfdist::Predictor& predictor) {
  const tfdist::Tensor x({2, 2}, std::vector<float>{1, 1, 10, 0});
  const tfdist::Outputs outputs = predictor.Predict({{"x", x}});
  const std::vector<float> y = outputs.at("y").values<float>();
  std::printf("%-22s y(1, 1) = %.3f   y(10, 0) = %.3f\n", form, y.at(0), y.at(1));
  return y;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 5) {
    std::fprintf(stderr, "usage: regression SAVED_MODEL FROZEN_GRAPH GRAPH CHECKPOINT\n");
    return 2;
  }
  try {
    // 1. A SavedModel is a folder with the graph, the values of the variables, and signatures: the
    // names of the inputs and outputs. Prefer it.
    const auto saved_model = tfdist::Predictor::Load(argv[1]);

    // 2. A frozen graph is one file: each variable has become a constant. It has no signature, so
    // the inputs are its placeholders, and the outputs are the operations that no other one reads.
    const auto frozen = tfdist::Predictor::LoadGraph(argv[2]);

    // 3. A graph whose variables have no values yet, and the checkpoint that has them. It is named
    // without the suffixes of its files. The graph also contains operations that save and restore,
    // so name the outputs.
    const auto restored = tfdist::Predictor::LoadGraph(argv[3], {"y"}, argv[4]);

    const std::vector<float> first = Compute("SavedModel:", *saved_model);
    for (const std::vector<float>& other :
         {Compute("frozen graph:", *frozen), Compute("graph and checkpoint:", *restored)}) {
      for (size_t i = 0; i < first.size(); ++i) {
        if (std::abs(first[i] - other[i]) > 1e-5f) {
          std::printf("the answers differ\n");
          return 1;
        }
      }
    }
    std::printf("the three agree\n");
  } catch (const std::exception& error) {
    std::fprintf(stderr, "regression: %s\n", error.what());
    return 1;
  }
  return 0;
}
