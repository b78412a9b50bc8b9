/* Forward and backward of the small operators of the model, one thread, float32, contiguous tensors.
 * N tokens, D hidden size, always 4 hyper-connection streams.  fused.py wraps them as autograd functions. */
#include <torch/extension.h>

typedef float v16 __attribute__((vector_size(64)));

/* Sinkhorn: element e of 16 tokens at a time, one token a lane; the tail repeats the last token. */
static inline v16 ld(const float *p, int64_t n, int64_t N, int e) {
    v16 r;
    for (int l = 0; l < 16; l++) {
        int64_t t = n + l < N ? n + l : N - 1;
        r[l] = p[t * 16 + e];
    }
    return r;
}

static inline v16 expv(v16 x) {
    v16 r;
    for (int l = 0; l < 16; l++)
        r[l] = __builtin_expf(x[l]);
    return r;
}

static inline v16 maxv(v16 a, v16 b) { return a > b ? a : b; }
static void norm_row(v16 *c, v16 *inv, float eps) {
    for (int i = 0; i < 4; i++) {
        v16 s = c[i * 4] + c[i * 4 + 1] + c[i * 4 + 2] + c[i * 4 + 3] + eps;
        inv[i] = 1.0f / s;
        for (int j = 0; j < 4; j++)
            c[i * 4 + j] *= inv[i];
    }
}

static void norm_col(v16 *c, v16 *inv, float eps) {
    for (int j = 0; j < 4; j++) {
        v16 s = c[j] + c[4 + j] + c[8 + j] + c[12 + j] + eps;
        inv[j] = 1.0f / s;
        for (int i = 0; i < 4; i++)
            c[i * 4 + j] *= inv[j];
    }
}

/* logits x [N,16] -> C [N,16]: row softmax + eps, column norm, then (iters-1) times row and column norm. */
torch::Tensor sink_fwd(torch::Tensor x, int64_t iters, double eps_) {
    float eps = eps_;
    int64_t N = x.size(0);
    auto o = torch::empty_like(x);
    const float *p = x.data_ptr<float>();
    float *q = o.data_ptr<float>();
    for (int64_t n = 0; n < N; n += 16) {
        v16 c[16], inv[4];
        for (int e = 0; e < 16; e++)
            c[e] = ld(p, n, N, e);
        for (int i = 0; i < 4; i++) {
            v16 m = maxv(maxv(c[i * 4], c[i * 4 + 1]), maxv(c[i * 4 + 2], c[i * 4 + 3]));
            v16 s = {};
            for (int j = 0; j < 4; j++) {
                c[i * 4 + j] = expv(c[i * 4 + j] - m);
                s += c[i * 4 + j];
            }
            s = 1.0f / s;
            for (int j = 0; j < 4; j++)
                c[i * 4 + j] = c[i * 4 + j] * s + eps;
        }
        norm_col(c, inv, eps);
        for (int k = 1; k < iters; k++) {
            norm_row(c, inv, eps);
            norm_col(c, inv, eps);
        }
        for (int e = 0; e < 16; e++)
            for (int l = 0; l < 16 && n + l < N; l++)
                q[(n + l) * 16 + e] = c[e][l];
    }
    return o;
}

