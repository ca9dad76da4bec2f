/* The loop: orders from the host, streams and ends of processes. One thread, no allocation per order but exec's input. */
#define _GNU_SOURCE
#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <time.h>
#include <unistd.h>

static int loop = -1;
static long long thaw_at;

static long long now_ms(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1000LL + now.tv_nsec / 1000000;
}

void watch(int fd, uint32_t events, int what, int index) {
  struct epoll_event event = {.events = events, .data.u64 = (uint64_t)what << 32 | (uint32_t)index};
  if (epoll_ctl(loop, EPOLL_CTL_MOD, fd, &event) && errno == ENOENT) epoll_ctl(loop, EPOLL_CTL_ADD, fd, &event);
}

/* The vectors are left as they were, but for their ends: writing 64 KiB of zeros makes each copy of a machine copy 16 pages of its own. */
static void parse(struct order *order, char *body, size_t size) {
  char *end = body + size;
  order->cwd = order->user = order->hostname = order->limits = order->clock = order->entropy = "";
  order->network = 0;
  order->argc = order->envc = order->copy = 0;
  order->max_output = 0;
  while (body < end) {
    char tag = *body++, *text = body;
    body += strlen(text) + 1;
    switch (tag) {
      case 'a': if (order->argc < MAX_ARGS - 2) order->argv[order->argc++] = text; break;
      case 'e': if (order->envc < MAX_ARGS - 2) order->env[order->envc++] = text; break;
      case 'd': order->cwd = text; break;
      case 'u': order->user = text; break;
      case 'h': order->hostname = text; break;
      case 'l': order->limits = text; break;
      case 't': order->clock = text; break;
      case 's': order->entropy = text; break;
      case 'n': order->network = text; break;
      case 'm': order->max_output = strtoul(text, 0, 10); break;
      case 'c': order->copy = 1; break;
      default: break;
    }
  }
  order->argv[order->argc] = 0;
  order->env[order->envc] = 0;
}

static void freeze(uint32_t number, int on) {
  int done = freeze_sandbox(on);
  thaw_at = on ? now_ms() + THAW_S * 1000 : 0;
  if (done) frame_send(number, OK, "", 0);
  else send_failure(number, "sandbox.busy", "a process cannot be interrupted");
}

/* What only this machine may have, after a start from a memory that others start from too. */
static int become_this_machine(uint32_t number, struct order *order) {
  if (*order->clock) set_clock(order->clock);
  if (*order->entropy) add_entropy(order->entropy);
  if (*order->hostname) set_name(order->hostname);
  if (*order->limits) set_limits(order->limits);
  if (!order->network || set_network(order->network)) return 1;
  send_failure(number, "network.attach-failed", "eth0: %s", strerror(errno));
  return 0;
}

static void start(uint32_t number, struct order *order) {
  if (become_this_machine(number, order)) start_main(number, order);
}

/* Nothing of the sandbox moves before it is thawed, so the answer need not wait for that; a machine-id is read from the disk. */
static void restored(uint32_t number, struct order *order) {
  if (!become_this_machine(number, order)) return;
  frame_send(number, OK, "", 0);
  if (order->copy) new_machine_id();
  freeze_sandbox(0);
  thaw_at = 0;
}

/* Processes that a memory has stay frozen, for as long as nobody says whose they are. */
static void prepare(uint32_t number, struct order *order) {
  thaw_at = 0;
  become_this_machine(number, order);
  if (!main_pid && mount_disk()) rehearse();
  frame_send(number, OK, "", 0);
}

static void take_text(uint32_t number, size_t (*say)(char *, size_t)) {
  static char text[8192];
  frame_send(number, OK, text, say(text, sizeof text));
}

static void signal_main(uint32_t number, const char *body, size_t size) {
  int signo = 0;
  if (size == 4) memcpy(&signo, body, 4);
  if (main_pid > 0) kill(main_pid, signo);
  frame_send(number, OK, "", 0);
}

static void take(uint32_t number, int kind, char *body, size_t size) {
  static struct order order;
  switch (kind) {
    case PING: frame_send(number, OK, "", 0); break;
    case START: parse(&order, body, size), start(number, &order); break;
    case EXEC: parse(&order, body, size), start_exec(number, &order); break;
    case INPUT: give_input(number, body, size); break;
    case KILL: kill_exec(number); break;
    case SIGNAL: signal_main(number, body, size); break;
    case LIMITS: set_limits(body), frame_send(number, OK, "", 0); break;
    case FREEZE: freeze(number, 1); break;
    case SETTLE: settle_disk(), frame_send(number, OK, "", 0); break;
    case THAW: freeze(number, 0); break;
    case RESTORED: parse(&order, body, size), restored(number, &order); break;
    case PREPARE: parse(&order, body, size), prepare(number, &order); break;
    case PORTS: take_text(number, list_ports); break;
    case USAGE: take_text(number, read_usage); break;
    case PUT: put_file(number, body, size); break;
    case GET: get_file(number, body, size); break;
    case HALT: switch_off(); break;
    default: send_failure(number, "guest.unknown-order", "%c", kind);
  }
}

static void handle(int what, int index, uint32_t events, int children) {
  struct signalfd_siginfo seen;
  switch (what) {
    case ON_PORT:
      if (events & EPOLLOUT) frame_flush(), run_on();
      frame_read(take);
      break;
    case ON_CHILD:
      while (read(children, &seen, sizeof seen) > 0);
      reap();
      break;
    case ON_MAIN: main_readable(index); break;
    case ON_RUN: run_readable(index); break;
    case ON_INPUT: input_writable(index); break;
    default: break;
  }
}

int main(void) {
  sigset_t wanted;
  struct epoll_event events[32];
  boot();
  open_ports();
  open_world();
  open_network();
  rehearse();
  signal(SIGPIPE, SIG_IGN);
  sigemptyset(&wanted);
  sigaddset(&wanted, SIGCHLD);
  sigprocmask(SIG_BLOCK, &wanted, 0);
  int children = signalfd(-1, &wanted, SFD_NONBLOCK | SFD_CLOEXEC);
  loop = epoll_create1(EPOLL_CLOEXEC);
  frame_open(port_open("strandline.agent", O_RDWR | O_NONBLOCK));
  watch(frame_fd(), EPOLLIN | EPOLLOUT | EPOLLET, ON_PORT, 0); /* by edges: a host that is not there is no news after the first time */
  watch(children, EPOLLIN, ON_CHILD, 0);
  frame_send(0, OK, "", 0);
  for (;;) {
    long long left = thaw_at ? thaw_at - now_ms() : -1;
    int count = epoll_wait(loop, events, 32, thaw_at && left < 0 ? 0 : (int)left);
    for (int i = 0; i < count; i++) handle(events[i].data.u64 >> 32, (int)(uint32_t)events[i].data.u64, events[i].events, children);
    if (thaw_at && now_ms() >= thaw_at) freeze_sandbox(0), thaw_at = 0;
  }
}
