// The HTTP library of the server without a model: the answer to a request for /37 has 37 bytes.
// Prints its port. Stops when standard input ends.

#include <charconv>
#include <iostream>
#include <string>

#include "http.h"

int main() {
  tfdist::http::Options options;
  options.port = 0;
  options.stop_with_stdin = true;
  tfdist::http::Server server(options);
  std::cout << server.port() << std::endl;
  server.Run([](const tfdist::http::Request& request, tfdist::http::Reply reply) {
    const auto target = request.target();
    size_t size = 0;
    std::from_chars(target.data() + 1, target.data() + target.size(), size);
    reply({200, std::string(size, 'x')});
  });
}
