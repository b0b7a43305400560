#include "dispatch.h"

#include <algorithm>
#include <atomic>
#include <initializer_list>

#if defined(NST_X86)
#include <cpuid.h>
#endif

namespace nst {

namespace portable {
extern const Kernels table;
}
#if defined(NST_X86)
namespace avx2 {
extern const Kernels table;
}
namespace avx512 {
extern const Kernels table;
}
#endif

namespace {

#if defined(NST_X86)
struct Registers {
  unsigned a = 0, b = 0, c = 0, d = 0;
};

Registers cpuid(unsigned leaf, unsigned subleaf) {
  Registers r;
  __get_cpuid_count(leaf, subleaf, &r.a, &r.b, &r.c, &r.d);
  return r;
}

// Register states that the operating system saves (XCR0).
unsigned saved_states() {
  if ((cpuid(1, 0).c & (1U << 27)) == 0) return 0;
  unsigned low = 0, high = 0;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return low;
}

std::vector<std::string> detect() {
  constexpr unsigned kYmm = 0x6, kZmm = 0xe6, kTiles = 0x60000;
  const Registers basic = cpuid(1, 0), extended = cpuid(7, 0), more = cpuid(7, 1);
  const unsigned saved = saved_states();
  struct Feature {
    const char* name;
    unsigned word;
    int bit;
    unsigned states;
  };
  const Feature known[] = {
      {"avx2", extended.b, 5, kYmm},        {"fma", basic.c, 12, kYmm},
      {"f16c", basic.c, 29, kYmm},          {"avx512f", extended.b, 16, kZmm},
      {"avx512bw", extended.b, 30, kZmm},   {"avx512dq", extended.b, 17, kZmm},
      {"avx512vl", extended.b, 31, kZmm},   {"avx512_bf16", more.a, 5, kZmm},
      {"amx_bf16", extended.d, 22, kTiles},
  };
  std::vector<std::string> found;
  for (const Feature& feature : known)
    if ((feature.word >> feature.bit & 1U) != 0 && (saved & feature.states) == feature.states)
      found.emplace_back(feature.name);
  return found;
}
#else
std::vector<std::string> detect() { return {}; }
#endif

std::vector<const Kernels*> usable() {
  std::vector<const Kernels*> tables;
#if defined(NST_X86)
  const auto features = detect();
  const auto has = [&features](std::initializer_list<const char*> names) {
    return std::all_of(names.begin(), names.end(), [&](const char* name) {
      return std::find(features.begin(), features.end(), name) != features.end();
    });
  };
  const bool avx2_here = has({"avx2", "fma", "f16c"});
  if (avx2_here && has({"avx512f", "avx512bw", "avx512dq", "avx512vl"})) tables.push_back(&avx512::table);
  if (avx2_here) tables.push_back(&avx2::table);
#endif
  tables.push_back(&portable::table);
  return tables;
}

const std::vector<const Kernels*>& tables() {
  static const std::vector<const Kernels*> found = usable();
  return found;
}

std::atomic<const Kernels*>& current() {
  static std::atomic<const Kernels*> table{tables().front()};
  return table;
}

}  // namespace

const Kernels& kernels() { return *current(); }

std::vector<std::string> paths() {
  std::vector<std::string> names;
  for (const Kernels* table : tables()) names.emplace_back(table->name);
  return names;
}

bool use_path(const std::string& name) {
  for (const Kernels* table : tables())
    if (name == table->name) {
      current() = table;
      return true;
    }
  return false;
}

std::vector<std::string> cpu_features() { return detect(); }

}  // namespace nst
