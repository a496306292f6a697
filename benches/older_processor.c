// Makes CPUID answer like an older processor's, for programs that choose their kernels by it and have no switch for that.
// Usage: LD_PRELOAD=older_processor.so CPU_MAX=avx2 PROGRAM, or CPU_MAX=avx512_vnni. Linux on x86-64, on processors that
// can trap the instruction; on others it has no effect.

#define _GNU_SOURCE
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#define ARCH_SET_CPUID 0x1012
#define BIT(n) (1u << (n))

// Bits of leaf 7, by subleaf and register.
static const unsigned AMX_EDX = BIT(22) | BIT(24) | BIT(25), AVX512_FP16_EDX = BIT(23);
static const unsigned AVX512_EBX = BIT(16) | BIT(17) | BIT(21) | BIT(26) | BIT(27) | BIT(28) | BIT(30) | BIT(31);
static const unsigned AVX512_ECX = BIT(1) | BIT(6) | BIT(11) | BIT(12) | BIT(14);
static const unsigned AVX512_EDX = BIT(2) | BIT(3) | BIT(8);
// AVX-VNNI, AVX512-BF16, AMX-FP16, AVX-IFMA.
static const unsigned LATER_EAX = BIT(4) | BIT(5) | BIT(21) | BIT(23);

static int is_avx2;

static void answer(int signal_number, siginfo_t *info, void *context) {
    (void)signal_number, (void)info;
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    const unsigned char *code = (const unsigned char *)registers[REG_RIP];
    if (code[0] != 0x0f || code[1] != 0xa2) {
        signal(SIGSEGV, SIG_DFL);
        return;
    }
    const unsigned leaf = registers[REG_RAX], subleaf = registers[REG_RCX];
    unsigned eax = leaf, ebx, ecx = subleaf, edx;
    syscall(SYS_arch_prctl, ARCH_SET_CPUID, 1);
    __asm__ volatile("cpuid" : "+a"(eax), "=b"(ebx), "+c"(ecx), "=d"(edx));
    syscall(SYS_arch_prctl, ARCH_SET_CPUID, 0);
    if (leaf == 7 && subleaf == 0) {
        edx &= ~(AMX_EDX | AVX512_FP16_EDX);
        if (is_avx2) {
            ebx &= ~AVX512_EBX;
            ecx &= ~AVX512_ECX;
            edx &= ~AVX512_EDX;
        }
    } else if (leaf == 7 && subleaf == 1) {
        eax &= ~LATER_EAX;
        edx = 0;
    }
    registers[REG_RAX] = eax, registers[REG_RBX] = ebx, registers[REG_RCX] = ecx, registers[REG_RDX] = edx;
    registers[REG_RIP] += 2;
}

__attribute__((constructor)) static void start(void) {
    const char *most = getenv("CPU_MAX");
    if (!most)
        return;
    is_avx2 = strcmp(most, "avx2") == 0;
    struct sigaction action = {.sa_sigaction = answer, .sa_flags = SA_SIGINFO | SA_NODEFER};
    sigaction(SIGSEGV, &action, NULL);
    if (syscall(SYS_arch_prctl, ARCH_SET_CPUID, 0) != 0)
        signal(SIGSEGV, SIG_DFL);
}
