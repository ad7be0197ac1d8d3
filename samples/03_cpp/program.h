// What the programs have in common: bad input is a line and exit code 2, any other failure a line and exit code 1.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <iostream>
#include <iterator>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

struct BadInput : std::runtime_error {
  using std::runtime_error::runtime_error;
};

inline std::ifstream open_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  file.peek();  // a folder can be opened, but not read
  if (!file.is_open() || file.bad()) {
    throw BadInput("cannot read " + path);
  }
  return file;
}

inline std::vector<char> read_file(const std::string& path) {
  std::ifstream file = open_file(path);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

// The whole number of at most nine digits that a text is.
inline std::optional<int64_t> whole_number(const std::string& text) {
  constexpr std::size_t kMostDigits = 9;
  if (text.empty() || text.size() > kMostDigits || text.find_first_not_of("0123456789") != std::string::npos) {
    return std::nullopt;
  }
  return std::stoll(text);
}

// Calls a program with the arguments of main(), and returns the exit code.
template <typename Program>
int run_program(int count, char** arguments, Program program) {
  constexpr int kBadInput = 2;
  try {
    program(std::vector<std::string>(arguments + 1, arguments + count));
    return EXIT_SUCCESS;
  } catch (const BadInput& error) {
    std::cerr << error.what() << '\n';
    return kBadInput;
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return EXIT_FAILURE;
  }
}
