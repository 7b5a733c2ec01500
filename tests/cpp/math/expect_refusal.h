#pragma once

#include <gtest/gtest.h>

#include <stdexcept>
#include <string>

/// Runs `call` and expects std::invalid_argument whose message contains every one of `words`.
template <typename Call, typename... Words>
void expect_refusal(Call&& call, const Words&... words) {
  try {
    call();
    ADD_FAILURE() << "nothing was thrown";
  } catch (const std::invalid_argument& error) {
    const std::string message = error.what();
    for (const std::string& word : {std::string(words)...}) {
      EXPECT_NE(message.find(word), std::string::npos) << "'" << word << "' is not in: " << message;
    }
  }
}
