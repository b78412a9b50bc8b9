/* ARMv8.6: the integer kernels of two and more rows. */
#include "i8mm.h"

void init_i8mm(struct kernels *k)
{
    init_i8mm_fast(k);
}
