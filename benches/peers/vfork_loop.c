/* The least that running a program can cost: a pipe, vfork, exec, reading to the end, waiting. Nothing is checked that
 * does not have to be. Each thread runs one program after the other, in this program's own environment.
 *
 * vfork_loop PROGRAM THREADS SECONDS MEBIBYTES: prints the runs, the seconds they took and the seconds of processor time.
 */

#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static const char *program;
static atomic_bool over;
static atomic_long runs;

static int child(void *output)
{
    char *arguments[] = { (char *)program, NULL };
    dup2(*(int *)output, 1);
    execve(program, arguments, environ);
    _exit(127);
}

static void *loop(void *unused)
{
    enum { STACK = 64 * 1024 };
    char *stack = mmap(NULL, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    char answer[4096];
    long own = 0;
    (void)unused;
    while (!over) {
        int ends[2], status;
        if (pipe2(ends, O_CLOEXEC) < 0)
            exit(1);
        pid_t number = clone(child, stack + STACK, CLONE_VM | CLONE_VFORK | SIGCHLD, &ends[1]);
        close(ends[1]);
        while (read(ends[0], answer, sizeof answer) > 0)
            ;
        close(ends[0]);
        if (number < 0 || waitpid(number, &status, 0) < 0 || status != 0)
            exit(1);
        own++;
    }
    runs += own;
    return NULL;
}

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

int main(int count, char **arguments)
{
    pthread_t threads[64];
    struct rusage before, after;
    if (count != 5)
        return 2;
    program = arguments[1];
    int wanted = atoi(arguments[2]);
    size_t touched = (size_t)atol(arguments[4]) << 20;
    if (wanted > 64)
        return 2;
    if (touched)
        memset(mmap(NULL, touched, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), 1, touched);
    getrusage(RUSAGE_SELF, &before);
    double start = now();
    for (int thread = 0; thread < wanted; thread++)
        pthread_create(&threads[thread], NULL, loop, NULL);
    usleep(atof(arguments[3]) * 1e6);
    over = true;
    for (int thread = 0; thread < wanted; thread++)
        pthread_join(threads[thread], NULL);
    double took = now() - start;
    getrusage(RUSAGE_SELF, &after);
    printf("%ld %f %f\n", (long)runs, took,
           after.ru_utime.tv_sec - before.ru_utime.tv_sec + after.ru_stime.tv_sec - before.ru_stime.tv_sec
               + (after.ru_utime.tv_usec - before.ru_utime.tv_usec + after.ru_stime.tv_usec - before.ru_stime.tv_usec) / 1e6);
    return 0;
}
