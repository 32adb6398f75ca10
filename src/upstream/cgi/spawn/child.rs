//! The unsafe part of starting a program: a process that shares this one's memory until it executes the program.
//!
//! A fork copies the page tables, which takes 25 ms with 1 GiB in use. `CLONE_VM | CLONE_VFORK` copies nothing: the child runs in this
//! process's memory while the thread that made it stands still, until the child executes the program or exits. What the child may do
//! there is therefore little, and all of it is in [`child`]: system calls with what stands in [`Orders`]. It allocates nothing, takes no
//! lock, can't panic, calls nothing of std, and runs on a stack of its own. No signal handler runs in it: it begins without any, or with all signals
//! blocked until none is left where the kernel is too old for that.
#![expect(unsafe_code, reason = "nothing safe makes a process without a fork and sets ids and limits in it")]

use std::cell::RefCell;
use std::ffi::{c_char, c_int, c_long, c_void};
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::{null, null_mut};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering};

use rustix::process::{Pid, WaitOptions, waitpid};

use super::{Command, SpawnError, Step};
use crate::upstream::signals::Blocked;

/// Starts a program with descriptors 0, 1 and 2. The child writes its number to `slot` as soon as its group exists. A descriptor for
/// the process comes with it where the kernel makes both at once.
pub(in crate::upstream::cgi) fn spawn(
    command: &Command,
    descriptors: [BorrowedFd<'_>; 3],
    slot: Option<&AtomicU32>,
) -> Result<(Pid, Option<OwnedFd>), SpawnError> {
    spawn_by(clone, command, descriptors, slot)
}

/// One of the ways to make the child: its number and, where it comes with it, its descriptor.
type Clone = unsafe fn(&Orders<'_>, &mut Stack) -> io::Result<(c_int, Option<OwnedFd>)>;

fn spawn_by(
    clone: Clone,
    command: &Command,
    descriptors: [BorrowedFd<'_>; 3],
    slot: Option<&AtomicU32>,
) -> Result<(Pid, Option<OwnedFd>), SpawnError> {
    let failed = |step, source| SpawnError { step, source };
    let arguments = pointers(&command.arguments);
    let environment = pointers(&command.environment);
    let identity = command.identity.as_ref();
    // The system calls take this number as "leave it as it is", and the program would run as whoever we are.
    if identity.is_some_and(|identity| identity.uid == u32::MAX || identity.gid == u32::MAX) {
        return Err(failed(Step::Identity, io::Error::from_raw_os_error(libc::EINVAL)));
    }
    let orders = Orders {
        program: command.program.as_ptr(),
        arguments: arguments.as_ptr(),
        environment: environment.as_ptr(),
        directory: command.directory.as_ptr(),
        descriptors: descriptors.map(|descriptor| descriptor.as_raw_fd()),
        limits: limits(command),
        umask: command.umask.map_or(-1, |mask| c_long::from(mask & 0o777)),
        identity: identity.map(|identity| (identity.uid, identity.gid, identity.groups.as_slice())),
        slot,
        ignored: ignored_signals(),
        clear_handlers: AtomicBool::new(false),
        failed_step: AtomicI32::new(-1),
        failed_with: AtomicI32::new(0),
        borrowed: PhantomData,
    };
    let (number, pidfd) = STACK
        .try_with(|stack| {
            let mut stack = stack.borrow_mut();
            let stack = match &mut *stack {
                Some(stack) => stack,
                none => none.insert(Stack::map()?),
            };
            // SAFETY: the orders and all they point to outlive the call, in which this thread stands still until the
            // child no longer shares its memory; and the stack is this thread's only, so no other child runs on it.
            unsafe { clone(&orders, stack) }
        })
        .unwrap_or_else(|_| Err(io::Error::other("the thread is ending")))
        .map_err(|source| failed(Step::Process, source))?;
    let pid =
        Pid::from_raw(number).ok_or_else(|| failed(Step::Process, io::Error::other("a process without number")))?;
    let step = orders.failed_step.load(Ordering::Relaxed);
    let Some(&step) = usize::try_from(step).ok().and_then(|step| STEPS.get(step)) else { return Ok((pid, pidfd)) };
    // It is on its way out already, so this does not take long. The slot must be clear before the number is free.
    if let Some(slot) = slot {
        slot.store(0, Ordering::Relaxed);
    }
    while matches!(waitpid(Some(pid), WaitOptions::empty()), Err(rustix::io::Errno::INTR)) {}
    Err(failed(step, io::Error::from_raw_os_error(orders.failed_with.load(Ordering::Relaxed))))
}

/// All that the child knows, and where it says why it failed.
struct Orders<'a> {
    program: *const c_char,
    arguments: *const *const c_char,
    environment: *const *const c_char,
    directory: *const c_char,
    /// What becomes descriptors 0, 1 and 2.
    descriptors: [c_int; 3],
    /// Resource, soft and hard limit; those to be left alone have none.
    limits: [Option<(c_int, u64, u64)>; 5],
    /// Negative: stays as it is.
    umask: c_long,
    identity: Option<(u32, u32, &'a [u32])>,
    slot: Option<&'a AtomicU32>,
    /// The signals that this process ignores: bit 0 is signal 1.
    ignored: u64,
    /// Whether the handlers of this process are still in place in the child.
    clear_handlers: AtomicBool,
    /// The position in [`STEPS`] of what failed; negative while nothing has.
    failed_step: AtomicI32,
    failed_with: AtomicI32,
    borrowed: PhantomData<&'a Command>,
}

/// What can fail in the child.
const STEPS: [Step; 6] = [Step::Group, Step::Descriptors, Step::Limits, Step::Identity, Step::Directory, Step::Exec];

/// The child's whole life in this process's memory.
///
/// Not to be called but as a new process on a stack of its own, without signal handlers or with all signals blocked, with a pointer to orders that stay
/// valid until it executes the program or exits. It is not marked unsafe only because libc's `clone` takes no such function.
extern "C" fn child(orders: *mut c_void) -> c_int {
    // SAFETY: the caller's promise. The parent's thread does not touch the orders meanwhile, and what is written to is atomic.
    let orders = unsafe { &*orders.cast::<Orders<'_>>() };
    // SAFETY: this is the new process.
    let (step, error) = unsafe { execute(orders) };
    orders.failed_with.store(error, Ordering::Relaxed);
    orders.failed_step.store(step, Ordering::Relaxed);
    loop {
        // SAFETY: it ends this process; the parent shares its memory, but is not a thread of it.
        unsafe { libc::syscall(libc::SYS_exit_group, 127) };
    }
}

/// Prepares the process and executes the program; returns the position in [`STEPS`] of what failed, and its error.
///
/// # Safety
///
/// As for [`child`].
unsafe fn execute(orders: &Orders<'_>) -> (c_int, c_int) {
    /// A system call. The returned error is a step's position and the system's number.
    macro_rules! call {
        ($step:expr, $number:expr $(, $argument:expr)*) => {{
            // SAFETY: each pointer among the arguments is to the orders, to what they point to, or to this function's
            // variables; sizes are those that the kernel expects. `syscall` takes no lock and allocates nothing; it
            // writes to the parent thread's `errno`, which that thread does not look at when it goes on.
            let returned = unsafe { libc::syscall($number $(, $argument)*) };
            if returned < 0 {
                // SAFETY: it is a pointer to a thread-local of the parent's thread, which stands still.
                return ($step, unsafe { *libc::__errno_location() });
            }
            returned
        }};
    }
    const GROUP: c_int = 0;
    const DESCRIPTORS: c_int = 1;
    const LIMITS: c_int = 2;
    const IDENTITY: c_int = 3;
    const DIRECTORY: c_int = 4;
    const EXEC: c_int = 5;

    call!(GROUP, libc::SYS_setpgid, 0, 0);
    if let Some(slot) = orders.slot {
        // The watcher's pipe is still open here, so the watcher can't have looked at the table for the last time.
        let own = call!(GROUP, libc::SYS_getpid);
        slot.store(own as u32, Ordering::Relaxed);
    }

    // No handler may run here, since it would run in the parent's memory; and what the parent ignores, such as SIGPIPE
    // in every Rust program, the program is not to ignore.
    let all = orders.clear_handlers.load(Ordering::Relaxed);
    let default = [0_u64; 4];
    let mut signal: c_int = 1;
    while signal <= SIGNALS {
        let is_ignored = orders.ignored >> (signal - 1) & 1 == 1;
        if is_ignored || all && signal != libc::SIGKILL && signal != libc::SIGSTOP {
            call!(GROUP, libc::SYS_rt_sigaction, signal, &raw const default, null_mut::<c_void>(), size_of::<u64>());
        }
        signal += 1;
    }

    // What is to become one of them may be one of them already: those move out of the way first.
    let [mut input, mut output, mut errors] = orders.descriptors;
    for descriptor in [&mut input, &mut output, &mut errors] {
        if *descriptor <= libc::STDERR_FILENO {
            let moved = call!(DESCRIPTORS, libc::SYS_fcntl, *descriptor, libc::F_DUPFD_CLOEXEC, 3);
            *descriptor = moved as c_int;
        }
    }
    call!(DESCRIPTORS, libc::SYS_dup3, input, libc::STDIN_FILENO, 0);
    call!(DESCRIPTORS, libc::SYS_dup3, output, libc::STDOUT_FILENO, 0);
    call!(DESCRIPTORS, libc::SYS_dup3, errors, libc::STDERR_FILENO, 0);

    for &(resource, soft, hard) in orders.limits.iter().flatten() {
        let mut limit = [0_u64; 2];
        let this = 0;
        call!(LIMITS, libc::SYS_prlimit64, this, resource, null::<c_void>(), &raw mut limit);
        // Raising the hard limit needs a privilege, and a stricter one is there for a reason.
        let [_, hardest] = limit;
        limit = [if soft < hardest { soft } else { hardest }, if hard < hardest { hard } else { hardest }];
        call!(LIMITS, libc::SYS_prlimit64, this, resource, &raw const limit, null_mut::<c_void>());
    }
    if orders.umask >= 0 {
        call!(LIMITS, libc::SYS_umask, orders.umask);
    }

    // The last steps are taken with the rights of the user whom the program runs as. libc's functions for these would change
    // all threads of this process; the system calls change the calling process only.
    if let Some((uid, gid, groups)) = orders.identity {
        call!(IDENTITY, SET_GROUPS, groups.len(), groups.as_ptr());
        call!(IDENTITY, SET_GIDS, gid, gid, gid);
        call!(IDENTITY, SET_UIDS, uid, uid, uid);
    }
    call!(DIRECTORY, libc::SYS_chdir, orders.directory);

    let nothing = 0_u64;
    call!(
        EXEC,
        libc::SYS_rt_sigprocmask,
        libc::SIG_SETMASK,
        &raw const nothing,
        null_mut::<c_void>(),
        size_of::<u64>()
    );
    call!(EXEC, libc::SYS_execve, orders.program, orders.arguments, orders.environment);
    // It does not return without an error.
    (EXEC, libc::ENOEXEC)
}

// On the oldest machines the calls of these names take numbers of 16 bits: user 65,536 would be root.
#[cfg(any(target_arch = "arm", target_arch = "x86"))]
const SET_GROUPS: c_long = libc::SYS_setgroups32;
#[cfg(any(target_arch = "arm", target_arch = "x86"))]
const SET_GIDS: c_long = libc::SYS_setresgid32;
#[cfg(any(target_arch = "arm", target_arch = "x86"))]
const SET_UIDS: c_long = libc::SYS_setresuid32;
#[cfg(not(any(target_arch = "arm", target_arch = "x86")))]
const SET_GROUPS: c_long = libc::SYS_setgroups;
#[cfg(not(any(target_arch = "arm", target_arch = "x86")))]
const SET_GIDS: c_long = libc::SYS_setresgid;
#[cfg(not(any(target_arch = "arm", target_arch = "x86")))]
const SET_UIDS: c_long = libc::SYS_setresuid;

/// The highest signal's number.
const SIGNALS: c_int = 64;

/// Makes the child, and returns its number when it has executed the program or exited.
///
/// # Safety
///
/// The orders stay valid; nobody else uses the stack.
unsafe fn clone(orders: &Orders<'_>, stack: &mut Stack) -> io::Result<(c_int, Option<OwnedFd>)> {
    /// Set when the kernel, or a filter before it, does not know `clone3` or its flag.
    static OLD_KERNEL: AtomicBool = AtomicBool::new(false);
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    if !OLD_KERNEL.load(Ordering::Relaxed) {
        // SAFETY: the caller's promises.
        match unsafe { clone3(orders, stack) } {
            // Before Linux 5.3; before 5.5; in containers whose filter of system calls is older than `clone3`.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EINVAL | libc::EPERM)) => {
                OLD_KERNEL.store(true, Ordering::Relaxed);
            }
            done => return done,
        }
    }
    // SAFETY: the caller's promises.
    unsafe { clone_with_handlers(orders, stack) }
}

/// The way that every kernel knows: the child itself puts back each signal's default.
///
/// # Safety
///
/// As for [`clone`].
unsafe fn clone_with_handlers(orders: &Orders<'_>, stack: &mut Stack) -> io::Result<(c_int, Option<OwnedFd>)> {
    orders.clear_handlers.store(true, Ordering::Relaxed);
    let _blocked = Blocked::all();
    // SAFETY: `child` gets what it asks for; the stack grows down from its aligned end.
    let number = unsafe {
        libc::clone(
            child,
            stack.end(),
            libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD,
            (&raw const *orders).cast_mut().cast(),
        )
    };
    if number < 0 { Err(io::Error::last_os_error()) } else { Ok((number, None)) }
}

/// With `CLONE_CLEAR_SIGHAND`, which saves the child 62 system calls: about a twentieth of what a small program takes from
/// its start to its end; and with a descriptor for the process, which saves opening one later. libc has no function for it.
///
/// No signal is blocked meanwhile: no handler is left in the child. Where two threads started programs at once and blocked them all, every tenth program or so
/// had each sleeping thread of this process woken up and put to sleep again.
///
/// # Safety
///
/// As for [`clone`].
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
unsafe fn clone3(orders: &Orders<'_>, stack: &mut Stack) -> io::Result<(c_int, Option<OwnedFd>)> {
    const CLONE_CLEAR_SIGHAND: u64 = 1 << 32;
    /// The kernel's `struct clone_args` in its first version.
    #[repr(C, align(8))]
    #[derive(Default)]
    struct Arguments {
        flags: u64,
        pidfd: u64,
        child_tid: u64,
        parent_tid: u64,
        exit_signal: u64,
        stack: u64,
        stack_size: u64,
        tls: u64,
    }
    let mut pidfd: c_int = -1;
    let arguments = Arguments {
        flags: (libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD) as u64 | CLONE_CLEAR_SIGHAND,
        pidfd: (&raw mut pidfd).expose_provenance() as u64,
        exit_signal: libc::SIGCHLD as u64,
        stack: stack.start().addr() as u64,
        stack_size: STACK_SIZE as u64,
        ..Arguments::default()
    };
    let mut returned: isize;
    // SAFETY: in the parent this is a system call like any other, with the registers named that it changes. In the child, which
    // comes back with 0 and on the new, aligned stack, nothing of this function is touched: `child` is called and does not return.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r12",
            "call r13",
            "ud2",
            "2:",
            inlateout("rax") libc::SYS_clone3 as isize => returned,
            in("rdi") &raw const arguments,
            in("rsi") size_of::<Arguments>(),
            in("r12") &raw const *orders,
            in("r13") child as extern "C" fn(*mut c_void) -> c_int,
            out("rcx") _,
            out("r11") _,
        );
    }
    // SAFETY: as above.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        std::arch::asm!(
            "svc 0",
            "cbnz x0, 2f",
            "mov x29, xzr",
            "mov x0, x20",
            "blr x21",
            "brk 1",
            "2:",
            in("x8") libc::SYS_clone3,
            inlateout("x0") (&raw const arguments).expose_provenance() as isize => returned,
            in("x1") size_of::<Arguments>(),
            in("x20") &raw const *orders,
            in("x21") child as extern "C" fn(*mut c_void) -> c_int,
        );
    }
    if returned < 0 {
        return Err(io::Error::from_raw_os_error(-returned as i32));
    }
    // SAFETY: the kernel has just opened it, closed on exec, and nobody else knows of it.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok((returned as c_int, Some(pidfd)))
}

