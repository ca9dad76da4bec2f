"""The seccomp profile of containers: everything but what administers the host or reaches into other processes' kernels.

A deny list, because an allow list breaks programs with each new kernel. The calls are those that Docker's default profile withholds from
a container without extra capabilities (moby, profiles/seccomp/default.json), plus io_uring, which has been withheld there since 2023.
"""

from __future__ import annotations

import os
from functools import cache
from typing import Any, Final

_ALLOW: Final = "SCMP_ACT_ALLOW"
_ERRNO: Final = "SCMP_ACT_ERRNO"
_EPERM: Final = 1
_ENOSYS: Final = 38
_CLONE_NEWUSER: Final = 0x10000000
_CLONE_NAMESPACES: Final = 0x7E020000

_DENIED: Final = (
    "acct", "add_key", "bpf", "clock_adjtime", "clock_settime", "create_module", "delete_module", "fanotify_init", "finit_module",
    "fsconfig", "fsmount", "fsopen", "fspick", "get_kernel_syms", "init_module", "io_uring_enter", "io_uring_register",
    "io_uring_setup", "ioperm", "iopl", "kcmp", "kexec_file_load", "kexec_load", "keyctl", "lookup_dcookie", "mount",
    "mount_setattr", "move_mount", "name_to_handle_at", "nfsservctl", "open_by_handle_at", "open_tree", "perf_event_open",
    "pivot_root", "process_madvise", "process_vm_readv", "process_vm_writev", "query_module", "quotactl", "quotactl_fd", "reboot",
    "request_key", "setns", "settimeofday", "stime", "swapoff", "swapon", "sysfs", "syslog", "umount", "umount2", "unshare",
    "uselib", "userfaultfd", "ustat", "vhangup", "vm86", "vm86old",
)  # fmt: skip

_ARCHITECTURES: Final = {
    "x86_64": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
    "aarch64": ["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"],
}


@cache
def profile() -> dict[str, Any]:
    """``linux.seccomp`` of an OCI configuration: one for all, not to be changed."""
    return {
        "defaultAction": _ALLOW,
        "architectures": _ARCHITECTURES.get(os.uname().machine, []),
        "syscalls": [
            {"names": list(_DENIED), "action": _ERRNO, "errnoRet": _EPERM},
            # clone3 hides its flags behind a pointer: "no such call" makes C libraries fall back to clone, which can be judged
            {"names": ["clone3"], "action": _ERRNO, "errnoRet": _ENOSYS},
            *({"names": ["clone"], "action": _ERRNO, "errnoRet": _EPERM, "args": [_flag(bit)]} for bit in _namespace_bits()),
        ],
    }


def _namespace_bits() -> list[int]:
    """Each namespace flag alone: SCMP_CMP_MASKED_EQ compares all masked bits at once."""
    return [1 << n for n in range(32) if _CLONE_NAMESPACES >> n & 1]


def _flag(bit: int) -> dict[str, Any]:
    return {"index": 0, "value": bit, "valueTwo": bit, "op": "SCMP_CMP_MASKED_EQ"}
