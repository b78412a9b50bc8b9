/* ARMv8.2 with dot products (every core since Cortex-A75 and Neoverse N1): the integer kernels. */
#include "dotprod.h"

void init_dotprod(struct kernels *k)
{
    k->matmul_fast = matmul_fast_dotprod;
    k->index_codes = index_codes_dotprod;
}