/* gradient g [N,16] of C -> of the logits; the intermediate matrices are computed again and kept. */
torch::Tensor sink_bwd(torch::Tensor x, torch::Tensor g, int64_t iters, double eps_) {
    float eps = eps_;
    int64_t N = x.size(0);
    auto o = torch::empty_like(x);
    const float *p = x.data_ptr<float>();
    const float *gp = g.data_ptr<float>();
    float *q = o.data_ptr<float>();
    int M = 2 * iters - 1;
    std::vector<v16> st((size_t)M * 20);
    for (int64_t n = 0; n < N; n += 16) {
        v16 c[16], sm[16], inv[4];
        for (int e = 0; e < 16; e++)
            c[e] = ld(p, n, N, e);
        for (int i = 0; i < 4; i++) {
            v16 m = maxv(maxv(c[i * 4], c[i * 4 + 1]), maxv(c[i * 4 + 2], c[i * 4 + 3]));
            v16 s = {};
            for (int j = 0; j < 4; j++) {
                c[i * 4 + j] = expv(c[i * 4 + j] - m);
                s += c[i * 4 + j];
            }
            s = 1.0f / s;
            for (int j = 0; j < 4; j++) {
                sm[i * 4 + j] = c[i * 4 + j] * s;
                c[i * 4 + j] = sm[i * 4 + j] + eps;
            }
        }
        for (int k = 0; k < M; k++) {
            if (k % 2 == 0)
                norm_col(c, inv, eps);
            else
                norm_row(c, inv, eps);
            v16 *s = &st[(size_t)k * 20];
            for (int e = 0; e < 16; e++)
                s[e] = c[e];
            for (int e = 0; e < 4; e++)
                s[16 + e] = inv[e];
        }
        v16 d[16];
        for (int e = 0; e < 16; e++)
            d[e] = ld(gp, n, N, e);
        for (int k = M - 1; k >= 0; k--) {
            v16 *s = &st[(size_t)k * 20];
            if (k % 2 == 0) {
                for (int j = 0; j < 4; j++) {
                    v16 t = d[j] * s[j] + d[4 + j] * s[4 + j] + d[8 + j] * s[8 + j] + d[12 + j] * s[12 + j];
                    for (int i = 0; i < 4; i++)
                        d[i * 4 + j] = (d[i * 4 + j] - t) * s[16 + j];
                }
            } else {
                for (int i = 0; i < 4; i++) {
                    v16 t = {};
                    for (int j = 0; j < 4; j++)
                        t += d[i * 4 + j] * s[i * 4 + j];
                    for (int j = 0; j < 4; j++)
                        d[i * 4 + j] = (d[i * 4 + j] - t) * s[16 + i];
                }
            }
        }
        for (int i = 0; i < 4; i++) {
            v16 t = {};
            for (int j = 0; j < 4; j++)
                t += d[i * 4 + j] * sm[i * 4 + j];
            for (int j = 0; j < 4; j++)
                d[i * 4 + j] = (d[i * 4 + j] - t) * sm[i * 4 + j];
        }
        for (int e = 0; e < 16; e++)
            for (int l = 0; l < 16 && n + l < N; l++)
                q[(n + l) * 16 + e] = d[e][l];
    }
    return o;
}

/* Collapse: y[t] = sum_i pre[t][i] h[t][i];  h [N,4,D], pre [N,4] -> y [N,D]. */
torch::Tensor col_fwd(torch::Tensor h, torch::Tensor pre) {
    int64_t N = h.size(0), D = h.size(2);
    auto y = torch::empty({N, D}, h.options());
    const float *H = h.data_ptr<float>();
    const float *P = pre.data_ptr<float>();
    float *Y = y.data_ptr<float>();
    for (int64_t t = 0; t < N; t++) {
        const float *a = H + t * 4 * D;
        float p0 = P[t * 4], p1 = P[t * 4 + 1], p2 = P[t * 4 + 2], p3 = P[t * 4 + 3];
        float *y_ = Y + t * D;
        for (int64_t d = 0; d < D; d++)
            y_[d] = p0 * a[d] + p1 * a[D + d] + p2 * a[2 * D + d] + p3 * a[3 * D + d];
    }
    return y;
}

