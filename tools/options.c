/* The one table: every command, option, default, environment variable and exit code of dsv4. Help,
 * manual page and completions are made from it (src/system/opt*.c). */
#include "tools.h"

#include <math.h>

#define C(name)   (1u << CMD_##name)
/* commands that load a model; those that talk; those that sample; all */
#define LOADS     (C(ASK) | C(CHAT) | C(RUN) | C(PERPLEXITY) | C(LOGITS))
#define TALKS     (C(ASK) | C(CHAT))
#define SAMPLES   (TALKS | C(RUN))
#define TOKENS    (C(TOKENIZE) | C(DETOKENIZE) | C(DEBUG))
#define ALL       ((1u << N_COMMANDS) - 1)
#define AT(field) offsetof(struct args, field)

static const char model_group[] = "Model";
static const char talk_group[] = "Conversation";
static const char sampling_group[] = "Sampling";
static const char io_group[] = "Input and output";
static const char other_group[] = "Other";

/* ORDER: rows of one group stand together */
static const struct opt rows[] = {
    {model_group, 'm', "model", OPT_TEXT, "DIR", 0, 0,
     LOADS | TOKENS | C(REPO) | C(PLAN) | C(INFO) | C(TOPOLOGY), AT(model), "DSV4_MODEL",
     "$DSV4_MODEL, else the embedded model",
     "the model: a directory with config.json, tokenizer.json and safetensors files, or a "
     "GGUF file of V4"},
    {model_group, 0, "tokenizer", OPT_TEXT, "FILE", 0, 0, TOKENS, AT(tokenizer), NULL,
     "the model's tokenizer.json", "read this tokenizer instead"},
    {model_group, 0, "ctx", OPT_U32, "N", 1, UINT32_MAX, LOADS | C(REPO) | C(PLAN), AT(ctx), NULL,
     "the model's maximum, less if memory does not allow that", "tokens of context"},
    {model_group, 't', "threads", OPT_U32, "N", 1, 4096, LOADS | C(PLAN) | C(TOPOLOGY), AT(threads),
     "DSV4_THREADS", "$DSV4_THREADS, else one for each core",
     "threads that compute; the results do not depend on it"},
    {model_group, 0, "cpus", OPT_TEXT, "LIST", 0, 0, LOADS | C(PLAN) | C(TOPOLOGY), AT(cpus), NULL,
     "all that the process may use", "compute on these CPUs and no others: 0-7,16"},
    {model_group, 0, "numa", OPT_TEXT, "MODE", 0, 0, LOADS | C(PLAN) | C(TOPOLOGY), AT(numa), NULL,
     "auto",
     "auto: weights are cut by memory node, each part read by the node's own threads; off: one "
     "memory; 0 or 0-1: only on these nodes"},
    {model_group, 0, "synthetic", OPT_TEXT, "MACHINE", 0, 0, C(TOPOLOGY), AT(synthetic), NULL,
     "this machine",
     "a made-up one, as hwloc writes it, \"package:2 core:32 pu:2\", and behind it \"slow:LIST\" "
     "(CPUs of half speed) and \"quota:N\" (CPUs' worth of time)"},
    {model_group, 0, "batch", OPT_U32, "N", 1, 65536, LOADS | C(PLAN), AT(batch), NULL, "256",
     "tokens computed together while a prompt is read"},
    {model_group, 0, "rewind", OPT_U32, "N", 1, 1 << 20, C(CHAT) | C(PLAN), AT(rewind), NULL, "64",
     "tokens that can be taken back one by one (V4-Flash: 0.3 MB each); to the ends of its last "
     "prompts a chat can always return"},
    {model_group, 0, "max-memory", OPT_BYTES, "BYTES", 0, 0, LOADS | C(REPO) | C(PLAN),
     AT(max_memory), NULL, "what the machine has free",
     "plan with so much memory (512M, 24G, ...)"},
    {model_group, 0, "paged", OPT_FLAG, NULL, 0, 0, LOADS | C(PLAN), AT(paged), NULL, NULL,
     "accept weights larger than memory: they are read from disk again and again"},
    {model_group, 0, "cache-quant", OPT_CHOICE, "on|off", 0, 0, LOADS | C(PLAN), AT(cache_quant),
     NULL, "on", "keep caches in the fp8 and fp4 the model was trained with, or in f32"},
    {model_group, 0, "exact", OPT_FLAG, NULL, 0, 0, LOADS | C(PLAN), AT(exact), NULL, NULL,
     "activations in f32 everywhere"},
    {model_group, 0, "revision", OPT_CHOICE, "preview|0731", 0, 0, TALKS | C(DEBUG), AT(revision),
     NULL, "from config.json; preview for debug",
     "how a V4 model writes prompts (V4.1 has one way only)"},
    {model_group, 0, "family", OPT_TEXT, "FAMILY", 0, 0, C(DEBUG), AT(family), NULL, "v41",
     "v4 or v41: whose way of writing prompts"},

    {talk_group, 's', "system", OPT_TEXT, "TEXT", 0, 0, TALKS, AT(system), NULL, NULL,
     "the system message"},
    {talk_group, 0, "think", OPT_TEXT, "MODE", 0, 0, TALKS, AT(think), NULL, "off",
     "off, on, or an effort: low, high, max, for V4.1 also 1 to 100. The reasoning is not printed; "
     "a terminal counts its tokens"},
    {talk_group, 0, "show-thinking", OPT_FLAG, NULL, 0, 0, TALKS, AT(show_thinking), NULL, NULL,
     "print the reasoning on standard error, dim"},
    {talk_group, 'f', "file", OPT_LIST, "FILE", 0, 0, TALKS, AT(files), NULL, NULL,
     "put this text file in front of the (first) message; may be repeated; - is standard input"},
    {talk_group, 0, "repo", OPT_TEXT, "DIR", 0, 0, TALKS, AT(repo), NULL, NULL,
     "put the text files of this folder in front of the (first) message, without what its "
     ".gitignore files name; what is sent is told on standard error"},
    {talk_group, 0, "repo-budget", OPT_U32, "TOKENS", 1, UINT32_MAX, TALKS | C(REPO),
     AT(repo_budget), NULL, "three quarters of the context",
     "tokens that these files may have: the largest files stay out"},
    {talk_group, 0, "tools", OPT_TEXT, "FILE", 0, 0, TALKS, AT(tools), NULL, NULL,
     "a JSON list of tools the model may call; calls are printed, never executed"},
    {talk_group, 0, "session", OPT_TEXT, "FILE", 0, 0, C(CHAT), AT(session), NULL, NULL,
     "keep the conversation in FILE after every answer and go on with it next time; what was "
     "computed "
     "of it is kept in FILE.cache at the end"},

    {sampling_group, 'n', "max-tokens", OPT_U32, "N", 0, UINT32_MAX, SAMPLES, AT(max_tokens), NULL,
     "0", "generate at most N tokens; 0: until the model ends or the context is full"},
    {sampling_group, 0, "temp", OPT_FLOAT, "T", 0, 100, SAMPLES, AT(temp), NULL, "the model's",
     "temperature; 0 always takes the most likely token"},
    {sampling_group, 0, "greedy", OPT_FLAG, NULL, 0, 0, SAMPLES, AT(greedy), NULL, NULL,
     "the same as --temp 0"},
    {sampling_group, 0, "top-k", OPT_U32, "K", 0, INT32_MAX, SAMPLES, AT(top_k), NULL,
     "the model's", "choose among the K most likely tokens; 0: all"},
    {sampling_group, 0, "top-p", OPT_FLOAT, "P", 0, 1, SAMPLES, AT(top_p), NULL, "the model's",
     "choose among the most likely tokens that together have probability P; 1: all"},
    {sampling_group, 0, "min-p", OPT_FLOAT, "P", 0, 1, SAMPLES, AT(min_p), NULL, "0",
     "leave out tokens less likely than P times the most likely one"},
    {sampling_group, 0, "repeat-penalty", OPT_FLOAT, "X", 0.01, 100, SAMPLES, AT(repeat_penalty),
     NULL, "1", "divide (negative: multiply) the logits of tokens already there by X"},
    {sampling_group, 0, "presence-penalty", OPT_FLOAT, "X", -100, 100, SAMPLES,
     AT(presence_penalty), NULL, "0", "subtract X from the logits of tokens already there"},
    {sampling_group, 0, "frequency-penalty", OPT_FLOAT, "X", -100, 100, SAMPLES,
     AT(frequency_penalty), NULL, "0", "subtract X once for each time a token is there"},
    {sampling_group, 0, "logit-bias", OPT_LIST, "ID=B", 0, 0, SAMPLES, AT(logit_bias), NULL, NULL,
     "add B to the logit of token ID (-inf forbids it); may be repeated"},
    {sampling_group, 0, "seed", OPT_TEXT, "N", 0, 0, SAMPLES, AT(seed), NULL,
     "another one each time", "start of the random numbers: same seed, same text"},
    {sampling_group, 0, "stop", OPT_LIST, "TEXT", 0, 0, SAMPLES, AT(stop), NULL, NULL,
     "end before this text would be generated; may be repeated"},
    {sampling_group, 0, "ignore-eos", OPT_FLAG, NULL, 0, 0, SAMPLES, AT(ignore_eos), NULL, NULL,
     "go on when the model says it has finished"},
    {sampling_group, 0, "grammar", OPT_TEXT, "FILE", 0, 0, C(RUN), AT(grammar), NULL, NULL,
     "generate only text that fits this GBNF grammar"},
    {sampling_group, 0, "json-schema", OPT_TEXT, "FILE", 0, 0, C(RUN), AT(json_schema), NULL, NULL,
     "generate only JSON that fits this JSON Schema; an empty file: any JSON object"},
    {sampling_group, 0, "logprobs", OPT_U32, "N", 0, 100, SAMPLES, AT(logprobs), NULL, "0",
     "with --json: log-probabilities of each token and of the N most likely ones"},

    {io_group, 'f', "file", OPT_LIST, "FILE", 0, 0, C(RUN) | C(TOKENIZE), AT(files), NULL, NULL,
     "read the text from FILE; - is standard input"},
    {io_group, 0, "ids-file", OPT_TEXT, "FILE", 0, 0, C(RUN) | C(LOGITS) | C(DETOKENIZE),
     AT(ids_file), NULL, NULL,
     "read token ids: decimal, separated by white space; - is standard input"},
    {io_group, 0, "ids", OPT_FLAG, NULL, 0, 0, C(RUN), AT(ids), NULL, NULL,
     "write token ids instead of text"},
    {io_group, 'o', "out", OPT_TEXT, "FILE", 0, 0, C(RUN) | C(LOGITS), AT(out), NULL,
     "standard output", "write to FILE, which appears when it is complete"},
    {io_group, 0, "load", OPT_TEXT, "FILE", 0, 0, C(RUN), AT(load), NULL, NULL,
     "go on where --save stopped, as if there had been no stop; a text is appended"},
    {io_group, 0, "save", OPT_TEXT, "FILE", 0, 0, C(RUN), AT(save), NULL, NULL,
     "save all tokens and what was computed of them for --load"},
    {io_group, 0, "markers", OPT_FLAG, NULL, 0, 0, C(RUN) | C(TOKENIZE), AT(markers), NULL, NULL,
     "control tokens written in the text (<think>, role markers) count as such"},
    {io_group, 0, "no-bos", OPT_FLAG, NULL, 0, 0, C(RUN), AT(no_bos), NULL, NULL,
     "do not put the beginning-of-sentence token in front of the text"},
    {io_group, 0, "pieces", OPT_FLAG, NULL, 0, 0, C(TOKENIZE), AT(pieces), NULL, NULL,
     "one token a line: its id and its text"},
    {io_group, 0, "chunks", OPT_TEXT, "LIST", 0, 0, C(RUN) | C(LOGITS) | C(PERPLEXITY), AT(chunks),
     NULL, NULL, "feed the prompt in pieces of 3,1,17,... tokens, then the rest (for tests)"},
    {io_group, 0, "window", OPT_U32, "N", 2, UINT32_MAX, C(PERPLEXITY), AT(window), NULL, "512",
     "tokens of one window, the beginning-of-sentence token included"},
    {io_group, 0, "strict", OPT_FLAG, NULL, 0, 0, C(DEBUG), AT(strict), NULL, NULL,
     "parse: the way the release checks histories, refusing what a model should not write"},
    {io_group, 0, "events", OPT_FLAG, NULL, 0, 0, C(DEBUG), AT(events), NULL, NULL,
     "parse: also tell what came out after each piece"},
    {io_group, 0, "json", OPT_FLAG, NULL, 0, 0,
     SAMPLES | C(TOKENIZE) | C(REPO) | C(INFO) | C(PLAN) | C(TOPOLOGY) | C(PERPLEXITY) | C(VERSION),
     AT(json), NULL, NULL, "JSON on standard output, for programs"},
    {io_group, 0, "stats", OPT_FLAG, NULL, 0, 0, SAMPLES | C(PERPLEXITY) | C(LOGITS), AT(stats),
     NULL, "on a terminal", "speed and memory on standard error"},
    {io_group, 'q', "quiet", OPT_FLAG, NULL, 0, 0, LOADS | C(REPO), AT(quiet), NULL, NULL,
     "nothing on standard error but errors"},

    {other_group, 0, "man", OPT_FLAG, NULL, 0, 0, C(HELP), AT(man), NULL, NULL,
     "the manual page, for man(1)"},
    {other_group, 0, "version", OPT_FLAG, NULL, 0, 0, C(ASK), AT(version), NULL, NULL,
     "the same as dsv4 version"},
    {other_group, 'h', "help", OPT_FLAG, NULL, 0, 0, ALL, AT(help), NULL, NULL, "this help"},
};

