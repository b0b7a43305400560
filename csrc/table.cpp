// The kernels of one instruction set as a table. Compiled once for each.
#include "vec.h"

namespace nst::NST_PATH {

#define NST_TEXT_(x) #x
#define NST_TEXT(x) NST_TEXT_(x)
#define NST_ENTRY(kernel) , kernel
extern const Kernels table;
const Kernels table{NST_TEXT(NST_PATH) NST_KERNELS(NST_ENTRY)};

}  // namespace nst::NST_PATH
