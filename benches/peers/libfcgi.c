/* The C library's way: a pool of threads, each of which accepts, reads and answers one connection at a time.
 *
 * gcc -O2 -o libfcgi libfcgi.c -lfcgi -lpthread; the listening socket is descriptor 0. With an argument GET is answered with
 * 1 MiB, otherwise with a line. POST is read to its end and answered with a line. */

#include <fcgiapp.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum { THREADS = 64, LARGE = 1024 * 1024, BLOCK = 64 * 1024 };

static const char hello[] =
    "Status: 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 14\r\n\r\nHello, world!\n";
static const char large_head[] =
    "Status: 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: 1048576\r\n\r\n";

static char large[LARGE];
static int is_large;

static void *serve(void *unused)
{
    FCGX_Request request;
    char *block = malloc(BLOCK);

    (void)unused;
    if (block == NULL || FCGX_InitRequest(&request, 0, 0) != 0)
        exit(1);
    for (;;) {
        int status;
        const char *method;

        /* Without a lock: with a connection that is kept this call waits for its next request, and would keep the lock. */
        status = FCGX_Accept_r(&request);
        if (status < 0)
            exit(1);
        method = FCGX_GetParam("REQUEST_METHOD", request.envp);
        if (method != NULL && strcmp(method, "POST") == 0)
            while (FCGX_GetStr(block, BLOCK, request.in) > 0)
                ;
        else if (is_large) {
            FCGX_PutStr(large_head, sizeof large_head - 1, request.out);
            FCGX_PutStr(large, sizeof large, request.out);
            FCGX_Finish_r(&request);
            continue;
        }
        FCGX_PutStr(hello, sizeof hello - 1, request.out);
        FCGX_Finish_r(&request);
    }
    return NULL;
}

int main(int argc, char **argv)
{
    pthread_t thread;
    int i;

    (void)argv;
    is_large = argc > 1;
    memset(large, 'x', sizeof large);
    if (FCGX_Init() != 0)
        return 1;
    for (i = 1; i < THREADS; i++)
        if (pthread_create(&thread, NULL, serve, NULL) != 0)
            return 1;
    serve(NULL);
    return 0;
}
