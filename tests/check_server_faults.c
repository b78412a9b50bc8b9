/* What a client sees when the n-th allocation or mapping of the server fails, once or until the end of its
 * request: nothing but a whole answer, the same as ever; or a failure in the shape of its protocol, with
 * status 500 or 503, in the stream if that has begun; or a closed connection. Nothing hangs, the next
 * request is answered as ever, and nothing is left when the server is closed. A sample of the ways through
 * the program that lead to an allocation is tried; CHECK_LONG=1 tries all allocations. */
#undef _FORTIFY_SOURCE /* as in check_faults.c */

#include "suite.h"

#include "fake_server.h"

#include "faults.h"

#ifdef NO_FAULTS

SKIP_FAULTS("server faults")

#else

#include <netinet/in.h>
#include <sys/socket.h>

/* ------------------------------------------------------------------ one request */

struct request {
    const char *method, *path, *body;
};

/* What came back until the connection was closed. */
struct reply {
    int status;        /* 0: no head */
    bool whole, hangs; /* it ends as its head says; nothing came for a long time */
    char *body;        /* a text, without chunks */
    size_t len;
};

/* Undoes the chunks in place; false: the last one is missing. */
static bool join_chunks(char *body, size_t *len)
{
    char *from = body, *to = body, *end = body + *len;
    while (from < end) {
        char *line;
        size_t n = strtoul(from, &line, 16);
        if (line + 2 > end || n > (size_t)(end - line - 2))
            break;
        memmove(to, line + 2, n);
        to += n;
        from = line + 2 + n + 2;
        if (n == 0) {
            *len = (size_t)(to - body);
            *to = 0;
            return true;
        }
    }
    *len = (size_t)(to - body);
    *to = 0;
    return false;
}

static void read_head(struct reply *r, char *text, size_t len)
{
    char *body = strstr(text, "\r\n\r\n"), *length;
    if (!body || sscanf(text, "HTTP/1.1 %d", &r->status) != 1)
        return;
    *body = 0;
    body += 4;
    r->len = len - (size_t)(body - text);
    if (strcasestr(text, "Transfer-Encoding: chunked"))
        r->whole = join_chunks(body, &r->len);
    else
        r->whole = (length = strcasestr(text, "Content-Length: ")) &&
                   strtoul(length + 16, NULL, 10) == r->len;
    memmove(text, body, r->len + 1);
}

static struct reply ask(uint16_t port, const struct request *q)
{
    struct reply r = {0};
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port)};
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    struct timeval patience = {.tv_sec = 20};
    char *text;
    size_t len = 0, cap = 1 << 20;
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    ck_assert(fd >= 0 && connect(fd, (struct sockaddr *)&to, sizeof to) == 0);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    ck_assert_ptr_nonnull(text = malloc(cap));
    int n = snprintf(text, cap,
                     "%s %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: "
                     "application/json\r\nContent-Length: %zu\r\n\r\n%s",
                     q->method, q->path, strlen(q->body), q->body);
    (void)!send(fd, text, (size_t)n, MSG_NOSIGNAL);
    ssize_t got;
    while (len < cap - 1 && (got = recv(fd, text + len, cap - 1 - len, 0)) > 0)
        len += (size_t)got;
    r.hangs = got < 0 && errno == EAGAIN;
    close(fd);
    text[len] = 0;
    r.body = text;
    read_head(&r, text, len);
    return r;
}

/* Of what is said, not of names of calls, numbers of requests, times and logarithms. */
static uint64_t digest(const struct reply *r)
{
    uint64_t h = (uint64_t)r->status;
    for (size_t i = 0; i < r->len; i++) {
        if (strncmp(r->body + i, "call_", 5) == 0)
            i += strcspn(r->body + i, "\"");
        if (!strchr("0123456789abcdef", r->body[i]))
            h = (h ^ (unsigned char)r->body[i]) * 0x100000001b3u;
    }
    return h;
}

/* What is wrong with the reply of a server that may be short of memory; NULL: nothing. */
static const char *judge(const struct request *q, const struct reply *r, uint64_t usual)
{
    bool anthropic = strncmp(q->path, "/v1/messages", 12) == 0;
    if (r->hangs)
        return "no answer";
    if (!r->whole || digest(r) == usual)
        return NULL;
    if (r->status != 200 && r->status != 500 && r->status != 503)
        return "neither done nor our fault";
    const char *error = strstr(r->body, "\"error\":{"),
               *name = strstr(r->body, "\"response.failed\"");
    if (!error && !name)
        return r->status == 200 ? "another answer" : "a failure without its shape";
    if (!strstr(error ? error : name, "\"message\":\""))
        return "a failure without a message";
    if (anthropic ? !strstr(r->body, "\"type\":\"error\"")
                  : error && r->status != 200 && !strstr(error, "\"param\":"))
        return "a failure in the shape of another protocol";
    return NULL;
}

/* ------------------------------------------------------------------ scenarios */

enum { MAX_REQUESTS = 8 };

