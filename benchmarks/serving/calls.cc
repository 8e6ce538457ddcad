// Calls a model in this process, one call after the other in each thread.
//
//   calls MODEL
//
// Prints a line when the model is loaded. Then each line of standard input is a block, such as
// "2 1 3.0" for 2 threads with 1 row in each call, for 3 seconds. The answer is a line of JSON.

#include <sys/resource.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <iostream>
#include <string>
#include <thread>
#include <vector>

#include "predictor.h"

namespace {

using Clock = std::chrono::steady_clock;

double ProcessCpuSeconds() {
  rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  return usage.ru_utime.tv_sec + usage.ru_stime.tv_sec +
         (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * 1e-6;
}

void RunBlock(const tfdist::Predictor& predictor, int threads, int64_t rows, double seconds) {
  std::vector<int64_t> ids(rows);
  for (int64_t row = 0; row < rows; ++row) ids[row] = row;
  const tfdist::Tensor tensor({rows}, ids);
  const tfdist::Inputs inputs = {{"item", tensor}, {"user", tensor}};
  std::atomic<int64_t> calls = 0;
  const double cpu = ProcessCpuSeconds();
  const auto start = Clock::now();
  const auto end = start + std::chrono::duration<double>(seconds);
  std::vector<std::thread> running;
  for (int i = 0; i < threads; ++i) {
    running.emplace_back([&] {
      int64_t mine = 0;
      for (; Clock::now() < end; ++mine) predictor.Predict(inputs);
      calls += mine;
    });
  }
  for (auto& thread : running) thread.join();
  const std::chrono::duration<double> elapsed = Clock::now() - start;
  std::cout << "{\"calls\": " << calls << ", \"seconds\": " << elapsed.count()
            << ", \"cpu_seconds\": " << ProcessCpuSeconds() - cpu << "}" << std::endl;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::cerr << "usage: calls MODEL\n";
    return 2;
  }
  try {
    const auto predictor = tfdist::Predictor::Load(argv[1]);
    std::cout << "loaded" << std::endl;
    int threads;
    int64_t rows;
    double seconds;
    while (std::cin >> threads >> rows >> seconds) RunBlock(*predictor, threads, rows, seconds);
  } catch (const std::exception& error) {
    std::cerr << "calls: " << error.what() << "\n";
    return 1;
  }
  return 0;
}
