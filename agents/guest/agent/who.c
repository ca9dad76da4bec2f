/* "", "uid", "uid:gid", "name" or "name:group" to numbers, by the sandbox's own files. To be called with its root as ours. */
#include "agent.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int is_number(const char *text) {
  if (!*text) return 0;
  for (; *text; text++)
    if (!isdigit((unsigned char)*text)) return 0;
  return 1;
}

/* The fields of a line, at most count of them; how many there are. */
static int split(char *line, char **fields, int count) {
  int found = 0;
  line[strcspn(line, "\n")] = 0;
  while (line && found < count) fields[found++] = strsep(&line, ":");
  return found;
}

/* The entry of a name or number in /etc/passwd (7 fields) or /etc/group (4); the fields point into line. */
static int find(const char *path, int need, const char *wanted, char *line, size_t room, char **fields) {
  FILE *file = fopen(path, "re");
  int found = 0;
  while (file && !found && fgets(line, room, file))
    found = split(line, fields, need) == need && is_number(fields[2]) && (need < 7 || is_number(fields[3])) &&
            (!strcmp(fields[0], wanted) || !strcmp(fields[2], wanted));
  if (file) fclose(file);
  return found;
}

static void add_groups(const char *name, struct who *who) {
  char line[4096], *fields[4];
  FILE *file = fopen("/etc/group", "re");
  while (file && fgets(line, sizeof line, file)) {
    if (split(line, fields, 4) != 4 || !is_number(fields[2])) continue;
    char *members = fields[3], *member;
    while ((member = strsep(&members, ",")))
      if (!strcmp(member, name) && who->count < 64 && strtoul(fields[2], 0, 10) != who->gid) who->groups[who->count++] = strtoul(fields[2], 0, 10);
  }
  if (file) fclose(file);
}

int resolve_user(const char *user, struct who *who) {
  char text[256], line[4096], group_line[4096], *fields[7], *name = text, *group = 0;
  snprintf(text, sizeof text, "%s", user);
  if ((group = strchr(text, ':'))) *group++ = 0;
  memset(who, 0, sizeof *who);
  strcpy(who->home, "/");
  int known = find("/etc/passwd", 7, *name ? name : "0", line, sizeof line, fields);
  if (!known && *name && !is_number(name)) return 0;
  unsigned long uid = strtoul(known ? fields[2] : name, 0, 10), gid = known ? strtoul(fields[3], 0, 10) : 0;
  if (known && fields[5][0] == '/') snprintf(who->home, sizeof who->home, "%s", fields[5]);
  if (group && *group) {
    char *of_group[4];
    int there = find("/etc/group", 4, group, group_line, sizeof group_line, of_group);
    if (!there && !is_number(group)) return 0;
    gid = strtoul(there ? of_group[2] : group, 0, 10);
  }
  if (uid > 0xfffffffeUL || gid > 0xfffffffeUL) return 0;
  who->uid = uid;
  who->gid = gid;
  if (known && !(group && *group)) add_groups(fields[0], who);
  return 1;
}