std::vector<torch::Tensor> col_bwd(torch::Tensor g, torch::Tensor h, torch::Tensor pre) {
    int64_t N = h.size(0), D = h.size(2);
    auto gh = torch::empty_like(h);
    auto gp = torch::empty_like(pre);
    const float *G = g.data_ptr<float>();
    const float *H = h.data_ptr<float>();
    const float *P = pre.data_ptr<float>();
    float *A = gh.data_ptr<float>();
    float *B = gp.data_ptr<float>();
    for (int64_t t = 0; t < N; t++) {
        const float *g_ = G + t * D;
        for (int i = 0; i < 4; i++) {
            const float *a = H + (t * 4 + i) * D;
            float *o = A + (t * 4 + i) * D;
            float p = P[t * 4 + i], s = 0;
            for (int64_t d = 0; d < D; d++) {
                s += g_[d] * a[d];
                o[d] = p * g_[d];
            }
            B[t * 4 + i] = s;
        }
    }
    return {gh, gp};
}

/* Expand: out_j = post_j o + sum_i C[i][j] h_i;  o [N,D], h [N,4,D], post [N,4], comb [N,16] -> [N,4,D]. */
torch::Tensor exp_fwd(torch::Tensor o, torch::Tensor h, torch::Tensor post, torch::Tensor comb) {
    int64_t N = h.size(0), D = h.size(2);
    auto y = torch::empty_like(h);
    const float *O = o.data_ptr<float>();
    const float *H = h.data_ptr<float>();
    const float *P = post.data_ptr<float>();
    const float *C = comb.data_ptr<float>();
    float *Y = y.data_ptr<float>();
    for (int64_t t = 0; t < N; t++) {
        const float *a = H + t * 4 * D;
        const float *o_ = O + t * D;
        const float *c = C + t * 16;
        for (int j = 0; j < 4; j++) {
            float *y_ = Y + (t * 4 + j) * D;
            float p = P[t * 4 + j], c0 = c[j], c1 = c[4 + j], c2 = c[8 + j], c3 = c[12 + j];
            for (int64_t d = 0; d < D; d++)
                y_[d] = p * o_[d] + c0 * a[d] + c1 * a[D + d] + c2 * a[2 * D + d] + c3 * a[3 * D + d];
        }
    }
    return y;
}

std::vector<torch::Tensor> exp_bwd(torch::Tensor g, torch::Tensor o, torch::Tensor h, torch::Tensor post, torch::Tensor comb) {
    int64_t N = h.size(0), D = h.size(2);
    auto go = torch::empty_like(o);
    auto gh = torch::empty_like(h);
    auto gp = torch::empty_like(post);
    auto gc = torch::empty_like(comb);
    const float *G = g.data_ptr<float>();
    const float *O = o.data_ptr<float>();
    const float *H = h.data_ptr<float>();
    const float *P = post.data_ptr<float>();
    const float *C = comb.data_ptr<float>();
    float *GO = go.data_ptr<float>();
    float *GH = gh.data_ptr<float>();
    float *GP = gp.data_ptr<float>();
    float *GC = gc.data_ptr<float>();
    for (int64_t t = 0; t < N; t++) {
        const float *a = H + t * 4 * D;
        const float *g_ = G + t * 4 * D;
        const float *o_ = O + t * D;
        const float *c = C + t * 16;
        const float *p = P + t * 4;
        float *r = GO + t * D;
        for (int64_t d = 0; d < D; d++)
            r[d] = p[0] * g_[d] + p[1] * g_[D + d] + p[2] * g_[2 * D + d] + p[3] * g_[3 * D + d];
        for (int j = 0; j < 4; j++) {
            float s = 0;
            const float *gg = g_ + j * D;
            for (int64_t d = 0; d < D; d++)
                s += gg[d] * o_[d];
            GP[t * 4 + j] = s;
        }
        for (int i = 0; i < 4; i++) {
            const float *ai = a + i * D;
            float *w = GH + (t * 4 + i) * D;
            float s0 = 0, s1 = 0, s2 = 0, s3 = 0;
            float c0 = c[i * 4], c1 = c[i * 4 + 1], c2 = c[i * 4 + 2], c3 = c[i * 4 + 3];
            for (int64_t d = 0; d < D; d++) {
                float x = ai[d];
                s0 += x * g_[d];
                s1 += x * g_[D + d];
                s2 += x * g_[2 * D + d];
                s3 += x * g_[3 * D + d];
                w[d] = c0 * g_[d] + c1 * g_[D + d] + c2 * g_[2 * D + d] + c3 * g_[3 * D + d];
            }
            GC[t * 16 + i * 4] = s0;
            GC[t * 16 + i * 4 + 1] = s1;
            GC[t * 16 + i * 4 + 2] = s2;
            GC[t * 16 + i * 4 + 3] = s3;
        }
    }
    return {go, gh, gp, gc};
}

