/* Five bodies under gravity in double precision, with division and square root. The checksum is the energy in units of
 * 1e-9: coarser than what a fused multiplication and addition makes of it. */
#include "bench.h"

#include <math.h>

#define BODIES 5

struct body {
  double x, y, z, vx, vy, vz, mass;
};

/* A heavy body at rest and four light ones on orbits that do not meet; masses and velocities are made up. */
static struct body bodies[BODIES] = {
    {0, 0, 0, 0, 0, 0, 40},
    {5, 0, 0.1, 0, 2.8, 0.1, 0.04},
    {0, 9, -0.3, -2.1, 0, 0.05, 0.01},
    {-14, 0, 0.2, 0.1, -1.7, 0, 0.002},
    {0, -20, -0.5, 1.4, 0.1, 0.02, 0.003},
};

static void attract(struct body *p, struct body *q, double dt) {
  double dx = p->x - q->x, dy = p->y - q->y, dz = p->z - q->z;
  double square = dx * dx + dy * dy + dz * dz;
  double by = dt / (square * sqrt(square));
  p->vx -= dx * q->mass * by;
  p->vy -= dy * q->mass * by;
  p->vz -= dz * q->mass * by;
  q->vx += dx * p->mass * by;
  q->vy += dy * p->mass * by;
  q->vz += dz * p->mass * by;
}

static void advance(double dt) {
  for (int i = 0; i < BODIES; i++)
    for (int j = i + 1; j < BODIES; j++) attract(&bodies[i], &bodies[j], dt);
  for (int i = 0; i < BODIES; i++) {
    bodies[i].x += dt * bodies[i].vx;
    bodies[i].y += dt * bodies[i].vy;
    bodies[i].z += dt * bodies[i].vz;
  }
}

static double energy(void) {
  double sum = 0;
  for (int i = 0; i < BODIES; i++) {
    struct body *p = &bodies[i];
    sum += 0.5 * p->mass * (p->vx * p->vx + p->vy * p->vy + p->vz * p->vz);
    for (int j = i + 1; j < BODIES; j++) {
      struct body *q = &bodies[j];
      double dx = p->x - q->x, dy = p->y - q->y, dz = p->z - q->z;
      sum -= p->mass * q->mass / sqrt(dx * dx + dy * dy + dz * dz);
    }
  }
  return sum;
}

u64 nbody(int threads) {
  int steps = size(300000, 3000);
  (void)threads;
  start_clock();
  for (int i = 0; i < steps; i++) advance(0.001);
  stop_clock();
  return (u64)llround(-1e9 * energy());
}
