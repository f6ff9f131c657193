// The CPU kernels for AVX512; CMakeLists.txt gives this file its compiler flags.
#define SACGLAM_LANES 16
#define SACGLAM_LEVEL kAvx512
#define SACGLAM_LEVEL_NAME "avx512"
#include "level.hpp"
