//! The signals of a thread, blocked while there is a copy of this process that has no use for its handlers.
#![expect(unsafe_code, reason = "rustix has no sets of signals")]

/// All signals are blocked for this thread while this is there, those that libc keeps for itself too.
pub(super) struct Blocked(u64);

impl Blocked {
    pub(super) fn all() -> Self {
        Self(set_mask(u64::MAX))
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        set_mask(self.0);
    }
}

/// Sets the signals that are blocked for this thread and returns those that were.
fn set_mask(mask: u64) -> u64 {
    let mut before = 0_u64;
    // SAFETY: both are pointers to sets of signals of the kernel's size. It can't fail then.
    unsafe {
        libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const mask, &raw mut before, size_of::<u64>())
    };
    before
}
