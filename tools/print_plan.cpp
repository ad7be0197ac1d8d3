// Prints how plugins/cuda divides a call into blocks. Arguments: MODE PACKS FLOAT_WIDTH TOKENS CHANNELS, where PACKS is
// 2 with a rotation, else 1. Output: blocks, tokens per chunk, dynamic shared bytes. gpu_arithmetic.py compiles it.
#include <cstdlib>
#include <iostream>
#include <string>

#include "plan.h"

int main(int count, char** arguments) {
  if (count != 6) {
    std::cerr << "usage: print_plan MODE PACKS FLOAT_WIDTH TOKENS CHANNELS\n";
    return EXIT_FAILURE;
  }
  pom::Problem problem;
  problem.batch = 1;
  problem.degree = 3;
  problem.rotation_batch = 1;
  problem.has_rotation = std::string(arguments[2]) == "2";
  problem.tokens = std::atoll(arguments[4]);
  problem.channels = std::atoll(arguments[5]);
  if (!pom::parse_mode(arguments[1], &problem.attributes.mode)) {
    return EXIT_FAILURE;
  }
  const pom::cuda::Plan plan = pom::cuda::make_plan(problem, false, std::atoi(arguments[3]));
  std::cout << plan.blocks << ' ' << plan.chunk_tokens << ' ' << pom::cuda::shared_bytes(problem, plan) << '\n';
}
