// Do the ranks reach each other? Known numbers through every collective, before anybody is served.
#pragma once

#include "comm/communicator.h"

namespace capstan::engine {

/// Called by all ranks at once. kInternal when a result is wrong, naming operation, size and rank;
/// or the communicator's error.
Status check_collectives(comm::Communicator& comm);

}  // namespace capstan::engine
