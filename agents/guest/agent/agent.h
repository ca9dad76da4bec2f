/* The guest agent: process 1 of a microVM, and the host's hand inside it.
 *
 * Everything goes over virtio-serial ports that the host names:
 *   strandline.agent   frames both ways (frame.c)
 *   strandline.stdout  } what the main process says; the host's end is a file, so that nothing is lost while no
 *   strandline.stderr  } agent of the host is connected
 *   strandline.status  one line when the main process has ended: "<code> <reason>"
 *
 * A frame is: length (4 bytes, of the whole frame), number (4), kind (1), body. Integers are little endian.
 * Numbers are the host's: what the guest says about a request carries the request's number.
 */
#ifndef AGENT_H
#define AGENT_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

enum { MAX_FRAME = 1 << 18, CHUNK = 1 << 15, MAX_ARGS = 4096, MAX_RUNS = 256 };

/* What the host asks for, and what it is told. */
enum kind {
  PING = 'P',     /* -> OK                                                                                            */
  START = 'M',    /* fields: the main process -> OK, or FAILED                                                        */
  EXEC = 'X',     /* fields: one more process -> OUT, ERR, WINDOW ..., ENDED; or FAILED                               */
  INPUT = 'I',    /* bytes for that process's stdin; an empty body ends it. At most one is under way: WINDOW asks     */
  KILL = 'K',     /* SIGKILL for that process and everything it has started                                          */
  SIGNAL = 'G',   /* 4 bytes: a signal for the main process -> OK                                                     */
  LIMITS = 'L',   /* text "cpu_us memory_bytes pids" -> OK, or FAILED                                                 */
  FREEZE = 'Z',   /* no process of the sandbox moves from here on, for THAW_S at most -> OK                           */
  SETTLE = 'S',   /* write everything to the disk -> OK                                                                */
  THAW = 'z',     /* -> OK                                                                                            */
  RESTORED = 'C', /* fields: this is a copy of what it was: clock, entropy, name -> OK, then THAW                     */
  PREPARE = 'B',  /* fields: it waits to be told what it is: take the disk, do once what START or RESTORED do -> OK   */
  PORTS = 'T',    /* -> OK with TCP ports that something listens on, as text                                          */
  USAGE = 'U',    /* -> OK with "cpu_usec memory_bytes pids" of the sandbox                                           */
  PUT = 'W',      /* path NUL mode NUL offset NUL bytes -> OK, or FAILED                                              */
  GET = 'R',      /* path NUL offset NUL count NUL -> OK with bytes, or FAILED                                        */
  HALT = 'H',     /* write everything to the disk and switch off                                                      */
  OK = 'k',
  OUT = 'o',
  ERR = 'e',
  WINDOW = 'w',
  ENDED = 'E',    /* 4 bytes: code as a shell would say it; 1 byte: output was dropped                                */
  FAILED = 'F',   /* code NUL text                                                                                    */
};

/* Fields of START, EXEC and RESTORED: a letter, a text, NUL. */
struct order {
  char *argv[MAX_ARGS + 1], *env[MAX_ARGS + 1]; /* a, e */
  int argc, envc;
  const char *cwd, *user, *hostname, *limits, *clock, *entropy; /* d, u, h, l, t (ns since 1970), s (hex) */
  const char *network;                                          /* n: see net.c; 0 when nothing is said of it */
  size_t max_output;                                            /* m */
  int copy;                                                     /* c: it is another machine now, not the same one again */
};

/* frame.c */
void frame_open(int fd);
int frame_fd(void);
void frame_read(void (*take)(uint32_t number, int kind, char *body, size_t size));
void frame_send(uint32_t number, int kind, const void *body, size_t size);
void frame_flush(void);
size_t frame_waiting(void);
void send_text(uint32_t number, int kind, const char *text);
void send_failure(uint32_t number, const char *code, const char *format, ...);

/* boot.c */
void boot(void);
int load_modules(const char *list);
int port_open(const char *name, int flags);
int mount_disk(void);
void settle_disk(void);
void write_file(const char *path, const char *text);
long read_number(const char *path, const char *key);
void switch_off(void);

/* who.c */
struct who { uid_t uid; gid_t gid; gid_t groups[64]; int count; char home[256]; };
int resolve_user(const char *user, struct who *who);

/* world.c */
void open_world(void);
int set_limits(const char *text);
void set_clock(const char *nanoseconds);
void add_entropy(const char *hex);
void set_name(const char *name);
void new_machine_id(void);
int freeze_sandbox(int on);
size_t list_ports(char *text, size_t room);
size_t read_usage(char *text, size_t room);

/* net.c */
void open_network(void);
int set_network(const char *text);

/* files.c */
void put_file(uint32_t number, char *body, size_t size);
void get_file(uint32_t number, char *body, size_t size);

/* child.c */
extern int report;
__attribute__((format(printf, 2, 3))) void give_up(const char *code, const char *format, ...);
void into_child(int in, int out, int err);
void enter_group(const char *name);
void make_root(void);
void become(struct order *order);

/* run.c */
extern pid_t main_pid;
void open_ports(void);
void rehearse(void);
void start_main(uint32_t number, struct order *order);
void start_exec(uint32_t number, struct order *order);
void give_input(uint32_t number, const char *body, size_t size);
void kill_exec(uint32_t number);
void run_readable(int index);
void run_on(void);
void input_writable(int index);
int main_readable(int stream);
void reap(void);

/* loop.c */
enum { ON_PORT, ON_CHILD, ON_MAIN, ON_RUN, ON_INPUT };
void watch(int fd, uint32_t events, int what, int index);

#define CGROUPS "/sys/fs/cgroup"
#define SANDBOX CGROUPS "/sandbox"
#define DISK "/disk"
enum { THAW_S = 5 };

#endif