/* RMS norm with weight over the last dimension: y, and 1/rms of each row. */
std::vector<torch::Tensor> rms_fwd(torch::Tensor x, torch::Tensor w, double eps) {
    int64_t D = x.size(-1), N = x.numel() / D;
    auto y = torch::empty_like(x);
    auto rs = torch::empty({N}, x.options());
    const float *X = x.data_ptr<float>();
    const float *W = w.data_ptr<float>();
    float *Y = y.data_ptr<float>();
    float *R = rs.data_ptr<float>();
    for (int64_t t = 0; t < N; t++) {
        const float *a = X + t * D;
        float s = 0;
        for (int64_t d = 0; d < D; d++)
            s += a[d] * a[d];
        float r = 1.0f / sqrtf(s / D + (float)eps);
        R[t] = r;
        float *b = Y + t * D;
        for (int64_t d = 0; d < D; d++)
            b[d] = a[d] * r * W[d];
    }
    return {y, rs};
}

std::vector<torch::Tensor> rms_bwd(torch::Tensor g, torch::Tensor x, torch::Tensor w, torch::Tensor rs) {
    int64_t D = x.size(-1), N = x.numel() / D;
    auto gx = torch::empty_like(x);
    auto gw = torch::zeros_like(w);
    const float *G = g.data_ptr<float>();
    const float *X = x.data_ptr<float>();
    const float *W = w.data_ptr<float>();
    const float *R = rs.data_ptr<float>();
    float *A = gx.data_ptr<float>();
    float *B = gw.data_ptr<float>();
    for (int64_t t = 0; t < N; t++) {
        const float *a = X + t * D;
        const float *g_ = G + t * D;
        float r = R[t], s = 0;
        for (int64_t d = 0; d < D; d++)
            s += g_[d] * W[d] * a[d];
        float k = s * r * r * r / D;
        float *o = A + t * D;
        for (int64_t d = 0; d < D; d++) {
            o[d] = g_[d] * W[d] * r - a[d] * k;
            B[d] += g_[d] * a[d] * r;
        }
    }
    return {gx, gw};
}

/* Rotary embedding of adjacent pairs of the last 2h channels: x [N,H,c], co and si [N,h]; sign -1 turns back. */
torch::Tensor rope_f(torch::Tensor x, torch::Tensor co, torch::Tensor si, double sign) {
    int64_t N = x.size(0), H = x.size(1), c = x.size(2), h = co.size(1);
    auto y = torch::empty_like(x);
    float sg = sign;
    const float *X = x.data_ptr<float>();
    const float *C = co.data_ptr<float>();
    const float *S = si.data_ptr<float>();
    float *Y = y.data_ptr<float>();
    int64_t m = c - 2 * h;
    for (int64_t t = 0; t < N; t++) {
        const float *cc = C + t * h;
        const float *ss = S + t * h;
        for (int64_t q = 0; q < H; q++) {
            const float *a = X + (t * H + q) * c;
            float *b = Y + (t * H + q) * c;
            for (int64_t d = 0; d < m; d++)
                b[d] = a[d];
            for (int64_t i = 0; i < h; i++) {
                float u = a[m + 2 * i], v = a[m + 2 * i + 1], s = sg * ss[i];
                b[m + 2 * i] = u * cc[i] - v * s;
                b[m + 2 * i + 1] = u * s + v * cc[i];
            }
        }
    }
    return y;
}

