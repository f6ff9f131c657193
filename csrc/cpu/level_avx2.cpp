// The CPU kernels for AVX2; CMakeLists.txt gives this file its compiler flags.
#define SACGLAM_LANES 8
#define SACGLAM_LEVEL kAvx2
#define SACGLAM_LEVEL_NAME "avx2"
#include "level.hpp"
