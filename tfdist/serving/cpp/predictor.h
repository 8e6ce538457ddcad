// Runs a TensorFlow model in this process. No header of TensorFlow is needed to use it.
//
//   const auto predictor = tfdist::Predictor::Load("models/ratings/1");
//   const tfdist::Tensor user({2}, std::vector<int64_t>{7, 8});
//   const tfdist::Outputs outputs = predictor->Predict({{"user", user}});
//   const std::vector<float>& scores = outputs.at("score").values<float>();

#pragma once

#include <map>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "tensor.h"

namespace tfdist {

// A feature of a tf.Example: numbers or bytes.
using Feature = std::variant<std::vector<int64_t>, std::vector<float>, std::vector<std::string>>;
using Example = std::map<std::string, Feature>;

std::string Serialize(const Example& example);

// A signal handler that interrupts `Predict` can damage the memory of the process: oneDNN's matrix
// products do not bear it on some machines. Block signals in the threads that predict.
//
// A loaded model. All methods can be called by several threads at the same time: they share the
// session, and so one copy of the parameters.
class Predictor {
 public:
  // Loads the SavedModel in a folder, and initializes its lookup tables. The first model of a
  // process takes up to a second, since TensorFlow registers its kernels. Throws Error.
  static std::unique_ptr<Predictor> Load(const std::string& folder);

  // Loads a binary GraphDef. The outputs of its only signature, `serving_default`, are the
  // operations with these names; without names, those that no other operation reads. The inputs are
  // the placeholders that they need. If a checkpoint is given, `save/restore_all` restores it,
  // which a tf.compat.v1.train.Saver has put into the graph; then the outputs have to be named.
  // Throws Error.
  static std::unique_ptr<Predictor> LoadGraph(const std::string& file,
                                              const std::vector<std::string>& outputs = {},
                                              const std::string& checkpoint = "");

  virtual ~Predictor() = default;

  virtual const Signatures& signatures() const = 0;

  // Computes the outputs of a signature in the calling thread, without a time limit. Throws Error
  // if there is no such signature; if an input is missing, unknown, or of another type or shape; or
  // if an operation of the model fails.
  virtual Outputs Predict(const Inputs& inputs,
                          const std::string& signature = "serving_default") const = 0;
};

}  // namespace tfdist