static const char *const ask_examples[] = {
    "dsv4 \"What is the capital of Peru?\"",
    "one answer of the embedded model",
    "dsv4 -m ~/models/DeepSeek-V4.1-Flash --think high \"Why is the sky blue?\"",
    "a real model, with reasoning that is not printed",
    "dsv4 -f src/main.c \"What does this program do?\" >answer.txt",
    "about a file; standard output holds the answer alone",
    "dsv4 --repo . \"In which file are the options parsed?\"",
    "about a whole folder",
    "git diff | dsv4 -f - \"Write a commit message.\"",
    "about standard input",
    NULL};
static const char *const chat_examples[] = {
    "dsv4 chat --system \"Answer briefly.\"", "a conversation",
    "printf 'Hello!\\nHow are you?\\n' | dsv4 chat --json",
    "each line a message, each answer a line of JSON", NULL};
static const char *const run_examples[] = {
    "dsv4 run -n 40 \"Once upon a time\"", "the text, continued",
    "dsv4 run --ids-file prompt.ids --ids --temp 0 -n 24 --out answer.ids",
    "token ids in, token ids out", NULL};
static const char *const tokenize_examples[] = {
    "dsv4 tokenize \"Hello there\"", "the ids on one line", "dsv4 tokenize --pieces -f README.md",
    "every token with its text", NULL};
