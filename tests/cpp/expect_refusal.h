#pragma once

#include <gtest/gtest.h>

#include <stdexcept>
#include <string>

/// Runs `call` and expects an `Error` whose message contains every one of `words`.
template <typename Error = std::invalid_argument, typename Call, typename... Words>
void expect_refusal(Call&& call, const Words&... words) {
  try {
    call();
    ADD_FAILURE() << "nothing was thrown";
  } catch (const Error& error) {
    const std::string message = error.what();
    for (const std::string& word : {std::string(words)...}) {
      EXPECT_NE(message.find(word), std::string::npos) << "'" << word << "' is not in: " << message;
    }
  }
}
