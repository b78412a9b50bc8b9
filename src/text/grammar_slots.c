/* Hash tables of the grammar compiler and the matcher: from hashes to the numbers of things that lie
 * elsewhere. Only growing is here, looking things up is in grammar.h. */
#include "grammar.h"

#include <stdlib.h>

int slots_room(struct slots *t, const char *what, dsv4_err *err)
{
    if (2 * (t->n + 1) <= t->n_slots)
        return 0;
    struct slots more = {.n = t->n, .n_slots = t->n_slots ? 2 * t->n_slots : 64};
    TRY(mem_alloc(&more.slot, more.n_slots, sizeof *more.slot, what, err));
    for (size_t i = 0; i < t->n_slots; i++)
        if (t->slot[i].number) {
            size_t at = t->slot[i].hash & (more.n_slots - 1);
            while (more.slot[at].number)
                at = (at + 1) & (more.n_slots - 1);
            more.slot[at] = t->slot[i];
        }
    free(t->slot);
    *t = more;
    return 0;
}
