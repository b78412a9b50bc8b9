/* The small files of a checkpoint: texts of a directory, or what the metadata of a GGUF file says instead. */
#include "parts.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { TEXT_MAX = 256 << 20 };

bool checkpoint_is_file(const char *checkpoint)
{
    struct stat st;
    return stat(checkpoint, &st) == 0 && S_ISREG(st.st_mode);
}

static int of_file(struct checkpoint_text *t, const char *file, const char *name, bool needed,
                   dsv4_err *err)
{
    if (!(t->where = strdup(file)))
        return err_memory(err, strlen(file), "a path");
    TRY(gguf_file_text(&t->text, file, name, err));
    if (!t->text && needed)
        return err_set(err, DSV4_REFUSED, "%s: nothing in it takes the place of %s", file, name);
    t->len = t->text ? strlen(t->text) : 0;
    return 0;
}

static int of_directory(struct checkpoint_text *t, const char *dir, const char *name, bool needed,
                        dsv4_err *err)
{
    struct bytes path = {0};
    int rc = bytes_printf(&path, err, "%s/%s", dir, name);
    t->where = path.data;
    if (rc == 0 && (needed || access(path.data, F_OK) == 0))
        rc = file_read(path.data, TEXT_MAX, &t->text, &t->len, err);
    return rc;
}

int checkpoint_text(struct checkpoint_text *t, const char *checkpoint, const char *name,
                    bool needed, dsv4_err *err)
{
    *t = (struct checkpoint_text){0};
    int rc = checkpoint_is_file(checkpoint) ? of_file(t, checkpoint, name, needed, err)
                                            : of_directory(t, checkpoint, name, needed, err);
    if (rc != 0)
        checkpoint_text_close(t);
    return rc;
}

void checkpoint_text_close(struct checkpoint_text *t)
{
    free(t->text);
    free(t->where);
    *t = (struct checkpoint_text){0};
}