thread_local! {
    /// One thread has one child at a time on it, since it stands still meanwhile.
    static STACK: RefCell<Option<Stack>> = const { RefCell::new(None) };
}

/// How much memory the child has for its few calls; a build without optimisation takes less than 1 KiB.
const STACK_SIZE: usize = 64 * 1024;
/// Below the stack lies as much that can't be touched. The largest page size of the supported machines.
const GUARD_SIZE: usize = 64 * 1024;

/// Memory for the child's calls.
struct Stack {
    mapping: *mut c_void,
}

impl Stack {
    fn map() -> io::Result<Self> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_STACK | libc::MAP_NORESERVE;
        // SAFETY: a new mapping at a place of the kernel's choice touches nothing that is there.
        let mapping = unsafe { libc::mmap(null_mut(), GUARD_SIZE + STACK_SIZE, libc::PROT_NONE, flags, -1, 0) };
        if mapping == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let stack = Self { mapping };
        // SAFETY: it is the upper part of the mapping that was just made.
        if unsafe { libc::mprotect(stack.start(), STACK_SIZE, libc::PROT_READ | libc::PROT_WRITE) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(stack)
    }

    fn start(&self) -> *mut c_void {
        self.mapping.wrapping_byte_add(GUARD_SIZE)
    }

    fn end(&self) -> *mut c_void {
        self.start().wrapping_byte_add(STACK_SIZE)
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, and no child runs on it: the thread would stand still.
        unsafe { libc::munmap(self.mapping, GUARD_SIZE + STACK_SIZE) };
    }
}

