// The table of one instruction set; SACGLAM_LEVEL names it. Included once by each level_<isa>.cpp.
#include "attention.hpp"
#include "pointwise.hpp"

namespace sacglam::cpu {

extern const Kernels SACGLAM_LEVEL;
const Kernels SACGLAM_LEVEL = {
    SACGLAM_LEVEL_NAME, 16 * kLanes,        &attention_scratch, &attention<false>, &attention<true>,
    &rms_norm_forward,  &rms_norm_backward, &gated_forward,     &gated_backward,
};

}  // namespace sacglam::cpu