/* Requests one after the other. */
struct scenario {
    const char *name;
    struct request request[MAX_REQUESTS]; /* until method is NULL */
};

#define USER(text) "\"messages\":[{\"role\":\"user\",\"content\":\"" text "\"}],\"temperature\":0"
#define WEATHER                                                                             \
    "{\"type\":\"object\",\"properties\":{\"city\":{\"type\":\"string\",\"maxLength\":3}}," \
    "\"required\":"                                                                         \
    "[\"city\"],\"additionalProperties\":false}"
#define TOOL \
    "{\"type\":\"function\",\"function\":{\"name\":\"weather\",\"parameters\":" WEATHER "}}"

static const struct scenario scenarios[] = {
    {"chat",
     {{"POST", "/v1/chat/completions",
       "{" USER("Hi") ",\"max_tokens\":9,\"logprobs\":true,\"top_logprobs\":2,\"logit_bias\":{"
                      "\"70\":-1}}"},
      {"POST", "/v1/chat/completions",
       "{" USER("Hi") ",\"max_tokens\":9,\"stream\":true,\"stream_options\":{\"include_usage\":"
                      "true}}"}}},
    {"choices and a schema",
     {{"POST", "/v1/chat/completions",
       "{" USER("Hi") ",\"thinking\":{\"type\":\"disabled\"},\"n\":2,\"stop\":[\"qq\",\"zz\"],"
                      "\"response_format\":{\"type\":\"json_schema\",\"json_schema\":{\"name\":"
                      "\"w\",\"schema\":" WEATHER "}}}"}}},
    {"tools",
     {{"POST", "/v1/chat/completions",
       "{" USER("Hi") ",\"thinking\":{\"type\":\"disabled\"},\"tools\":[" TOOL
                      "],\"tool_choice\":\"required\",\"stream\":true}"}}},
    {"completions",
     {{"POST", "/v1/completions",
       "{\"prompt\":[\"Once upon\",\"a "
       "time\"],\"temperature\":0,\"max_tokens\":6,\"echo\":true,\"logprobs\":1}"},
      {"POST", "/v1/completions",
       "{\"prompt\":[5,6,7],\"temperature\":0,\"max_tokens\":6,\"stream\":true}"}}},
    {"responses",
     {{"POST", "/v1/responses",
       "{\"input\":\"Hi\",\"temperature\":0,\"max_output_tokens\":9,\"stream\":true,"
       "\"instructions\":\"Be kind\"}"},
      {"POST", "/v1/responses",
       "{\"input\":\"Hi\",\"temperature\":0,\"max_output_tokens\":40,\"reasoning\":{\"effort\":"
       "\"none\"},\"tools\":"
       "[{\"type\":\"function\",\"name\":\"weather\",\"parameters\":" WEATHER
       "}],\"tool_choice\":\"required\"}"}}},
    {"messages",
     {{"POST", "/v1/messages",
       "{" USER("Hi") ",\"max_tokens\":12,\"stream\":true,\"system\":[{\"type\":\"text\",\"text\":"
                      "\"Be kind\"}],"
                      "\"thinking\":{\"type\":\"enabled\",\"budget_tokens\":4}}"},
      {"POST", "/v1/messages",
       "{" USER("Hi") ",\"max_tokens\":40,\"tool_choice\":{\"type\":\"any\"},\"tools\":[{\"name\":"
                      "\"weather\","
                      "\"input_schema\":" WEATHER "}]}"},
      {"POST", "/v1/messages/count_tokens",
       "{"
       "\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"}]}"}}},
    {"turns of a conversation",
     {{"POST", "/v1/chat/completions",
       "{" USER("Tell me of a dog and a garden") ",\"max_tokens\":9}"},
      {"POST", "/v1/chat/completions",
       "{" USER("Tell me of a dog and a house") ",\"max_tokens\":9}"},
      {"POST", "/v1/chat/completions",
       "{" USER("Tell me of a dog and a garden") ",\"max_tokens\":9,\"n\":2}"}}},
    {"tokens",
     {{"POST", "/tokenize",
       "{\"content\":\"Once \\u00e4\",\"with_pieces\":true,\"add_special\":true}"},
      {"POST", "/tokenize",
       "{\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"}],\"tools\":[" TOOL "]}"},
      {"POST", "/detokenize", "{\"tokens\":[70,71,72]}"}}},
    {"what is there",
     {{"GET", "/v1/models", ""},
      {"GET", "/health", ""},
      {"GET", "/props", ""},
      {"GET", "/openapi.json", ""},
      {"GET", "/", ""},
      {"GET", "/slots", ""}}},
    {"refused",
     {{"POST", "/v1/chat/completions", "{\"messages\":["},
      {"POST", "/v1/chat/completions", "{\"messages\":[],\"x\":1}"},
      {"POST", "/v1/messages", "{" USER("Hi") ",\"max_tokens\":-1}"},
      {"POST", "/v1/chat/completions", "{" USER("Hi") ",\"grammar\":\"root ::= (\"}"},
      {"GET", "/v1/chat/completions", ""},
      {"GET", "/nothing", ""}}},
};