/// The signals that this process ignored when it started its first program. Bit 0 is signal 1.
fn ignored_signals() -> u64 {
    static IGNORED: OnceLock<u64> = OnceLock::new();
    *IGNORED.get_or_init(|| {
        let is_ignored = |signal: &c_int| {
            // The handler is the first word of what the kernel tells.
            let mut action = [0_u64; 4];
            // SAFETY: the kernel writes no more than 32 bytes.
            let told = unsafe {
                libc::syscall(libc::SYS_rt_sigaction, *signal, null::<c_void>(), &raw mut action, size_of::<u64>())
            };
            told == 0 && action[0] == libc::SIG_IGN as u64
        };
        (1..=SIGNALS).filter(is_ignored).fold(0, |set, signal| set | 1 << (signal - 1))
    })
}

/// What the kernel takes for a list of strings.
fn pointers(strings: &[std::ffi::CString]) -> Vec<*const c_char> {
    strings.iter().map(|string| string.as_ptr()).chain([null()]).collect()
}

fn limits(command: &Command) -> [Option<(c_int, u64, u64)>; 5] {
    let limits = command.limits;
    let both = |resource, value: Option<u64>| value.map(|value| (resource as c_int, value, value));
    [
        // At the soft limit comes SIGXCPU, which says what happened.
        limits.cpu_time.map(|value| (libc::RLIMIT_CPU as c_int, value, value.saturating_add(1))),
        both(libc::RLIMIT_AS, limits.memory),
        both(libc::RLIMIT_NOFILE, limits.open_files),
        both(libc::RLIMIT_NPROC, limits.processes),
        both(libc::RLIMIT_FSIZE, limits.file_size),
    ]
}

