/* The least a process can do: a static program without libc whose first instruction asks to end.
 *
 *     cc -O2 -static -nostdlib -fno-stack-protector -o noop noop.c
 */
#include <sys/syscall.h>

__attribute__((noreturn)) void _start(void) {
    for (;;) {
#if defined(__x86_64__)
        __asm__ volatile("syscall" : : "a"(SYS_exit_group), "D"(0) : "rcx", "r11", "memory");
#elif defined(__aarch64__)
        register long number __asm__("x8") = SYS_exit_group;
        register long status __asm__("x0") = 0;
        __asm__ volatile("svc 0" : : "r"(number), "r"(status) : "memory");
#else
#error "x86-64 or arm64"
#endif
    }
}