static const char *const detokenize_examples[] = {"dsv4 tokenize \"Hello\" | dsv4 detokenize",
                                                  "there and back", NULL};
static const char *const repo_examples[] = {
    "dsv4 repo ~/src/project >/dev/null", "what --repo would send, with its tokens",
    "dsv4 repo --json . | jq .left_out", "what it would not send, and why", NULL};
static const char *const info_examples[] = {"dsv4 info ~/models/DeepSeek-V4-Flash",
                                            "the model's data sheet", NULL};
static const char *const plan_examples[] = {
    "dsv4 plan -m ~/models/DeepSeek-V4-Flash --ctx 100000 --max-memory 192G",
    "would it fit, and what would take how much", NULL};
static const char *const topology_examples[] = {
    "dsv4 topology", "this machine, and where threads would run",
    "dsv4 topology --synthetic \"package:2 core:32 pu:2\" -m ~/models/DeepSeek-V4-Flash",
    "a server of two sockets: which part of the weights each would hold", NULL};
static const char *const perplexity_examples[] = {"dsv4 perplexity models/nano/eval/text.txt",
                                                  "the embedded model on its held-out text", NULL};
static const char *const logits_examples[] = {
    "dsv4 logits --model DIR --ids-file prompt.ids --out logits.npy",
    "a float32 array [tokens, vocabulary] for numpy.load", NULL};
