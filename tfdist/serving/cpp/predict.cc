// Loads a model that computes c = a x b, and computes one product:
//
//   predict models/product/1 3 4

#include <cstdlib>
#include <iostream>
#include <vector>

#include "predictor.h"

int main(int argc, char** argv) {
  if (argc != 4) {
    std::cerr << "usage: predict MODEL A B\n";
    return 2;
  }
  try {
    const auto predictor = tfdist::Predictor::Load(argv[1]);
    // One row. The first dimension of an input is the number of rows.
    const tfdist::Tensor a({1}, std::vector<float>{std::strtof(argv[2], nullptr)});
    const tfdist::Tensor b({1}, std::vector<float>{std::strtof(argv[3], nullptr)});
    const tfdist::Outputs outputs = predictor->Predict({{"a", a}, {"b", b}});
    std::cout << outputs.at("c").values<float>().at(0) << "\n";
  } catch (const std::exception& error) {
    std::cerr << "predict: " << error.what() << "\n";
    return 1;
  }
  return 0;
}
