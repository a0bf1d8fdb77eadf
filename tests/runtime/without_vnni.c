/* Hides AVX-512, AMX and VNNI from the process that preloads it, where the kernel lets the CPUID instruction trap. */
#define _GNU_SOURCE
#include <signal.h>
#include <stddef.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#define ARCH_SET_CPUID 0x1012
#define BIT(n) (1u << (n))

static long allow_cpuid(int allowed) { return syscall(SYS_arch_prctl, ARCH_SET_CPUID, allowed); }

static void answer(int signal_number, siginfo_t *info, void *context) {
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    const unsigned char *code = (const unsigned char *)registers[REG_RIP];
    unsigned leaf = registers[REG_RAX], part = registers[REG_RCX], a, b, c, d;
    if (code[0] != 0x0f || code[1] != 0xa2) { /* no CPUID: a fault of its own */
        signal(SIGSEGV, SIG_DFL);
        return;
    }
    allow_cpuid(1);
    __asm__ volatile("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(leaf), "c"(part));
    allow_cpuid(0);
    if (leaf == 7 && part == 0) {
        b &= ~(BIT(16) | BIT(17) | BIT(21) | BIT(28) | BIT(30) | BIT(31)); /* AVX-512 F, DQ, IFMA, CD, BW, VL */
        c &= ~(BIT(1) | BIT(6) | BIT(11) | BIT(12) | BIT(14)); /* AVX-512 VBMI, VBMI2, VNNI, BITALG, VPOPCNTDQ */
        d &= ~(BIT(22) | BIT(23) | BIT(24) | BIT(25)); /* AMX bf16, AVX-512 fp16, AMX tiles, AMX int8 */
    }
    if (leaf == 7 && part == 1) {
        a &= ~(BIT(4) | BIT(5)); /* AVX-VNNI, AVX-512 bf16 */
        d &= ~(BIT(4) | BIT(10)); /* AVX-VNNI int8, int16 */
    }
    registers[REG_RAX] = a, registers[REG_RBX] = b, registers[REG_RCX] = c, registers[REG_RDX] = d;
    registers[REG_RIP] += 2;
}

__attribute__((constructor)) static void begin(void) {
    struct sigaction action = {.sa_sigaction = answer, .sa_flags = SA_SIGINFO | SA_NODEFER};
    sigaction(SIGSEGV, &action, NULL);
    allow_cpuid(0);
}
