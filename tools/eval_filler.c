/* A text of any length about nothing, the same for the same seed: the hay. Short plain sentences, so that a
 * small model understands them too. */
#include "eval_needle.h"

/* splitmix64 */
static uint64_t next_random(uint64_t *state)
{
    uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

static const char *const name[] = {"Ben",    "Rosa",  "Tina", "Oscar", "Iris",  "Kevin",
                                   "Mia",    "Leo",   "Ruth", "Noah",  "Felix", "Diana",
                                   "Ivan",   "Grace", "Paul", "Nina",  "Will",  "Lucy",
                                   "Thomas", "Carla", "Hugo", "Emma",  "Jonas", "Olga"};
static const char *const thing[] = {"ball",  "rope", "lantern", "bell",   "kite",
                                    "cup",   "drum", "ladder",  "basket", "letter",
                                    "shell", "coin", "flute",   "blanket"};
static const char *const place[] = {"market", "bridge",  "library", "garden",  "castle",
                                    "river",  "village", "tower",   "harbour", "forest",
                                    "museum", "school",  "mill",    "station"};
static const char *const kind[] = {"red",   "small", "old",    "round", "bright", "wooden",
                                   "green", "heavy", "pretty", "warm",  "soft",   "broken"};
static const char *const weather[] = {"sunny", "rainy", "windy", "cold",
                                      "foggy", "quiet", "long",  "warm"};
static const char *const food[] = {"soup",    "bread", "cheese",  "apples",
                                   "noodles", "rice",  "berries", "honey"};

#define PICK(list, r) list[next_random(r) % (sizeof(list) / sizeof *(list))]

int filler_sentence(struct bytes *b, uint64_t *r, dsv4_err *err)
{
    const char *who = PICK(name, r), *other = PICK(name, r), *what = PICK(thing, r);
    const char *where = PICK(place, r), *how = PICK(kind, r);
    switch (next_random(r) % 10) {
    case 0:
        return bytes_printf(b, err, " %s walked to the %s with a %s %s.", who, where, how, what);
    case 1: return bytes_printf(b, err, " It was a %s day in the %s.", PICK(weather, r), where);
    case 2: return bytes_printf(b, err, " %s gave %s a %s.", who, other, what);
    case 3: return bytes_printf(b, err, " The road to the %s was long.", where);
    case 4: return bytes_printf(b, err, " In the evening %s cooked %s.", who, PICK(food, r));
    case 5: return bytes_printf(b, err, " %s looked for the %s %s all day.", who, how, what);
    case 6: return bytes_printf(b, err, " The %s %s was in the %s.", how, what, where);
    case 7: return bytes_printf(b, err, " %s told %s a story about a %s.", who, other, what);
    case 8: return bytes_printf(b, err, " There was %s on the table.", PICK(food, r));
    default: return bytes_printf(b, err, " At night %s heard a sound from the %s.", who, where);
    }
}

void filler_needle(struct needle *n, uint64_t seed)
{
    static const char *const room[] = {"amber",  "violet", "cedar",  "granite", "coral", "jasper",
                                       "lotus",  "maple",  "silver", "basil",   "ruby",  "grove",
                                       "marble", "indigo", "pepper", "cobalt"};
    uint64_t r = seed ^ UINT64_C(0x6e6565646c65);
    const char *which = PICK(room, &r);
    snprintf(n->answer, sizeof n->answer, "%u", 10000 + (unsigned)(next_random(&r) % 90000));
    snprintf(n->statement, sizeof n->statement, " Remember: the pass key of the %s room is %s.",
             which, n->answer);
    snprintf(n->question, sizeof n->question, "\n\nQuestion: What is the pass key of the %s room?",
             which);
}
