//! The watcher: a small process that ends what this one leaves running when it is killed.
//!
//! A process that is killed with SIGKILL can't end the programs that it started. The watcher can: it holds the reading end of a pipe
//! whose writing end only this process has, so end of file tells it that this process is gone; and a table in memory that both share tells it
//! which process groups are left. Each program's own process writes its group there before it executes the program, while
//! it still holds the writing end itself, so at end of file no group is missing; and this process clears the place before it waits for the group's
//! leader, so no number is there that could be another's by now. Neither costs a system call.
//!
//! What it can't do: a process that has called `setsid` or `setpgid` has left its group and is not found. Once this process is gone,
//! its orphans' parent waits for them, so a leader that ends in the moment between the watcher's look at the table and its
//! signal could free its number; the kernel would have to give out all other numbers in that moment to make it another's. And groups of which
//! only the leader is gone, after a normal end or while their grace runs, are not in the table any more.
#![expect(
    unsafe_code,
    reason = "memory shared by two processes, and a process that is a copy of this one, are beyond std"
)]

use std::ffi::{c_int, c_long};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::{NonNull, null_mut};
use std::slice;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, WaitOptions, waitpid};

use super::signals::Blocked;

/// How many programs can be watched at once.
pub const WATCHED: usize = 65_536;

/// How long the groups that are left have from SIGTERM to SIGKILL.
pub const GRACE: Duration = Duration::from_secs(2);

/// A handle on the watcher. The watcher ends when the last handle, and the last process that was started with one, is gone.
#[derive(Debug, Clone)]
pub struct Watcher {
    shared: Arc<Shared>,
}

impl Watcher {
    /// Starts the watcher. To be called once, early: before the runtime starts and while this process is small, since
    /// the watcher begins as a copy of it.
    ///
    /// It is called `gatespan-watch`, has a session of its own, is no child of this process, holds none of its
    /// descriptors and ignores every signal that can be ignored, so that what ends this process does not end it first.
    ///
    /// # Errors
    ///
    /// No process, pipe or memory could be had.
    pub fn start() -> io::Result<Self> {
        let table = Table::map()?;
        let (theirs, ours) = pipe_with(PipeFlags::CLOEXEC)?;
        // A handler of this process that ran in the copy would find its threads gone.
        let blocked = Blocked::all();
        // SAFETY: the copy makes system calls only, whatever locks the other threads held at this moment.
        let number = unsafe { fork() };
        if number == 0 {
            // SAFETY: this is the copy, it never returns, and the table and the pipe are its own now.
            unsafe { separate(theirs.as_raw_fd(), &table) }
        }
        let failed = io::Error::last_os_error();
        drop(blocked);
        let between = u32::try_from(number).ok().and_then(|number| Pid::from_raw(number as i32)).ok_or(failed)?;
        // It ends as soon as it has started the watcher, whose parent is then whoever takes in orphans.
        let status = loop {
            match waitpid(Some(between), WaitOptions::from_bits_retain(libc::__WALL as u32)) {
                Err(rustix::io::Errno::INTR) => {}
                Ok(ended) => break ended.and_then(|(_, status)| status.exit_status()),
                Err(error) => return Err(error.into()),
            }
        };
        match status {
            Some(0) => Ok(Self { shared: Arc::new(Shared { table, _pipe: ours, free: Mutex::default() }) }),
            Some(error) => Err(io::Error::from_raw_os_error(error)),
            None => Err(io::Error::other("the process that was to start the watcher was killed")),
        }
    }

