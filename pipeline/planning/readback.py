"""What a pass left on the device, without waiting for the pass that follows it."""

import torch


class Readback:
    """Copies of a buffer after each pass. From an accelerator they come one pass late, so that it never waits.

    The copy after a pass goes to pinned memory while the next pass is already queued; two such copies take turns.
    """

    def __init__(self, state: torch.Tensor):
        self.state = state
        self.backend = getattr(torch, state.device.type) if state.device.type in ("cuda", "npu") else None
        if self.backend:
            self.copies = [torch.empty(state.shape, dtype=state.dtype, pin_memory=True) for _ in range(2)]
            self.events = [self.backend.Event() for _ in range(2)]
        self.passes = 0

    def after_pass(self) -> torch.Tensor | None:
        """The state after the pass before this one, None after the first; on a CPU after this one."""
        if not self.backend:
            return self.state.cpu()
        now = self.passes % 2
        self.copies[now].copy_(self.state, non_blocking=True)
        self.events[now].record()
        self.passes += 1
        if self.passes == 1:
            return None
        self.events[1 - now].synchronize()
        return self.copies[1 - now]