enum { N_SCENARIOS = sizeof scenarios / sizeof *scenarios };

/* ------------------------------------------------------------------ runs */

static dsv4_tokenizer *tokenizer;
static struct fake_server fake;
static pthread_t serving;

static void *serve(void *arg)
{
    dsv4_err err;
    return server_run(arg, &err) == 0 ? NULL : arg;
}

static void open_server(void)
{
    dsv4_err err;
    fake_server_options(&fake, tokenizer);
    OK(fake_server_open(&fake, true, &err));
    ck_assert_int_eq(pthread_create(&serving, NULL, serve, &fake.server), 0);
}

static void close_server(void)
{
    void *failed;
    server_stop(&fake.server);
    pthread_join(serving, &failed);
    fake_server_close(&fake);
    ck_assert_msg(!failed, "the HTTP library failed");
    ck_assert_msg(fake.fake.open == 0, "%zu sequences are left", (size_t)fake.fake.open);
}

/* Asks everything; with usual[] (made by the first run) compares. */
static const char *ask_all(const struct scenario *s, uint64_t *usual, bool strict)
{
    const char *wrong = NULL;
    for (size_t i = 0; i < MAX_REQUESTS && s->request[i].method; i++) {
        struct reply r = ask(server_port(&fake.server), &s->request[i]);
        if (!usual[i]) {
            ck_assert_msg(r.whole, "%s: no whole answer", s->request[i].path);
            usual[i] = digest(&r);
        }
        const char *bad = strict && digest(&r) != usual[i]
                              ? "the next request is answered otherwise"
                              : judge(&s->request[i], &r, usual[i]);
        if (bad && !wrong) {
            wrong = bad;
            printf("%s %s: status %d%s\n%.2000s\n", s->name, s->request[i].path, r.status,
                   r.whole ? "" : ", not whole", r.body);
        }
        free(r.body);
    }
    return wrong;
}

#define EXPECT(ok, ...)                \
    do {                               \
        if (!(ok)) {                   \
            faults_show();             \
            ck_abort_msg(__VA_ARGS__); \
        }                              \
    } while (0)

static void one(const struct scenario *s, enum fault kind, uint64_t n, bool forever,
                uint64_t *usual)
{
    bool counted = usual[0] != 0; /* or this run makes what is made once in a process */
    faults_all_begin(kind, n, forever);
    open_server();
    faults_resume();
    const char *wrong = ask_all(s, usual, false);
    faults_relent();
    if (!wrong)
        wrong = ask_all(s, usual, true);
    close_server();
    faults_end();
    char where[160];
    snprintf(where, sizeof where, "%s: %s %llu of %llu%s failed", s->name,
             kind == FAULT_MAP ? "mapping" : "allocation", (unsigned long long)n,
             (unsigned long long)faults.calls, forever ? " and all after it" : "");
    EXPECT(!wrong, "%s: %s", where, wrong);
    if (!counted)
        return;
    EXPECT(faults.n_live == 0, "%s: %zu blocks are left", where, faults.n_live);
    EXPECT(faults.n_maps == 0, "%s: %zu mappings are left", where, (size_t)faults.n_maps);
}

enum { SAMPLE = 40 }; /* runs of a scenario, if not all are wanted */

static void torture(const struct scenario *s, enum fault kind)
{
    uint64_t usual[MAX_REQUESTS] = {0}, tried = 0;
    one(s, kind, 0, false, usual);
    faults_survey(true);
    one(s, kind, 0, false, usual);
    faults_survey(false);
    uint64_t calls = faults.calls;
    ck_assert_uint_gt(calls, 0);
    if (getenv("CHECK_LONG")) {
        for (uint64_t n = 1; n <= calls; n++, tried += 2) {
            one(s, kind, n, false, usual);
            one(s, kind, n, true, usual);
        }
    } else {
        size_t ways = faults.n_first, runs = ways < SAMPLE ? ways : SAMPLE;
        for (size_t i = 0; i < runs; i++, tried++)
            one(s, kind, faults.first[i * ways / runs], i % 2, usual);
    }
    printf("   %-24s %-10s %6llu calls, %5llu runs\n", s->name,
           kind == FAULT_MAP ? "mapping" : "allocation", (unsigned long long)calls,
           (unsigned long long)tried);
    fflush(stdout);
}

START_TEST(a_request_without_memory)
{
    dsv4_err err;
    OK(dsv4_tokenizer_open(&tokenizer, "models/nano/tokenizer.json", &err));
    torture(&scenarios[_i], FAULT_MEMORY);
    torture(&scenarios[_i], FAULT_MAP);
    dsv4_tokenizer_close(tokenizer);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("server faults");
    TCase *t = tcase_create("server faults");
    tcase_set_timeout(t, 3600);
    tcase_add_loop_test(t, a_request_without_memory, 0, N_SCENARIOS);
    suite_add_tcase(s, t);
    return run_suite(s);
}

#endif