    /// Sees to it that a program which is about to be started leads a watched group. The place is to be held until it has been waited for.
    #[cfg(feature = "upstream-fastcgi")]
    pub(super) fn watch(&self, command: &mut std::process::Command) -> io::Result<Place> {
        use std::os::unix::process::CommandExt;

        let place =
            self.place().ok_or_else(|| io::Error::other(format!("expected at most {WATCHED} programs at once")))?;
        let (shared, index) = (self.shared.clone(), place.index);
        command.process_group(0);
        // SAFETY: what runs in the child is a system call and a store to memory that it shares with this process; it neither allocates nor takes a
        // lock. std has made it the leader of its group by then, and it holds a copy of the pipe.
        unsafe {
            command.pre_exec(move || {
                shared.table.numbers()[index].store(std::process::id(), Ordering::Relaxed);
                Ok(())
            })
        };
        Ok(place)
    }

    /// A place for one more group, if there is one.
    pub(super) fn place(&self) -> Option<Place> {
        let mut free = self.shared.free.lock().unwrap_or_else(PoisonError::into_inner);
        let index = free.returned.pop().or_else(|| {
            let next = free.used;
            (next < WATCHED).then(|| {
                free.used += 1;
                next
            })
        })?;
        Some(Place { shared: self.shared.clone(), index })
    }
}

/// What all handles share. Dropping it closes the pipe.
#[derive(Debug)]
struct Shared {
    table: Table,
    _pipe: OwnedFd,
    free: Mutex<Free>,
}

/// Which places of the table are free.
#[derive(Debug, Default)]
struct Free {
    /// How many places, from the first, have ever been used.
    used: usize,
    /// Those among them that are free again.
    returned: Vec<usize>,
}

/// One place in the table, held for as long as the group's leader has not been waited for.
#[derive(Debug)]
pub(super) struct Place {
    shared: Arc<Shared>,
    index: usize,
}

impl Place {
    /// Where the group's number stands; 0 is none.
    pub(super) fn number(&self) -> &AtomicU32 {
        &self.shared.table.numbers()[self.index]
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.number().store(0, Ordering::Relaxed);
        self.shared.free.lock().unwrap_or_else(PoisonError::into_inner).returned.push(self.index);
    }
}

/// The numbers of the living groups, in memory that this process and the watcher share.
#[derive(Debug)]
struct Table {
    start: NonNull<AtomicU32>,
}

// SAFETY: it is memory that belongs to no thread, and all access to it is atomic.
unsafe impl Send for Table {}
// SAFETY: as above.
unsafe impl Sync for Table {}

