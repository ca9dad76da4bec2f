/* Frames on a byte stream, framed as SLIP does it (RFC 1055): whoever connects anew sends an END first, and what was cut off before it
 * fails the check of its length. Writes never block: what the host does not take waits here, and exec output waits behind it. */
#include "agent.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { END = 0xC0, ESC = 0xDB, ESC_END = 0xDC, ESC_ESC = 0xDD };

static int port = -1;
static unsigned char in[MAX_FRAME], *out;
static size_t in_size, out_size, out_room;
static int escaped, too_long;

void frame_open(int fd) { port = fd; }
int frame_fd(void) { return port; }
size_t frame_waiting(void) { return out_size; }

static void add(unsigned char byte) {
  if (out_size == out_room) {
    out_room = out_room ? out_room * 2 : MAX_FRAME;
    out = realloc(out, out_room);
    if (!out) abort();
  }
  out[out_size++] = byte;
}

static void add_escaped(const unsigned char *bytes, size_t size) {
  for (size_t i = 0; i < size; i++) {
    if (bytes[i] == END || bytes[i] == ESC) {
      add(ESC);
      add(bytes[i] == END ? ESC_END : ESC_ESC);
    } else {
      add(bytes[i]);
    }
  }
}

void frame_send(uint32_t number, int kind, const void *body, size_t size) {
  unsigned char head[9];
  uint32_t length = sizeof head + size;
  memcpy(head, &length, 4);
  memcpy(head + 4, &number, 4);
  head[8] = kind;
  add(END);
  add_escaped(head, sizeof head);
  add_escaped(body, size);
  add(END);
  frame_flush();
}

void send_text(uint32_t number, int kind, const char *text) { frame_send(number, kind, text, strlen(text)); }

void send_failure(uint32_t number, const char *code, const char *format, ...) {
  char text[1024];
  int used = snprintf(text, 64, "%s", code) + 1;
  va_list rest;
  va_start(rest, format);
  vsnprintf(text + used, sizeof text - used, format, rest);
  va_end(rest);
  frame_send(number, FAILED, text, used + strlen(text + used));
}

void frame_flush(void) {
  size_t done = 0;
  while (done < out_size) {
    ssize_t wrote = write(port, out + done, out_size - done > CHUNK ? CHUNK : out_size - done);
    if (wrote <= 0) break;
    done += wrote;
  }
  memmove(out, out + done, out_size - done);
  out_size -= done;
}

static void take_one(void (*take)(uint32_t, int, char *, size_t)) {
  uint32_t length, number;
  if (!too_long && in_size >= 9) {
    memcpy(&length, in, 4);
    memcpy(&number, in + 4, 4);
    if (length == in_size) {
      in[in_size] = 0;
      take(number, in[8], (char *)in + 9, in_size - 9);
    }
  }
  in_size = too_long = escaped = 0;
}

void frame_read(void (*take)(uint32_t number, int kind, char *body, size_t size)) {
  static unsigned char bytes[CHUNK];
  ssize_t got;
  while ((got = read(port, bytes, sizeof bytes)) > 0) {
    for (ssize_t i = 0; i < got; i++) {
      unsigned char byte = bytes[i];
      if (byte == END) {
        take_one(take);
        continue;
      }
      if (byte == ESC) {
        escaped = 1;
        continue;
      }
      if (escaped) byte = byte == ESC_END ? END : ESC;
      escaped = 0;
      if (in_size < sizeof in - 1) in[in_size++] = byte;
      else too_long = 1;
    }
  }
}
