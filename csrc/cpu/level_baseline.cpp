// The CPU kernels for any processor; CMakeLists.txt gives this file its compiler flags.
#define SACGLAM_LANES 4
#define SACGLAM_LEVEL kBaseline
#define SACGLAM_LEVEL_NAME "baseline"
#include "level.hpp"