/* SwiGLU with clamps: x [N,2f] (gate, up) -> silu(min(gate, L)) clamp(up, -L, L) [N,f]. */
torch::Tensor sg_fwd(torch::Tensor x, double L_) {
    int64_t f = x.size(-1) / 2, N = x.numel() / (2 * f);
    auto y = torch::empty({N, f}, x.options());
    const float *X = x.data_ptr<float>();
    float *Y = y.data_ptr<float>();
    float L = L_;
    for (int64_t t = 0; t < N; t++) {
        const float *a = X + t * 2 * f;
        float *b = Y + t * f;
        for (int64_t d = 0; d < f; d++) {
            float g = a[d] < L ? a[d] : L;
            float u = a[f + d] < L ? a[f + d] : L;
            u = u > -L ? u : -L;
            b[d] = g / (1.0f + expf(-g)) * u;
        }
    }
    return y;
}

torch::Tensor sg_bwd(torch::Tensor go, torch::Tensor x, double L_) {
    int64_t f = x.size(-1) / 2, N = x.numel() / (2 * f);
    auto y = torch::empty_like(x);
    const float *X = x.data_ptr<float>();
    const float *G = go.data_ptr<float>();
    float *Y = y.data_ptr<float>();
    float L = L_;
    for (int64_t t = 0; t < N; t++) {
        const float *a = X + t * 2 * f;
        const float *g_ = G + t * f;
        float *b = Y + t * 2 * f;
        for (int64_t d = 0; d < f; d++) {
            float g = a[d] < L ? a[d] : L;
            float u = a[f + d] < L ? a[f + d] : L;
            u = u > -L ? u : -L;
            float s = 1.0f / (1.0f + expf(-g));
            float w = g_[d];
            b[d] = a[d] < L ? w * u * (s + g * s * (1.0f - s)) : 0.0f;
            float lim = a[f + d] > -L ? 1.0f : 0.0f;
            lim = a[f + d] < L ? lim : 0.0f;
            b[f + d] = w * g * s * lim;
        }
    }
    return y;
}

/* mHC coefficients: m [N,24] = fn f, f [N,4D] -> pre [N,4], post [N,4], logits [N,16], 1/rms [N]. */
std::vector<torch::Tensor> hm_fwd(torch::Tensor f, torch::Tensor m, torch::Tensor base, torch::Tensor sc, double eps, double heps) {
    int64_t N = f.size(0), D = f.size(1);
    auto pre = torch::empty({N, 4}, f.options()), post = torch::empty({N, 4}, f.options()), lg = torch::empty({N, 16}, f.options()),
         rs = torch::empty({N}, f.options());
    const float *F = f.data_ptr<float>();
    const float *M = m.data_ptr<float>();
    const float *B = base.data_ptr<float>();
    const float *S = sc.data_ptr<float>();
    float *P = pre.data_ptr<float>();
    float *Q = post.data_ptr<float>();
    float *G = lg.data_ptr<float>();
    float *R = rs.data_ptr<float>();
    for (int64_t t = 0; t < N; t++) {
        const float *a = F + t * D;
        float s = 0;
        for (int64_t d = 0; d < D; d++)
            s += a[d] * a[d];
        float r = 1.0f / sqrtf(s / D + (float)eps);
        R[t] = r;
        const float *m_ = M + t * 24;
        for (int i = 0; i < 4; i++) {
            P[t * 4 + i] = 1.0f / (1.0f + expf(-(m_[i] * r * S[0] + B[i]))) + (float)heps;
            Q[t * 4 + i] = 2.0f / (1.0f + expf(-(m_[4 + i] * r * S[1] + B[4 + i])));
        }
        for (int i = 0; i < 16; i++)
            G[t * 16 + i] = m_[8 + i] * r * S[2] + B[8 + i];
    }
    return {pre, post, lg, rs};
}

