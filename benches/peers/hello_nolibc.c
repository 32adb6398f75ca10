/* hello.c without the C library, whose start can take several times as long as all the rest: compile with
 * -static -nostdlib. */

static const char answer[] =
    "Status: 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 14\r\n\r\nHello, world!\n";

static long call(long number, long first, long second, long third)
{
#if defined __x86_64__
    long returned;
    __asm__ volatile("syscall"
                     : "=a"(returned)
                     : "a"(number), "D"(first), "S"(second), "d"(third)
                     : "rcx", "r11", "memory");
    return returned;
#elif defined __aarch64__
    register long x8 __asm__("x8") = number;
    register long x0 __asm__("x0") = first;
    register long x1 __asm__("x1") = second;
    register long x2 __asm__("x2") = third;
    __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2) : "memory");
    return x0;
#endif
}

#if defined __x86_64__
enum { WRITE = 1, EXIT_GROUP = 231 };
#elif defined __aarch64__
enum { WRITE = 64, EXIT_GROUP = 94 };
#endif

void _start(void)
{
    call(EXIT_GROUP, call(WRITE, 1, (long)answer, sizeof answer - 1) == sizeof answer - 1 ? 0 : 1, 0, 0);
    for (;;)
        ;
}