static const char *const debug_examples[] = {
    "echo '{\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"}],\"options\":"
    "{\"thinking_mode\":\"chat\"}}' | dsv4 debug render --family v41",
    "the exact prompt and its ids",
    "echo '{\"text\":\"I see.</think>Hello\",\"thinking_mode\":\"thinking\"}' | dsv4 debug parse",
    "a completion, taken apart", NULL};
static const char *const completion_examples[] = {
    "dsv4 completion bash >~/.local/share/bash-completion/completions/dsv4", "install them", NULL};
static const char *const help_examples[] = {"dsv4 help chat", "the same as dsv4 chat --help",
                                            "dsv4 help --man >dsv4.1", "the manual page", NULL};

/* ORDER enum command */
static const struct opt_command commands[] = {
    {"ask", "[PROMPT...]", "one answer (the default command); without a prompt on a terminal: chat",
     "Asks the model once. The prompt is what stands on the command line, or standard input. "
     "Standard "
     "output carries the answer alone; everything else goes to standard error. Text from outside "
     "never becomes control tokens, and on a terminal control characters in the answer are shown, "
     "not obeyed.",
     ask_examples, 0, -1},
    {"chat", "", "a conversation at a prompt",
     "Talks with the model. Ctrl-C stops an answer, Ctrl-D ends. A line that ends with a backslash "
     "goes on in the next; a message between lines of \"\"\" may have any lines. The arrow keys "
     "edit "
     "and recall what was typed before. With standard input from a pipe each line is a message.\n"
     "\n"
     "  /help            what can be typed\n"
     "  /clear           forget the conversation\n"
     "  /system TEXT     set the system message (nothing: remove it)\n"
     "  /think MODE      off, on, low, high, max, 1 to 100\n"
     "  /file PATH       put a text file into the next message\n"
     "  /repo DIR        put the files of a folder into the next message\n"
     "  /save FILE       write the conversation\n"
     "  /load FILE       go on with a written one\n"
     "  /quit            end",
     chat_examples, 0, 0},
    {"run", "[TEXT...]", "continue a text or a list of token ids, without any chat format",
     "Raw completion: the text as it is, behind the beginning-of-sentence token, is continued. "
     "Only "
     "what is generated is written.",
     run_examples, 0, -1},
    {"tokenize", "[TEXT...]", "text to token ids",
     "Writes the ids of a text. Without a text: standard input. Only the tokenizer is loaded.",
     tokenize_examples, 0, -1},
    {"detokenize", "[ID...]", "token ids to text",
     "Writes the text of ids, exactly. Without ids: standard input.", detokenize_examples, 0, -1},
    {"repo", "DIR [QUESTION...]", "the prompt that --repo makes of a folder",
     "Writes the text of the message that dsv4 --repo DIR QUESTION would send, and on standard "
     "error what is in it. Files come in the order of their names, the question behind them, so "
     "that another question about the same folder begins alike. Left out are: what .gitignore "
     "files name, .git, .hg, .svn, node_modules, __pycache__ and .venv, links, binaries, files "
     "that are not UTF-8 or larger than 4 MiB. Over the budget the largest files stay out. Only "
     "the tokenizer is loaded.",
     repo_examples, 1, -1},
    {"info", "[DIR]", "a model's data sheet",
     "Family, sizes, active parameters, cache sizes and formats of a model, without loading it.",
     info_examples, 0, 1},
    {"plan", "[DIR]", "what loading a model would take",
     "The memory plan that loading would follow: what sits where, how many bytes, why, and whether "
     "it "
     "fits. Nothing is loaded.",
     plan_examples, 0, 1},
    {"topology", "", "this machine's cores and memory nodes, and where threads and weights go",
     "Shows what was found out about the machine and what is made of it: NUMA nodes, cores, CPU "
     "quota; the threads with their CPUs and shares of the work; with -m, the part of that model's "
     "weights that would lie in the memory of each node. Takes --threads, --cpus and --numa like "
     "the "
     "commands that compute.",
     topology_examples, 0, 0},
    {"perplexity", "FILE", "perplexity of a text",
     "exp of the mean negative log-likelihood of the text's tokens, in windows that each begin "
     "with "
     "the beginning-of-sentence token. - is standard input.",
     perplexity_examples, 1, 1},
    {"logits", "", "all logits of a list of token ids, as a NumPy file",
     "Computes the logits behind every given token and writes them as float32 [n, vocabulary].",
     logits_examples, 0, 0},
    {"debug", "render|parse|tokenize|detokenize",
     "check the text layer: JSON lines in, JSON lines out",
     "Reads JSON lines from standard input and writes one line each, or {\"error\": ...}. What "
     "goes in "
     "and comes out is shaped like the cases of tests/golden/chat and tests/golden/tokenizer:\n"
     "\n"
     "  render      messages, options, context -> prompt, ids, images\n"
     "  parse       text, thinking_mode, perhaps pieces -> reasoning_content, content,\n"
     "              tool_calls, finish_reason\n"
     "  tokenize    text -> ids (control tokens recognised), ids_plain (not), cuts\n"
     "  detokenize  ids -> bytes (hexadecimal), pieces, flush",
     debug_examples, 1, 1},
    {"version", "", "version, build and what was chosen on this machine", "", NULL, 0, 0},
    {"completion", "bash|zsh|fish", "completions for a shell", "", completion_examples, 1, 1},
    {"help", "[COMMAND]", "this help, or that of a command", "", help_examples, 0, 1},
};