std::vector<torch::Tensor> hm_bwd(torch::Tensor gpre, torch::Tensor gpost, torch::Tensor glg, torch::Tensor f, torch::Tensor m, torch::Tensor sc,
                                  torch::Tensor pre, torch::Tensor post, torch::Tensor rs, double heps) {
    int64_t N = f.size(0), D = f.size(1);
    auto gf = torch::empty_like(f), gm = torch::empty_like(m), gb = torch::zeros({24}, f.options()), gs = torch::zeros({3}, f.options());
    const float *F = f.data_ptr<float>();
    const float *M = m.data_ptr<float>();
    const float *S = sc.data_ptr<float>();
    const float *P = pre.data_ptr<float>();
    const float *Q = post.data_ptr<float>();
    const float *R = rs.data_ptr<float>();
    const float *g0 = gpre.data_ptr<float>();
    const float *g1 = gpost.data_ptr<float>();
    const float *g2 = glg.data_ptr<float>();
    float *A = gf.data_ptr<float>();
    float *B = gm.data_ptr<float>();
    float *GB = gb.data_ptr<float>();
    float *GS = gs.data_ptr<float>();
    for (int64_t t = 0; t < N; t++) {
        float z[24];
        float r = R[t];
        const float *m_ = M + t * 24;
        for (int i = 0; i < 4; i++) {
            float p = P[t * 4 + i] - (float)heps;
            z[i] = g0[t * 4 + i] * p * (1 - p);
            float q = Q[t * 4 + i] * 0.5f;
            z[4 + i] = g1[t * 4 + i] * 2.0f * q * (1 - q);
        }
        for (int i = 0; i < 16; i++)
            z[8 + i] = g2[t * 16 + i];
        float gr = 0;
        for (int i = 0; i < 24; i++) {
            float s = S[i < 4 ? 0 : i < 8 ? 1 : 2];
            GB[i] += z[i];
            GS[i < 4 ? 0 : i < 8 ? 1 : 2] += z[i] * m_[i] * r;
            gr += z[i] * s * m_[i];
            B[t * 24 + i] = z[i] * s * r;
        }
        float k = -gr * r * r * r / D;
        const float *a = F + t * D;
        float *o = A + t * D;
        for (int64_t d = 0; d < D; d++)
            o[d] = k * a[d];
    }
    return {gf, gm, gb, gs};
}

/* Engram gate: h [N,4,D], kv [N,5D] (4 keys, value), qk [4,D] -> h + gate value; st keeps 1/rms twice, dot and gate. */
std::vector<torch::Tensor> eg_fwd(torch::Tensor h, torch::Tensor kv, torch::Tensor qk, double eps_) {
    int64_t N = h.size(0), D = h.size(2);
    float eps = eps_;
    auto y = torch::empty_like(h);
    auto st = torch::empty({N, 16}, h.options());
    const float *H = h.data_ptr<float>();
    const float *K = kv.data_ptr<float>();
    const float *W = qk.data_ptr<float>();
    float *Y = y.data_ptr<float>();
    float *Z = st.data_ptr<float>();
    float isd = 1.0f / sqrtf((float)D);
    for (int64_t t = 0; t < N; t++) {
        const float *v = K + t * 5 * D + 4 * D;
        for (int i = 0; i < 4; i++) {
            const float *a = H + (t * 4 + i) * D;
            const float *k = K + t * 5 * D + i * D;
            const float *w = W + i * D;
            float s1 = 0, s2 = 0, s3 = 0;
            for (int64_t d = 0; d < D; d++) {
                s1 += a[d] * a[d];
                s2 += k[d] * k[d];
                s3 += a[d] * w[d] * k[d];
            }
            float ra = 1.0f / sqrtf(s1 / D + eps), rk = 1.0f / sqrtf(s2 / D + eps);
            float dot = s3 * ra * rk * isd;
            float ab = fabsf(dot);
            float q = sqrtf(ab > 1e-6f ? ab : 1e-6f);
            q = dot < 0 ? -q : q;
            float g = 1.0f / (1.0f + expf(-q));
            Z[t * 16 + i * 4] = ra;
            Z[t * 16 + i * 4 + 1] = rk;
            Z[t * 16 + i * 4 + 2] = dot;
            Z[t * 16 + i * 4 + 3] = g;
            float *o = Y + (t * 4 + i) * D;
            for (int64_t d = 0; d < D; d++)
                o[d] = a[d] + g * v[d];
        }
    }
    return {y, st};
}

