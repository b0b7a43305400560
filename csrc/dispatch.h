// Which instruction set runs: found by cpuid, overridable for tests. Compiled without special flags.
#pragma once

#include <string>
#include <vector>

#include "kernels.h"

namespace nst {

const Kernels& kernels();                // of the path in use
std::vector<std::string> paths();        // usable on this machine, best first
bool use_path(const std::string& name);  // false: no such path here
std::vector<std::string> cpu_features();

}  // namespace nst
