//! What a process must not pass on, and process groups by descriptor: single system calls that rustix does not have.
#![expect(unsafe_code, reason = "rustix has neither close_range nor signals for groups by pidfd")]

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::ptr::null;

use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Marks every descriptor above 2 that is open in this process, inherited ones among them, as one that the programs which
/// it executes do not get.
///
/// Descriptors that Rust opens are marked from their birth; what this process was started with may not be. So a server
/// calls this first thing in `main`. Sockets that were handed over remain usable.
///
/// # Errors
///
/// The open descriptors can't be listed: the kernel is older than 5.11, and there is no `/proc`.
pub fn close_on_exec_all() -> io::Result<()> {
    // SAFETY: it changes a flag of descriptors, and neither opens nor closes one.
    let done = unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if done == 0 { Ok(()) } else { close_on_exec_listed() }
}

/// The same for kernels, or filters of system calls, that do not know `close_range` with this flag.
fn close_on_exec_listed() -> io::Result<()> {
    for entry in fs::read_dir("/proc/self/fd")? {
        let Some(number) = entry?.file_name().to_str().and_then(|name| name.parse::<RawFd>().ok()) else { continue };
        if number <= libc::STDERR_FILENO {
            continue;
        }
        // SAFETY: it is used for two calls that leave it open; had another thread closed it, they would say so.
        let descriptor = unsafe { BorrowedFd::borrow_raw(number) };
        if let Ok(flags) = fcntl_getfd(descriptor) {
            fcntl_setfd(descriptor, flags | FdFlags::CLOEXEC)?;
        }
    }
    Ok(())
}

/// Sends a signal, or with 0 none, to the group whose leader the descriptor was opened for, though the leader is gone.
/// The kernel finds the group by the leader's identity and not by its number, so this can't hit another group.
///
/// # Errors
///
/// ESRCH: nothing is left of the group. EINVAL or ENOSYS: the kernel is older than 6.9.
pub(in crate::upstream::cgi) fn signal_group(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    const PIDFD_SIGNAL_PROCESS_GROUP: u32 = 1 << 2;
    // SAFETY: a system call with numbers, and no further information about the signal.
    let done = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            null::<libc::siginfo_t>(),
            PIDFD_SIGNAL_PROCESS_GROUP,
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A process's descriptor for tokio: it is readable when the process has ended.
pub(in crate::upstream::cgi) fn watched(pidfd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is one open descriptor, always the same, until it is dropped; the `AsyncFd` owns it until then.
    Ok(unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) }?)
}
