"""Which parts of the decoder processes' sandbox are in force. Imports no codec: web workers use it, too."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class SandboxStatus(BaseModel):
    """The lock-down that is in force in a decoder process, as it was proven at the host's start."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    landlock_abi: int = Field(
        description="version of Landlock, which denies files and sockets; 0: not in force"
    )
    seccomp: bool = Field(description="only the system calls that decoding needs are allowed")
    no_new_privileges: bool = Field(description="no program that it starts can gain rights")
    memory_limited: bool = Field(description="its address space has a limit")
