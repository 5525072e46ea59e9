// The functions of UCX that are used, found when first asked for.
//
// The program is not linked with UCX: its libraries take over signal handlers (put back here) and
// memory functions such as mmap(), which is nothing for a server that does not use them; and so the
// program also starts where they are not installed.
#pragma once

#include <ucp/api/ucp.h>
#include <uct/api/uct.h>

#include "base/result.h"

namespace capstan::comm {

struct UcxLibrary {
#define CAPSTAN_UCX(name) decltype(&::name) name = nullptr;
#include "comm/ucx_functions.inc"
#undef CAPSTAN_UCX
  std::string version;  // "1.13.1"
};

/// Loaded once per process and kept; any thread. Its messages go to our log. kUnavailable, with the
/// remedy, where it cannot be loaded or is another than this program was built for.
Result<const UcxLibrary*> ucx_library();

}  // namespace capstan::comm