#[cfg(test)]
mod tests {
    use std::ffi::CString;
    use std::fs::{self, File};
    use std::os::fd::AsFd;
    use std::os::unix::ffi::OsStrExt;
    use std::path::Path;

    use super::*;

    /// Runs a shell script by one way and waits for it.
    fn run(clone: Clone, script: &str, argument: &Path, descriptors: [BorrowedFd<'_>; 3]) {
        let mut command = Command::new(c"/bin/sh".to_owned());
        for argument in [c"-c".to_owned(), CString::new(script).unwrap(), c"sh".to_owned()] {
            command.arguments.push(argument);
        }
        command.arguments.push(CString::new(argument.as_os_str().as_bytes()).unwrap());
        let (pid, _) = spawn_by(clone, &command, descriptors, None).unwrap();
        let (_, status) = waitpid(Some(pid), WaitOptions::empty()).unwrap().unwrap();
        assert_eq!(status.exit_status(), Some(0));
    }

    #[test]
    fn no_signal_is_blocked_ignored_or_handled_in_the_program_however_it_is_made() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _handled = runtime
            .block_on(async { tokio::signal::unix::signal(tokio::signal::unix::SignalKind::user_defined2()).unwrap() });
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("status");
        let null = File::open("/dev/null").unwrap();
        for way in [clone as Clone, clone3, clone_with_handlers] {
            run(way, "exec cat /proc/self/status > \"$1\"", &file, [null.as_fd(); 3]);
            let text = fs::read_to_string(&file).unwrap();
            for set in ["SigBlk", "SigIgn", "SigCgt"] {
                assert!(text.contains(&format!("\n{set}:\t0000000000000000\n")), "{set}: {text}");
            }
        }
        let own = fs::read_to_string("/proc/thread-self/status").unwrap();
        assert!(own.contains("SigBlk:\t0000000000000000"), "the parent's mask is as it was");
    }

