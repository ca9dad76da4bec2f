/* What the machine is besides its processes: limits, clock, entropy, name, ports, usage. */
#include "agent.h"

#include <fcntl.h>
#include <linux/random.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

static int urandom = -1, freezer = -1, events = -1;

/* What is written in the first moment of every machine is open before it: looking for a file costs an emulated processor milliseconds. */
void open_world(void) {
  urandom = open("/dev/urandom", O_WRONLY | O_CLOEXEC);
  freezer = open(SANDBOX "/cgroup.freeze", O_WRONLY | O_CLOEXEC);
  events = open(SANDBOX "/cgroup.events", O_RDONLY | O_CLOEXEC);
}

int set_limits(const char *text) {
  long cpu, memory, pids;
  char value[64];
  if (sscanf(text, "%ld %ld %ld", &cpu, &memory, &pids) != 3) return 0;
  snprintf(value, sizeof value, "%ld 100000", cpu);
  write_file(SANDBOX "/cpu.max", value);
  snprintf(value, sizeof value, "%ld", memory);
  write_file(SANDBOX "/memory.max", value);
  snprintf(value, sizeof value, "%ld", pids);
  write_file(SANDBOX "/pids.max", value);
  return 1;
}

void set_clock(const char *nanoseconds) {
  long long now = atoll(nanoseconds);
  struct timespec time = {now / 1000000000, now % 1000000000};
  clock_settime(CLOCK_REALTIME, &time);
}

static unsigned char nibble(char digit) { return digit <= '9' ? digit - '0' : digit - 'a' + 10; }

/* Credit bytes of the host's and make the kernel use them at once: copies of one memory would draw the same numbers. */
void add_entropy(const char *hex) {
  struct { int bits, size; unsigned char bytes[64]; } pool = {0};
  for (; pool.size < 64 && hex[0] && hex[1]; hex += 2) pool.bytes[pool.size++] = nibble(hex[0]) << 4 | nibble(hex[1]);
  pool.bits = pool.size * 8;
  ioctl(urandom, RNDADDENTROPY, &pool);
  ioctl(urandom, RNDRESEEDCRNG);
}

void set_name(const char *name) { sethostname(name, strlen(name)); }

/* machine-id(5): copies of a machine are machines of their own. Only where the image has one. */
void new_machine_id(void) {
  unsigned char bytes[16];
  char text[34];
  int fd = open(DISK "/etc/machine-id", O_WRONLY | O_CLOEXEC | O_NOFOLLOW);
  if (fd < 0) return;
  if (lseek(fd, 0, SEEK_END) == 33 && getrandom(bytes, sizeof bytes, 0) == sizeof bytes) {
    bytes[6] = (bytes[6] & 0x0f) | 0x40;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    for (int i = 0; i < 16; i++) sprintf(text + 2 * i, "%02x", bytes[i]);
    text[32] = '\n';
    if (pwrite(fd, text, 33, 0) != 33) fprintf(stderr, "strandline: machine-id was not written\n");
  }
  close(fd);
}

int freeze_sandbox(int on) {
  char text[128];
  if (pwrite(freezer, on ? "1" : "0", 1, 0) != 1) return 0;
  if (!on) return 1;
  for (int look = 0; look < 200; look++) {
    ssize_t size = pread(events, text, sizeof text - 1, 0);
    text[size > 0 ? size : 0] = 0;
    if (strstr(text, "frozen 1")) return 1;
    nanosleep(&(struct timespec){0, 200000}, 0);
  }
  return 0;
}

/* Local TCP ports in state LISTEN (0A), of /proc/net/tcp and tcp6. */
size_t list_ports(char *text, size_t room) {
  size_t used = 0;
  const char *tables[] = {"/proc/net/tcp", "/proc/net/tcp6"};
  for (int i = 0; i < 2; i++) {
    char line[512];
    FILE *file = fopen(tables[i], "re");
    while (file && fgets(line, sizeof line, file)) {
      unsigned port, state;
      if (sscanf(line, " %*d: %*[0-9A-F]:%x %*[0-9A-F]:%*x %x", &port, &state) == 2 && state == 0x0A && used + 8 < room)
        used += sprintf(text + used, "%u ", port);
    }
    if (file) fclose(file);
  }
  return used;
}

size_t read_usage(char *text, size_t room) {
  return snprintf(text, room, "%ld %ld %ld", read_number(SANDBOX "/cpu.stat", "usage_usec"), read_number(SANDBOX "/memory.current", 0),
                  read_number(SANDBOX "/pids.current", 0));
}
