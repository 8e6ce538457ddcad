// Predicts ratings with a model that was trained from TFRecord files:
//
//   ratings model/1
//
// In training the graph read files, parsed records, and kept its tables on parameter servers. The
// exported model does none of it: it takes features, and this program makes them.

#include <cstdint>
#include <cstdio>
#include <exception>
#include <string>
#include <vector>

#include "predictor.h"

namespace {

struct Viewing {
  int64_t user, film;
  float dense[2];
  std::vector<std::string> tags;  // any number
};

// One row of each input for each viewing. The names and types are those of the records.
tfdist::Inputs InputsOf(const std::vector<Viewing>& viewings) {
  const int64_t rows = viewings.size();
  std::vector<int64_t> users, films;
  std::vector<float> dense;
  // A SparseTensor has a value at some places only: each row has its own number of tags.
  std::vector<std::vector<std::string>> tags;
  for (const Viewing& viewing : viewings) {
    users.push_back(viewing.user);
    films.push_back(viewing.film);
    dense.insert(dense.end(), {viewing.dense[0], viewing.dense[1]});
    tags.push_back(viewing.tags);
  }
  return {{"user", tfdist::Tensor({rows}, users)},
          {"film", tfdist::Tensor({rows}, films)},
          {"dense", tfdist::Tensor({rows, 2}, dense)},
          {"tags", tfdist::SparseFromRows(tags)}};
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: ratings MODEL\n");
    return 2;
  }
  const std::vector<Viewing> viewings = {
      {4, 8, {0.5, 0.1}, {"funny", "short"}}, {4, 9, {0.5, 0.1}, {}}, {7, 9, {0.0, 0.9}, {"war"}}};
  try {
    const auto predictor = tfdist::Predictor::Load(argv[1]);
    const tfdist::Outputs outputs = predictor->Predict(InputsOf(viewings));
    const std::vector<float>& ratings = outputs.at("rating").values<float>();
    for (size_t row = 0; row < viewings.size(); ++row) {
      std::printf("user %d, film %d, %zu tags: rating %.4f\n", static_cast<int>(viewings[row].user),
                  static_cast<int>(viewings[row].film), viewings[row].tags.size(), ratings[row]);
    }
    // The model has 20 users. It was exported with this number, so another id is an error.
    try {
      predictor->Predict(InputsOf({{20, 8, {0.5, 0.1}, {}}}));
    } catch (const tfdist::Error& error) {
      // kInvalid: the values of the request are wrong, and neither the model nor the machine is.
      if (error.code() != tfdist::Error::Code::kInvalid) throw;
      std::printf("wrong request: %s\n", error.what());
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "ratings: %s\n", error.what());
    return 1;
  }
  return 0;
}
