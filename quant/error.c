/* What a row loses in a type. */
#include "quant.h"

void encode_error(struct encode_error *sum, const struct kernels *k, const struct wtype *t,
                  const float *x, size_t cols, const float *importance, uint8_t *codes,
                  uint8_t *scales, float *back)
{
    encode_row(k, codes, scales, t, x, cols, importance, EFFORT_SEARCH);
    struct wmat w = plain_shape(t, 1, (uint32_t)cols);
    w.codes = codes;
    w.scales = scales;
    k->decode(back, &w, 0);
    for (size_t c = 0; c < cols; c++) {
        double weight = importance ? (double)importance[c] : 1, d = (double)back[c] - (double)x[c];
        sum->error += weight * d * d;
        sum->signal += weight * (double)x[c] * (double)x[c];
    }
}
