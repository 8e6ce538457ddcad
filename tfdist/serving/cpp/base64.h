// Bytes as text (RFC 4648, section 4).

#pragma once

#include <string>
#include <string_view>

namespace tfdist {

std::string EncodeBase64(std::string_view bytes);

// The `=` at the end can be missing. Throws Error if the text has another length or character.
std::string DecodeBase64(std::string_view text);

}  // namespace tfdist