    #[test]
    fn descriptors_0_to_2_may_change_places() {
        const FOLDER: &str = "GATESPAN_TEST_DESCRIPTORS";
        const NAMES: [&str; 3] = ["zero", "one", "two"];
        if let Some(folder) = std::env::var_os(FOLDER) {
            let folder = Path::new(&folder);
            // The shell's own descriptors as they are while it redirects nothing.
            let script = "a=$(readlink /proc/$$/fd/0) b=$(readlink /proc/$$/fd/1) c=$(readlink /proc/$$/fd/2)
                printf '%s\\n' \"$a\" \"$b\" \"$c\" > \"$1\"";
            let (input, output, errors) = (io::stdin(), io::stdout(), io::stderr());
            let own = [input.as_fd(), output.as_fd(), errors.as_fd()];
            for way in [clone3 as Clone, clone_with_handlers] {
                for order in [[0, 1, 2], [2, 0, 1], [1, 2, 0], [1, 0, 2], [2, 2, 2]] {
                    let found = folder.join("found");
                    run(way, script, &found, order.map(|place| own[place]));
                    let expected = order.map(|place| folder.join(NAMES[place]).display().to_string());
                    assert_eq!(fs::read_to_string(found).unwrap().lines().collect::<Vec<_>>(), expected);
                }
            }
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let [input, output, errors] = NAMES.map(|name| {
            File::options().read(true).write(true).create(true).truncate(false).open(folder.path().join(name)).unwrap()
        });
        let name = format!("{}::descriptors_0_to_2_may_change_places", module_path!().split_once("::").unwrap().1);
        let mut again = std::process::Command::new(std::env::current_exe().unwrap());
        again.args(["--exact", &name]).env(FOLDER, folder.path().canonicalize().unwrap());
        let status = again.stdin(input).stdout(output).stderr(errors).status().unwrap();
        let said = ["one", "two"].map(|name| fs::read_to_string(folder.path().join(name)).unwrap());
        assert!(status.success() && said[0].contains("1 passed"), "{said:?}");
    }

    #[test]
    fn a_failure_is_reported_by_both_ways() {
        let null = File::open("/dev/null").unwrap();
        for way in [clone3 as Clone, clone_with_handlers] {
            let slot = AtomicU32::new(0);
            let failed =
                spawn_by(way, &Command::new(c"/nowhere".to_owned()), [null.as_fd(); 3], Some(&slot)).unwrap_err();
            assert_eq!((failed.step, failed.source.raw_os_error()), (Step::Exec, Some(libc::ENOENT)));
            assert_eq!(slot.load(Ordering::Relaxed), 0);
        }
    }
}