std::vector<torch::Tensor> eg_bwd(torch::Tensor go, torch::Tensor h, torch::Tensor kv, torch::Tensor qk, torch::Tensor st) {
    int64_t N = h.size(0), D = h.size(2);
    auto gh = torch::empty_like(h), gk = torch::zeros_like(kv), gw = torch::zeros_like(qk);
    const float *H = h.data_ptr<float>();
    const float *K = kv.data_ptr<float>();
    const float *W = qk.data_ptr<float>();
    const float *Z = st.data_ptr<float>();
    const float *G = go.data_ptr<float>();
    float *A = gh.data_ptr<float>();
    float *B = gk.data_ptr<float>();
    float *C = gw.data_ptr<float>();
    float isd = 1.0f / sqrtf((float)D);
    for (int64_t t = 0; t < N; t++) {
        const float *v = K + t * 5 * D + 4 * D;
        float *gv = B + t * 5 * D + 4 * D;
        for (int i = 0; i < 4; i++) {
            const float *a = H + (t * 4 + i) * D;
            const float *k = K + t * 5 * D + i * D;
            const float *w = W + i * D;
            const float *g_ = G + (t * 4 + i) * D;
            float ra = Z[t * 16 + i * 4], rk = Z[t * 16 + i * 4 + 1], dot = Z[t * 16 + i * 4 + 2], g = Z[t * 16 + i * 4 + 3];
            float s = 0;
            for (int64_t d = 0; d < D; d++) {
                s += g_[d] * v[d];
                gv[d] += g * g_[d];
            }
            float dq = s * g * (1 - g);
            float ab = fabsf(dot);
            float dd = ab > 1e-6f ? dq * 0.5f / sqrtf(ab) : 0.0f;
            float e = dd * ra * rk * isd;
            float ka = -dd * dot * ra * ra / D, kk = -dd * dot * rk * rk / D;
            float *o = A + (t * 4 + i) * D;
            float *p = B + t * 5 * D + i * D;
            float *c = C + i * D;
            for (int64_t d = 0; d < D; d++) {
                o[d] = g_[d] + e * w[d] * k[d] + ka * a[d];
                p[d] = e * w[d] * a[d] + kk * k[d];
                c[d] += e * a[d] * k[d];
            }
        }
    }
    return {gh, gk, gw};
}

/* Cross entropy: logits x [N,V], targets y [N] -> loss [N]; x is overwritten by softmax - onehot, the gradient of a row's loss. */
torch::Tensor ce_(torch::Tensor x, torch::Tensor y) {
    int64_t N = x.size(0), V = x.size(1);
    auto loss = torch::empty({N}, x.options());
    float *X = x.data_ptr<float>();
    const int64_t *Y = y.data_ptr<int64_t>();
    float *O = loss.data_ptr<float>();
    for (int64_t t = 0; t < N; t++) {
        float *a = X + t * V, m = a[0], s = 0, at = a[Y[t]];
        for (int64_t v = 0; v < V; v++)
            m = a[v] > m ? a[v] : m;
        for (int64_t v = 0; v < V; v += 16) {
            v16 z;
            for (int l = 0; l < 16; l++)
                z[l] = a[v + l] - m;
            z = expv(z);
            for (int l = 0; l < 16; l++) {
                a[v + l] = z[l];
                s += z[l];
            }
        }
        float r = 1.0f / s;
        for (int64_t v = 0; v < V; v++)
            a[v] *= r;
        a[Y[t]] -= 1.0f;
        O[t] = logf(s) + m - at;
    }
    return loss;
}
