/* The answer of examples/hello.rs as a CGI script in C. */

#include <unistd.h>

static const char answer[] =
    "Status: 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 14\r\n\r\nHello, world!\n";

int main(void)
{
    return write(1, answer, sizeof answer - 1) == sizeof answer - 1 ? 0 : 1;
}