impl Table {
    fn map() -> io::Result<Self> {
        let size = WATCHED * size_of::<AtomicU32>();
        let (access, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping at a place of the kernel's choice touches nothing that is there.
        let mapping = unsafe { libc::mmap(null_mut(), size, access, flags, -1, 0) };
        if mapping == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        NonNull::new(mapping.cast()).map(|start| Self { start }).ok_or_else(|| io::ErrorKind::OutOfMemory.into())
    }

    fn numbers(&self) -> &[AtomicU32] {
        // SAFETY: the mapping has that length, begins on a page, is zero at first, which is a valid number, and stays
        // until this is dropped.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), WATCHED) }
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, and nothing borrowed from it is left.
        unsafe { libc::munmap(self.start.as_ptr().cast(), WATCHED * size_of::<AtomicU32>()) };
    }
}

/// A copy of this process, without libc's knowledge: none of its handlers for forks run. No signal tells of its end.
///
/// # Safety
///
/// The copy, where 0 is returned, makes only system calls and never returns.
unsafe fn fork() -> c_long {
    // SAFETY: without flags and a stack this is a plain fork, and the order of the arguments is the same everywhere.
    unsafe { libc::syscall(libc::SYS_clone, 0, 0, 0, 0, 0) }
}

/// The life of the process between this one and the watcher: a session of its own, and the watcher in it.
///
/// # Safety
///
/// To be called in a copy of the process, all of whose signals are blocked.
unsafe fn separate(pipe: c_int, table: &Table) -> ! {
    // SAFETY: numbers only.
    unsafe { libc::syscall(libc::SYS_setsid) };
    // SAFETY: the copy calls `watch`, which does not return.
    let number = unsafe { fork() };
    if number == 0 {
        // SAFETY: this is the copy of the copy.
        unsafe { watch(pipe, table) }
    }
    // SAFETY: it is a thread-local of this thread.
    exit(if number < 0 { unsafe { *libc::__errno_location() } } else { 0 })
}

/// The watcher's life.
///
/// # Safety
///
/// To be called in a copy of the process, all of whose signals are blocked.
unsafe fn watch(pipe: c_int, table: &Table) -> ! {
    // SAFETY: each pointer is to something of this function's or of the program's text. None of the calls allocates or
    // takes a lock, and what they change is this process only. Failures leave it with more than it needs, and no worse.
    unsafe {
        libc::syscall(libc::SYS_prctl, libc::PR_SET_NAME, c"gatespan-watch".as_ptr(), 0, 0, 0);
        libc::syscall(libc::SYS_chdir, c"/".as_ptr());
        if pipe != 0 {
            libc::syscall(libc::SYS_dup3, pipe, 0, 0);
        }
        if libc::syscall(libc::SYS_close_range, 1, libc::c_uint::MAX, 0) < 0 {
            // Before Linux 5.9. What is open above is no more than most limits allow.
            let mut descriptor = 1;
            while descriptor < 65_536 {
                libc::syscall(libc::SYS_close, descriptor);
                descriptor += 1;
            }
        }
        let mut byte = 0_u8;
        // Nothing is ever written.
        while libc::syscall(libc::SYS_read, 0, &raw mut byte, 1) < 0 && *libc::__errno_location() == libc::EINTR {}
    }
    let numbers = table.numbers();
    if signal(numbers, libc::SIGTERM) {
        let mut waited = 0;
        while waited < GRACE.as_millis() && signal(numbers, 0) {
            let pause = libc::timespec { tv_sec: 0, tv_nsec: PAUSE_MS * 1_000_000 };
            // SAFETY: a pointer to a time; the rest is not wanted.
            unsafe { libc::syscall(libc::SYS_nanosleep, &raw const pause, null_mut::<libc::timespec>()) };
            waited += PAUSE_MS as u128;
        }
        signal(numbers, libc::SIGKILL);
    }
    exit(0)
}

/// How often the watcher looks whether groups that were told to end are gone, in milliseconds.
const PAUSE_MS: i64 = 20;

/// Sends each group a signal, or with 0 none, and forgets those that are gone: their numbers may be others' later. Returns whether
/// one is left.
fn signal(numbers: &[AtomicU32], signal: c_int) -> bool {
    let mut is_left = false;
    for place in numbers {
        let number = place.load(Ordering::Relaxed);
        // 0 would be the watcher's own group, and 1 every process there is.
        if number < 2 {
            continue;
        }
        // SAFETY: numbers only.
        let sent = unsafe { libc::syscall(libc::SYS_kill, -c_long::from(number), signal) };
        match sent {
            0 => is_left = true,
            _ => place.store(0, Ordering::Relaxed),
        }
    }
    is_left
}

/// Ends this process without anything that Rust or libc would do at its end.
fn exit(code: c_int) -> ! {
    loop {
        // SAFETY: numbers only.
        unsafe { libc::syscall(libc::SYS_exit_group, code) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_room_for_so_many_groups_and_room_is_given_back() {
        let watcher = Watcher::start().unwrap();
        let mut places: Vec<Place> = (0..WATCHED).map(|_| watcher.place().unwrap()).collect();
        assert!(watcher.place().is_none());
        let given_back = places.swap_remove(WATCHED / 2);
        // Not a number that a group has.
        given_back.number().store(u32::MAX >> 1, Ordering::Relaxed);
        let index = given_back.index;
        drop(given_back);
        let again = watcher.place().unwrap();
        assert_eq!((again.index, again.number().load(Ordering::Relaxed)), (index, 0));
    }
}
