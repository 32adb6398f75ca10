/* Writes fifty events with pauses of 10 ms, each the time of its writing in nanoseconds. */

#include <stdio.h>
#include <time.h>
#include <unistd.h>

int main(void)
{
    static const char head[] = "Content-Type: text/event-stream\r\n\r\n";
    if (write(1, head, sizeof head - 1) < 0)
        return 1;
    for (int number = 0; number < 50; number++) {
        char event[64];
        struct timespec pause = { 0, 10 * 1000 * 1000 }, now;
        nanosleep(&pause, NULL);
        clock_gettime(CLOCK_REALTIME, &now);
        int length = snprintf(event, sizeof event, "%lld%09ld\n", (long long)now.tv_sec, now.tv_nsec);
        if (write(1, event, length) != length)
            return 1;
    }
    return 0;
}