static const struct opt_note environment[] = {
    {"DSV4_MODEL", "The model's directory where -m is not given."},
    {"DSV4_THREADS", "The number of threads where --threads is not given."},
    {"DSV4_SIMD", "Caps the instruction set that kernels use (scalar, avx2, ...)."},
    {"XDG_STATE_HOME", "The history of chat lies in $XDG_STATE_HOME/dsv4/history, else in "
                       "$HOME/.local/state/dsv4/history; with neither there is none."},
    {"NO_COLOR, TERM", "NO_COLOR set or TERM=dumb: no counter, no dim text."},
    {NULL, NULL}};

static const struct opt_note files[] = {
    {"DIR/config.json, tokenizer.json, generation_config.json, *.safetensors",
     "A model as DeepSeek publishes it."},
    {"PREFIX/share/dsv4/models/nano", "The embedded model: small, trained, for trying things out."},
    {"$XDG_STATE_HOME/dsv4/history", "What was typed in chat."},
    {NULL, NULL}};

static const struct opt_note exits[] = {{"0", "done"},
                                        {"1", "failed (also: standard output was closed)"},
                                        {"2", "wrong usage"},
                                        {"3", "the model or a file was refused"},
                                        {"4", "not enough memory"},
                                        {"130", "interrupted by Ctrl-C"},
                                        {NULL, NULL}};

_Static_assert(sizeof commands / sizeof *commands == N_COMMANDS, "a row for each command");

const struct opt_set option_table = {
    .program = "dsv4",
    .version = DSV4_VERSION,
    .brief = "runs DeepSeek-V4 models on ordinary computers",
    .text =
        "Answers questions with a DeepSeek-V4, V4-Pro or V4.1 model on the CPU, from the official "
        "checkpoint files. Without -m it uses a tiny embedded model, good for trying the program "
        "out and for nothing else.",
    .command = commands,
    .n_commands = N_COMMANDS,
    .opt = rows,
    .n_opts = sizeof rows / sizeof *rows,
    .environment = environment,
    .files = files,
    .exits = exits,
};

struct args args_defaults(void)
{
    return (struct args){.revision = REVISION_AUTO,
                         .cache_quant = CACHE_QUANT_ON,
                         .temp = NAN,
                         .top_p = NAN,
                         .min_p = NAN,
                         .repeat_penalty = NAN,
                         .presence_penalty = NAN,
                         .frequency_penalty = NAN,
                         .top_k = UINT32_MAX};
}
