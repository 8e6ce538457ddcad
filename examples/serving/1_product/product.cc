// Loads a model that computes c = a x b, and multiplies two numbers:
//
//   product model/1 3 4
//
// A model is a function from named tensors to named tensors. A tensor is an array with a shape; in
// C++ its values are one std::vector. Python has written the model into a folder, and this program
// runs it without Python.
//
// TensorFlow logs to standard error. TF_CPP_MIN_LOG_LEVEL=3 in the environment hides most of it.

#include <exception>
#include <iostream>
#include <string>
#include <vector>

#include "predictor.h"

int main(int argc, char** argv) {
  if (argc != 4) {
    std::cerr << "usage: product MODEL A B\n";
    return 2;
  }
  try {
    // Takes up to a second. Load once, and then call Predict as often as you like, by as many
    // threads as you like.
    const auto predictor = tfdist::Predictor::Load(argv[1]);

    // The model knows what it takes and returns. `serving_default` is the usual signature.
    const tfdist::Signature& signature = predictor->signatures().at("serving_default");
    for (const auto& [name, slot] : signature.inputs) {
      std::cout << "input " << name << ": " << tfdist::NameOf(slot.dtype) << " "
                << tfdist::TextOf(slot.shape) << "\n";  // "?" is a size that you choose
    }

    // The shape {1} is a list of one number. With {1000} the model multiplies 1000 pairs in one
    // call. The type must be that of the input: float is float32.
    const tfdist::Tensor a({1}, std::vector<float>{std::stof(argv[2])});
    const tfdist::Tensor b({1}, std::vector<float>{std::stof(argv[3])});
    const tfdist::Outputs outputs = predictor->Predict({{"a", a}, {"b", b}});

    const std::vector<float>& c = outputs.at("c").values<float>();
    std::cout << argv[2] << " x " << argv[3] << " = " << c.at(0) << "\n";
  } catch (const std::exception& error) {  // tfdist::Error has a message of one line
    std::cerr << "product: " << error.what() << "\n";
    return 1;
  }
  return 0;
}
